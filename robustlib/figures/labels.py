"""How attacks are called where people read: in figures, tables and sentences."""

ATTACKS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd50x10": "PGD-50×10",  # 10 restarts
    "cw50": "CW-50",
    "pgd100x5": "PGD-100×5",  # 5 restarts, on surrogates
    "cw100x5": "CW-100×5",
    "pgd_eot": "PGD+EOT",
    "square": "Square",
    "aa_standard": "AutoAttack, standard version",
    "autoattack": "AutoAttack",
    "worst": "worst case",
    "known": "known attacks, worst case",
    "l2": "unseen: L2",
    "stadv": "unseen: StAdv",
}
# Beside a bar there is room to say what a restart is, and none for "version".
BARS = ATTACKS | {"pgd50x10": "PGD-50, 10 restarts", "aa_standard": "AutoAttack, standard"}


def attack_name(attack: str) -> str:
    """The attack's name for people; "pgd20@denoiser" is "PGD-20 on denoiser" (a surrogate)."""
    name, at, surrogate = attack.partition("@")
    return ATTACKS.get(name, name) + (f" on {surrogate}" if at else "")

"""How attacks, verdicts and numbers are written where people read: in figures, tables and sentences."""

from collections.abc import Iterable

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
# How a verdict of the audit is written: a sign and a word, so that colour is never all there is. The gravest first.
VERDICTS = {"red": "✕ red", "amber": "▲ amber", "": "– not audited", "pass": "✓ pass", "n/a": "– n/a"}


def attack_name(attack: str) -> str:
    """The attack's name for people; "pgd20@denoiser" is "PGD-20 on denoiser" (a surrogate)."""
    name, at, surrogate = attack.partition("@")
    return ATTACKS.get(name, name) + (f" on {surrogate}" if at else "")


def verdict_label(word: object) -> str:
    """A verdict with its sign, e.g. "▲ amber"; nothing, or none that is known, is "– not audited"."""
    return VERDICTS.get(str(word), VERDICTS[""])


def worst_verdict(verdicts: Iterable[object]) -> str:
    """The gravest of several verdicts; one that is missing weighs more than one that passed."""
    known = [str(word) if str(word) in VERDICTS else "" for word in verdicts]
    return min(known, key=list(VERDICTS).index, default="")


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A fraction as "75.2 %", with its interval "75.2 % (71.3–78.8)"; "–" for a number that is not there."""
    if value is None or value != value:
        return "–"
    interval = f" ({100 * low:.1f}–{100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f} %{interval}"


def mean_percent(mean: float | None, std: float | None) -> str:
    """The mean of fractions over seeds as "75.2 ± 1.3 %"; one seed has no deviation."""
    if mean is None or mean != mean or std is None or std != std:
        return percent(mean)
    return f"{100 * mean:.1f} ± {100 * std:.1f} %"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, "+2.4" or "−2.4"."""
    return f"{value:+.{digits}f}".replace("-", "−")

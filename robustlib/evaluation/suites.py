"""The attacks that every model meets."""

from dataclasses import replace

from robustlib.attacks import FGSM, PGD, PGDEOT, Attack, AutoAttack, Square
from robustlib.evaluation.views import is_search
from robustlib.threat import Threat

EOT = 8  # gradient samples of the single attacks against a stochastic model


def standard_attacks(
    threat: Threat, stochastic: bool = False, *, steps: int = 200, samples: int = 20
) -> dict[str, Attack]:
    """The common protocol, the weakest attack first: gradient attacks with steps of eps / 4, then AutoAttack.

    FGSM, PGD-20, PGD-50 with 10 restarts and 50 steps on the C&W margin let an example leave at its first success, which is
    never weaker than judging the last iterate. A stochastic model meets them with averaged gradients, PGD+EOT instead of
    the restarts, Square on the mean of several draws, and AutoAttack in both its versions.

    Args:
        threat: the allowed perturbations.
        stochastic: of the model: whether it answers the same image differently each time.
        steps, samples: of PGD+EOT; 200 x 20 is its full strength (Lee and Kim 2023).
    """
    if stochastic:
        pgd = PGD(threat, eot=EOT)
        return {
            "fgsm": FGSM(threat, eot=EOT),
            "pgd20": replace(pgd, steps=20),
            "cw50": replace(pgd, steps=50, objective="margin"),
            "pgd_eot": PGDEOT(threat, steps, samples),
            "square": Square(threat, votes=EOT),
            "aa_standard": AutoAttack(threat),
            "autoattack": AutoAttack(threat, version="rand"),
        }
    pgd = PGD(threat, early_stop=True)
    return {
        "fgsm": FGSM(threat),
        "pgd20": replace(pgd, steps=20),
        "pgd50x10": replace(pgd, steps=50, restarts=10),
        "cw50": replace(pgd, steps=50, objective="margin"),
        "autoattack": AutoAttack(threat),
    }


def adaptive_attacks(threat: Threat) -> dict[str, Attack]:
    """What the surrogates of a deterministic model meet: the searches of `standard_attacks`, then what is costly.

    In place of PGD-50 with 10 restarts: PGD-100 with 5, on the cross-entropy (of a joint loss: on that loss itself, as Zhou et
    al. 2023 attack in training) and on the margin. AutoAttack comes last. `evaluate` says which view meets which.
    """
    searches = {name: attack for name, attack in standard_attacks(threat).items() if is_search(attack)}
    pgd = PGD(threat, steps=100, restarts=5, early_stop=True)
    costly: dict[str, Attack] = {
        "pgd100x5": pgd,
        "cw100x5": replace(pgd, objective="margin"),
        "autoattack": AutoAttack(threat),
    }
    return {**searches, **costly}

"""The attacks that every model meets."""

from dataclasses import replace
from typing import Any

from robustlib.attacks import FGSM, PGD, PGDEOT, Attack, AutoAttack, Square
from robustlib.evaluation.budgets import Budget
from robustlib.evaluation.views import is_search
from robustlib.threat import Threat

EOT = 8  # gradient samples of the single attacks against a stochastic model
PUBLISHED = Budget()


def standard_attacks(threat: Threat, stochastic: bool = False, budget: Budget = PUBLISHED) -> dict[str, Attack]:
    """The common protocol, the weakest attack first: gradient attacks with steps of eps / 4, then AutoAttack.

    FGSM, PGD-20, PGD-50 with 10 restarts and 50 steps on the C&W margin let an example leave at its first success, which is
    never weaker than judging the last iterate. A stochastic model meets them with averaged gradients, PGD+EOT instead of
    the restarts, Square on the mean of several draws, and AutoAttack in both its versions.

    Args:
        threat: the allowed perturbations.
        stochastic: of the model: whether it answers the same image differently each time.
        budget: of the costly attacks on a stochastic model.
    """
    if stochastic:
        pgd = PGD(threat, eot=EOT)
        return {
            "fgsm": FGSM(threat, eot=EOT),
            "pgd20": replace(pgd, steps=20),
            "cw50": replace(pgd, steps=50, objective="margin"),
            "pgd_eot": PGDEOT(threat, *budget.pgd_eot),
            "square": Square(threat, budget.queries, votes=budget.votes),
            "aa_standard": AutoAttack(threat, **_short(budget)),
            "autoattack": AutoAttack(threat, version="rand", **_short(budget)),
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


def randomised_views(threat: Threat, budget: Budget = PUBLISHED) -> dict[str, Attack]:
    """What the surrogates of a stochastic model meet; `evaluate` tells from the gradient samples of an attack which.

    Random ones (BPDA, no clipping) meet PGD+EOT: the model's own gradients are exact, and these are for comparison. The
    deterministic ones, a bare classifier behind a purifier, and finished twins are sources of transfer: PGD-20, and AutoAttack's
    standard version on the former.
    """
    return {
        "pgd20": PGD(threat, steps=20),
        "pgd_eot": PGDEOT(threat, *budget.pgd_eot),
        "aa_standard": AutoAttack(threat, **_short(budget)),
    }


def _short(budget: Budget) -> dict[str, Any]:
    steps, samples = budget.autoattack
    return {"steps": steps, "eot": samples, "queries": budget.queries}

"""Attacks that no training here has seen: perturbations in another norm, and images whose pixels move."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

from robustlib.attacks import PGDEOT, Attack, AutoAttack, StAdv
from robustlib.errors import InputError
from robustlib.evaluation.budgets import Budget, section_of
from robustlib.threat import Threat


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """How strong the unseen attacks are. The defaults are those of Nie et al. (2022) on CIFAR-10.

    Raises:
        InputError: a number that is not above 0.
    """

    l2: float = 0.5  # radius, in pixel units of [0, 1]
    flow: float = 0.8  # bound of StAdv, in pixels

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"Unseen {field.name}={getattr(self, field.name)!r}: give a number above 0.")


@lru_cache
def unseen_of(preset: str | None) -> Unseen:
    """The strengths in a preset's section `unseen`; the published ones where there is none.

    Raises:
        InputError: the section has another key, or a value out of range.
    """
    return Unseen(**section_of(preset, "unseen", [field.name for field in fields(Unseen)]))


def unseen_attacks(unseen: Unseen, stochastic: bool, budget: Budget) -> dict[str, dict[str, Attack]]:
    """By kind the attacks of which the per-example minimum counts: "l2" (AutoAttack, and PGD+EOT if the model is stochastic) and
    "stadv".

    Args:
        unseen: how strong.
        stochastic: of the model: its gradients are averaged, within the budget.
        budget: for stochastic models; of others, the number of Square's queries and StAdv's steps.
    """
    threat, (steps, samples) = Threat("l2", unseen.l2), budget.autoattack
    moved = StAdv(unseen.flow, budget.stadv[0], eot=budget.stadv[1] if stochastic else 1)
    straight: Mapping[str, Attack] = {"autoattack": AutoAttack(threat, queries=budget.queries)}
    if stochastic:
        straight = {
            "pgd_eot": PGDEOT(threat, *budget.pgd_eot),
            "autoattack": AutoAttack(threat, version="rand", eot=samples, steps=steps),
        }
    return {"l2": dict(straight), "stadv": {"stadv": moved}}

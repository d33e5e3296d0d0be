"""AutoAttack: a parameter-free cascade of four attacks, each on what the ones before left standing (Croce and Hein 2020)."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from robustlib.attacks.active_set import ActiveSet, IterativeAttack
from robustlib.attacks.apgd import APGD
from robustlib.attacks.base import PRECISIONS, Attack, Precision
from robustlib.attacks.fab import FAB
from robustlib.attacks.square import Square
from robustlib.errors import InputError, check_choices, check_counts
from robustlib.threat import Threat


@dataclass(frozen=True)
class AutoAttack(IterativeAttack):
    """Standard: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square. Rand, for stochastic models: APGD on
    cross-entropy and on DLR, with gradients averaged over `eot` draws.

    Any number of classes: targets are the min(9, K - 1) likeliest wrong classes, and below 4 classes, where the (targeted) DLR
    loss does not exist, the margin takes its place.

    Args:
        threat: the allowed perturbations.
        version: "standard", "rand", or "custom" for the given `attacks`.
        attacks: (name, attack) in order; custom only.
        eot: gradient samples of the rand version, >= 1.
        steps: of APGD and FAB in either version, >= 1; with fewer than 100 it is not the published AutoAttack.
        queries: of the standard version's Square, >= 1; 5000 likewise.
        precision: "bf16-mixed" searches in bf16; what it calls a success is verified in float32.
    """

    threat: Threat
    version: Literal["standard", "rand", "custom"] = "standard"
    attacks: tuple[tuple[str, Attack], ...] = ()
    eot: int = 20
    steps: int = 100
    queries: int = 5000
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        check_counts(self, "eot", "steps", "queries")
        check_choices(self, version=("standard", "rand", "custom"), precision=PRECISIONS)
        if (self.version == "custom") != bool(self.attacks):
            raise InputError(
                "Give `attacks` to a custom AutoAttack, as ((name, attack), ...), and to no other version."
            )
        names = [name for name, _ in self.attacks]
        for name, attack in self.attacks:
            if not name or name in ("clean", "worst") or "@" in name or names.count(name) > 1:
                raise InputError(f"AutoAttack has a component {name!r}: give each a name of its own, without @.")
            if getattr(attack, "threat", self.threat) != self.threat:
                raise InputError(f"AutoAttack's {name} attacks within another threat than {self.threat}: {attack!r}.")

    def components(self, classes: int) -> dict[str, Attack]:
        """The attacks in their order, by name, for a model of that many classes."""
        if self.version == "custom":
            return dict(self.attacks)
        dlr: Literal["dlr", "margin"] = "dlr" if classes >= (3 if self.version == "rand" else 4) else "margin"
        apgd = APGD(self.threat, self.steps, precision=self.precision)
        if self.version == "rand":
            first, second = (replace(apgd, objective=objective, eot=self.eot) for objective in ("ce", dlr))
            return {"apgd-ce": first, f"apgd-{dlr}": second}
        return {
            "apgd-ce": apgd,
            "apgd-t": replace(apgd, objective=dlr, targets=9),
            "fab-t": FAB(self.threat, self.steps, precision=self.precision),
            "square": Square(self.threat, self.queries, precision=self.precision),
        }

    def _run(self, active_set: ActiveSet, model: nn.Module) -> None:
        attacks = list(self.components(active_set.oracle.classes).values())
        for number in active_set.rounds(len(attacks)):
            x, y = active_set.batch.x, active_set.batch.y
            x_adv = attacks[number](model, x, y, rng=active_set.rng(number))
            active_set.update(self.threat.project(x_adv, x))  # a custom component may not know the ball

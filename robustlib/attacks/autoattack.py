"""AutoAttack: a parameter-free cascade of four attacks, each on what the ones before left standing (Croce and Hein 2020)."""

from dataclasses import dataclass, replace
from typing import Literal

from robustlib.attacks.active_set import ActiveSet, IterativeAttack
from robustlib.attacks.apgd import APGD
from robustlib.attacks.base import Attack, Precision
from robustlib.attacks.fab import FAB
from robustlib.attacks.inputs import attacked_images, check_attack
from robustlib.attacks.square import Square
from robustlib.errors import Count, InputError
from robustlib.threat import Threat


@dataclass(frozen=True)
class AutoAttack(IterativeAttack):
    """Standard: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square. Rand, for stochastic models: APGD on
    cross-entropy and on DLR, with gradients averaged over `eot` draws.

    Targets are the min(9, K - 1) likeliest wrong classes; below 4, where there is no (targeted) DLR, the margin replaces it.
    """

    threat: Threat
    version: Literal["standard", "rand", "custom"] = "standard"
    attacks: tuple[tuple[str, Attack], ...] = ()  # (name, attack) in order, of the custom version
    eot: Count = 20  # gradient samples of the rand version
    steps: Count = 100  # of APGD and FAB; with fewer it is not the published AutoAttack
    queries: Count = 5000  # of Square; likewise
    precision: Precision = "32-true"  # "bf16-mixed" searches in bf16; what it calls a success is verified in float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.version == "custom") != bool(self.attacks):
            raise InputError("Give `attacks` to a custom AutoAttack, ((name, attack), ...), and to no other version.")
        names = [name for name, _ in self.attacks]
        for name, attack in self.attacks:
            check_attack(name, attack)
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
            return {f"apgd-{name}": replace(apgd, objective=name, eot=self.eot) for name in ("ce", dlr)}
        return {
            "apgd-ce": apgd,
            "apgd-t": replace(apgd, objective=dlr, targets=9),
            "fab-t": FAB(self.threat, self.steps, precision=self.precision),
            "square": Square(self.threat, self.queries, precision=self.precision),
        }

    def _run(self, active_set: ActiveSet) -> None:
        attacks = list(self.components(active_set.oracle.classes).items())
        for number in active_set.rounds(len(attacks)):
            x, y = active_set.batch.x, active_set.batch.y
            (name, attack), rng = attacks[number], active_set.rng(number)
            x_adv = attacked_images(name, attack(active_set.oracle.source, x.clone(), y.clone(), rng=rng), x)
            active_set.update(self.threat.project(x_adv, x))  # a custom component may not know the ball

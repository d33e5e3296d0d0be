"""AutoAttack: a parameter-free cascade of four attacks, each on what the ones before left standing (Croce and Hein 2020)."""

from dataclasses import dataclass, replace
from typing import Literal

from robustlib.attacks.active_set import ActiveSet, IterativeAttack, check_deterministic
from robustlib.attacks.apgd import APGD, linear_distances, ranked_classes
from robustlib.attacks.base import Attack, Precision
from robustlib.attacks.fab import FAB
from robustlib.attacks.inputs import check_attack, images_like
from robustlib.attacks.square import Square
from robustlib.errors import Count, InputError
from robustlib.threat import Threat

# The near version attacks images that would have one of the LIKELY classes within REACH radii if the model were linear, and by
# the parts in CLOSE and those behind them only while no more than that share of the clean margin is left.
LIKELY, REACH = 9, 2.0
CLOSE = {"apgd-pma": 0.5, "apgd-dlr-t": 0.1}


@dataclass(frozen=True)
class AutoAttack(IterativeAttack):
    """Standard: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square. Rand, for stochastic models: APGD on
    cross-entropy and on DLR, with gradients averaged over `eot` draws. Fast: a short APGD on the probability margin, then (near)
    longer ones, one towards all targets and Square, each on images whose verdict it may still change; it calls the others robust.
    It is for deterministic models that hide no gradients, and no published protocol: headlines are those of standard.

    Targets are the min(9, K - 1) likeliest wrong classes; below 4, where there is no (targeted) DLR, the margin replaces it.
    """

    threat: Threat
    version: Literal["standard", "rand", "fast", "near", "custom"] = "standard"
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
        pma = replace(apgd, objective="probability_margin")
        square = Square(self.threat, self.queries, precision=self.precision)
        if self.version == "fast":
            return {"apgd-pma": replace(pma, steps=max(1, 3 * self.steps // 10)), "near": replace(self, version="near")}
        if self.version == "near":
            malt = replace(pma, targets=3, ranking="malt")
            last = {"apgd-dlr-t": replace(malt, objective=dlr, targets=9), "square": square}
            return {"apgd-t": malt, "apgd-pma": replace(pma, restarts=3), **last}
        if self.version == "rand":
            return {f"apgd-{name}": replace(apgd, objective=name, eot=self.eot) for name in ("ce", dlr)}
        return {
            "apgd-ce": apgd,
            "apgd-t": replace(apgd, objective=dlr, targets=9),
            "fab-t": FAB(self.threat, self.steps, precision=self.precision),
            "square": square,
        }

    def _run(self, active_set: ActiveSet) -> None:
        oracle, clean = active_set.oracle, active_set.score.clone()
        if self.version == "near" and len(active_set.active):
            check_deterministic(oracle)
            likely = ranked_classes(oracle, active_set.batch, LIKELY, 1)
            distances = linear_distances(oracle, active_set.batch, likely, 1, self.threat).amin(1)
            active_set.active = active_set.active[distances <= REACH * self.threat.eps]
        for number, (name, attack) in enumerate(self.components(oracle.classes).items()):
            if self.version == "near":
                close = active_set.score >= CLOSE.get(name, 1.0) * clean  # both are below 0
                active_set.active = active_set.active[close[active_set.active]]
            if not len(active_set.active):
                break
            x, y, rng = active_set.batch.x, active_set.batch.y, active_set.rng(number)
            found = attack(oracle.source, x.clone(), y.clone(), rng=rng)
            x_adv = images_like(x, found, f"The answer of {name!r}")
            active_set.update(self.threat.project(x_adv, x))  # a custom component may not know the ball

"""AutoAttack: a parameter-free cascade of four attacks, each on what the ones before left standing (Croce and Hein 2020)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.attacks.apgd import APGD
from robustlib.attacks.draws import Draws
from robustlib.attacks.fab import FAB
from robustlib.attacks.hunt import Hunt
from robustlib.attacks.search import PRECISIONS, Attack, Precision, check_inputs, searching
from robustlib.attacks.square import Square
from robustlib.errors import InputError, check_choices, check_counts
from robustlib.threat import Threat


@dataclass(frozen=True)
class AutoAttack:
    """Standard: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square. Rand, for stochastic models: APGD on
    cross-entropy and on DLR, with gradients averaged over `eot` draws.

    Any number of classes: targets are the min(9, K - 1) likeliest wrong classes, and below 4 classes, where the (targeted) DLR
    loss does not exist, the margin takes its place.

    Args:
        threat: the allowed perturbations.
        version: "standard", "rand", or "custom" for the given `attacks`.
        attacks: (name, attack) in order; custom only.
        eot: gradient samples of the rand version, >= 1.
        precision: "bf16-mixed" searches in bf16; what it calls a success is verified in float32.

    Raises:
        InputError: an unknown version, custom without attacks, or attacks for another version.
    """

    threat: Threat
    version: Literal["standard", "rand", "custom"] = "standard"
    attacks: tuple[tuple[str, Attack], ...] = ()
    eot: int = 20
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        check_counts(self, "eot")
        check_choices(self, version=("standard", "rand", "custom"), precision=PRECISIONS)
        if (self.version == "custom") != bool(self.attacks):
            raise InputError(
                "Give `attacks` to a custom AutoAttack, as ((name, attack), ...), and to no other version."
            )

    def components(self, classes: int) -> dict[str, Attack]:
        """The attacks in their order, by name, for a model of that many classes."""
        if self.version == "custom":
            return dict(self.attacks)
        dlr: Literal["dlr", "margin"] = "dlr" if classes >= 4 else "margin"
        if self.version == "rand":
            first, second = (
                APGD(self.threat, objective=objective, eot=self.eot, precision=self.precision)
                for objective in ("ce", dlr)
            )
            return {"apgd-ce": first, f"apgd-{dlr}": second}
        return {
            "apgd-ce": APGD(self.threat, precision=self.precision),
            "apgd-t": APGD(self.threat, objective=dlr, targets=9, precision=self.precision),
            "fab-t": FAB(self.threat, precision=self.precision),
            "square": Square(self.threat, precision=self.precision),
        }

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """x_adv (B, C, H, W) in the ball around `x` and in [0, 1]; see `Attack`."""
        check_inputs(x, y)
        if not len(x):
            return x.clone()
        draws = draws or Draws.from_generator(generator, len(x), x.device)
        with searching(model, x, (y,), self.precision) as search:
            hunt = Hunt(search, x, y, draws, self.threat.eps)
            classes = search.fast_logits(x[:1]).shape[1]
            for number, attack in enumerate(self.components(classes).values()):
                if hunt:
                    points = hunt.points
                    hunt.offer(attack(model, points.x, points.y, draws=hunt.draws(number)))
        return hunt.found

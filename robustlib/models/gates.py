"""A last stage that can be listened to, and changed, block by block."""

from collections.abc import Callable

from torch import Tensor, nn

Gate = Callable[[Tensor], Tensor]  # a map (B, C, H, W) -> what goes on in its stead, of the same shape
GATES = 2  # blocks behind which a gate stands: all of ResNet-18's last stage, the last two of a wide ResNet's (ANCRA)


class GatedStage(nn.Sequential):
    """Blocks one after another, like any Sequential; with a `gate`, each of the last two hands its map to it."""

    def forward(self, x: Tensor, gate: Gate | None = None) -> Tensor:
        """x (B, inputs, H, W) -> (B, outputs, H', W')."""
        for left, block in zip(range(len(self), 0, -1), self, strict=True):
            x = block(x)
            if gate is not None and left <= GATES:
                x = gate(x)
        return x

"""The examples under attack, and what is climbed on them."""

from dataclasses import dataclass

from torch import Tensor

from robustlib.attacks.objectives import OBJECTIVES, kl_from
from robustlib.attacks.search import Goal


@dataclass(frozen=True)
class Points:
    """Images x (B, C, H, W) with labels y (B,) and, for targeted attacks, the classes to reach (B,); indexing keeps some."""

    x: Tensor
    y: Tensor
    target: Tensor | None = None
    reference: Tensor | None = None  # logits at x, for the kl objective

    def __getitem__(self, keep: Tensor | slice) -> "Points":
        parts = (self.x, self.y, self.target, self.reference)
        return Points(*(None if part is None else part[keep] for part in parts))  # type: ignore[arg-type]

    def goal(self, name: str) -> Goal:
        """The objective of that name on these examples: logits (B, K) of some rows, and which -> (rows,)."""

        def climb(logits: Tensor, rows: slice | Tensor) -> Tensor:
            mine = self[rows]
            return (OBJECTIVES[name] or kl_from(mine.reference))(logits, mine.y, mine.target)

        return climb

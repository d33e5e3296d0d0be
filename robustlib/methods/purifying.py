"""Parts of AToP's training: the two losses that take turns, an attack's view of the whole model, and what a purifier must beat."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.data import Batch, Split
from robustlib.models import Purified, Randomness
from robustlib.training import Loss, Updates

MEDIAN_OF = 256  # training images whose median is the constant image


def purifier_steps(
    discriminator: nn.Module | None,
    target: Tensor,
    outputs: tuple[Tensor, ...],
    randomness: Randomness,
    gan_weight: float,
    parts: Mapping[str, tuple[float, Tensor]],
) -> Updates:
    """The discriminator's step on its hinge loss, then the purifier's, which is judged by the discriminator's new weights.

    L_D = E relu(1 - D(target)) / 2 + E relu(1 + D(g)) / 2, L_g = sum_k E |target - g_k| - gan_weight * E D(g) + what is added, with the
    L1 terms on images scaled to [-1, 1], as released: twice what they are on [0, 1]. Half of L_g is what is minimised, since Adam
    does not feel a common factor; "l1" in the metrics is on [0, 1]. Each of the N images of a transform counts alike.

    Args:
        discriminator: (images, masks) -> scores; None leaves its step and its verdict out.
        target: images (B, C, H, W) in [0, 1] that are to be reconstructed.
        outputs: of the purifier, each (N, B, C, H, W), with their graph; D judges the last.
        randomness: that they were made with.
        gan_weight: of the verdict.
        parts: added to the purifier's loss, name -> weight and loss.
    """
    l1 = torch.stack([(image.float() - target).abs().mean() for image in outputs]).sum()
    said = {"l1": l1, **{name: loss for name, (_, loss) in parts.items()}}
    total = l1 + sum(weight / 2 * loss for weight, loss in parts.values())
    if discriminator is not None:
        last, masks = outputs[-1].flatten(0, 1), randomness.masks.flatten(0, 1)
        real = target.expand_as(outputs[-1]).flatten(0, 1)
        verdicts = discriminator(torch.cat([real, last.detach()]), torch.cat([masks, masks])).float()
        on_real, on_made = verdicts.chunk(2)
        yield "discriminator", Loss((F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()) / 2)
        said["gan"] = -discriminator(last, masks).float().mean()
        total = total + gan_weight / 2 * said["gan"]
    yield "model", Loss(total, said)


class Pipeline(nn.Module):
    """x -> logits of a `Purified`, each pass with randomness of its own from `generator`, where the model draws from the global one."""

    def __init__(self, model: Purified) -> None:
        super().__init__()
        self.model, self.stochastic = model, model.transform.random
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.model.classify(self.model.purify(x, self.model.transform.draw(x, self.generator)))


def median_image(split: Split) -> Tensor:
    """The median of each pixel over some images of a split, (C, H, W) in [0, 1]: of all constant images the nearest in L1."""
    return split.sample(MEDIAN_OF).images.float().median(0).values / 255


@torch.no_grad()
def l1_share(model: nn.Module, batch: Batch, constant: Tensor, hidden: bool = False) -> float:
    """mean |x - purified x| over mean |x - constant|, of one draw that is the same whenever it is asked.

    With `hidden` over hidden pixels only (NaN without any): of all pixels, a purifier that paints nothing may still do well.
    """
    assert isinstance(model, Purified)
    x = batch.x
    randomness = model.transform.draw(x, torch.Generator(x.device).manual_seed(0))
    where = randomness.masks.sum(0) if hidden else 1.0
    error, worst = (((image - x).abs() * where).mean() for image in (model.purify(x, randomness), constant.to(x)))
    return float(error / worst)

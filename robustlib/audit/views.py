"""Models as the audit looks at them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEAD = "head(features(x))"  # the surrogate of a model that deploys something else than its head


def surrogates_of(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """What an adversary attacks beside the model: its declared surrogates, then HEAD where that says another thing at x.

    A head that gates or rescales by its own first guess (reverse attention) confirms itself, and its gradients lead astray;
    the plain head on the same features decides and has honest ones.
    """
    declared: dict[str, nn.Module] = getattr(model, "surrogates", dict)()
    plain = Anchored(Head(model))
    return {**declared, HEAD: plain} if _differs(model, plain, x) else dict(declared)


def sources_of(model: nn.Module) -> dict[str, nn.Module]:
    """Deterministic views that a stochastic model declares, such as the bare classifier behind a purifier: what is found on them is
    transferred, and shows masked gradients where it breaks what the model's own did not. None of a deterministic model."""
    declared: dict[str, nn.Module] = getattr(model, "surrogates", dict)() if getattr(model, "stochastic", False) else {}
    plain, _ = apart(declared)
    return {name: view for name, view in plain.items() if not getattr(view, "stochastic", False)}


def apart(views: Mapping[str, nn.Module]) -> tuple[dict[str, nn.Module], list[tuple[int, nn.Module]]]:
    """The views that every attack meets, by name, and those with a class as `target`, which targeted attacks meet, by class."""
    targets = {name: getattr(view, "target", None) for name, view in views.items()}
    plain = {name: view for name, view in views.items() if targets[name] is None}
    return plain, [(label, views[name]) for name, label in targets.items() if label is not None]


def _differs(model: nn.Module, plain: nn.Module, x: Tensor) -> bool:
    """Whether the model has a head and deploys other logits (B, K) than it gives; randomised layers draw alike for both."""
    if not all(callable(getattr(model, part, None)) for part in ("features", "head")):
        return False
    answers = []
    for asked in (model, plain):
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(0)
            try:
                answers.append(asked(x).float())
            except (RuntimeError, TypeError, ValueError):  # its head takes something else than its features
                if asked is model:
                    raise
                return False
    deployed, ours = answers
    return deployed.shape == ours.shape and not torch.allclose(deployed, ours, rtol=1e-3, atol=1e-5, equal_nan=True)


class Around(nn.Module):
    """What answers by way of a model, and is as random as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.stochastic = model, bool(getattr(model, "stochastic", False))
        self.draws_by_example = bool(getattr(model, "draws_by_example", False))


class Head(Around):
    """head(features(x)) of a model, whatever else its forward does."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.model.head(self.model.features(x))  # type: ignore[operator]


class Scaled(Around):
    """A model whose logits are multiplied by `factor`: the same predictions, other gradients of the cross-entropy."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__(model)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """factor * logits (B, K)."""
        return self.factor * self.model(x)


class Anchored(Around):
    """A model that can always be differentiated: where its output does not depend on x for autograd, the gradient is zero.

    Attacks stop with an error on a model that leaves autograd's graph (numpy, detach); here they go on and find nothing,
    as if the gradient were zero, and the checks that follow say why.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits = self.model(x)
        if x.requires_grad and torch.is_grad_enabled():
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits

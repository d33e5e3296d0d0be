"""One training step of each paper as its released code writes it, on ResNet-18 in float32 and NCHW, restated minimally.

What they share: torch.autograd.grad with respect to images on a model whose weights require gradients, in eval mode; then the
loss in train mode, backward, one SGD step. Models come from robustlib, so that both sides train the same network.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import cifar_model
from torch import Tensor, nn

STEPS, EPS = 10, 8 / 255
Work = Callable[[], object]
Objective = Callable[[Tensor], Tensor]  # images to the loss that the attack climbs


def _climb(x: Tensor, x_adv: Tensor, objective: Objective) -> Tensor:
    """Ten signed steps inside the ball, as all five release it."""
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_(True)
        gradient = torch.autograd.grad(objective(x_adv), x_adv)[0]
        x_adv = x_adv.detach() + EPS / 4 * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


def _trainer(model: nn.Module, attack: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> Work:
    """Attack in eval mode, then one step on loss(x_adv) in train mode."""
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def work() -> None:
        model.eval()
        x_adv = attack()
        model.train()
        optimiser.zero_grad()
        loss(x_adv).backward()
        optimiser.step()

    return work


def _uniform(x: Tensor) -> Tensor:
    return (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)


def _gaussian(x: Tensor) -> Tensor:
    return x + 0.001 * torch.randn_like(x)


def _kl(clean: Tensor, adversarial: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(adversarial, 1), F.softmax(clean, 1), reduction="batchmean")


def pgd_at(x: Tensor, y: Tensor) -> Work:
    """Madry et al. 2018."""
    model = cifar_model("resnet18", x.device)
    attack = lambda: _climb(x, _uniform(x), lambda z: F.cross_entropy(model(z), y))  # noqa: E731
    return _trainer(model, attack, lambda x_adv: F.cross_entropy(model(x_adv), y))


def trades(x: Tensor, y: Tensor) -> Work:
    """Zhang et al. 2019 (trades.py): the clean side of the KL is forwarded anew in every step of the attack."""
    model = cifar_model("resnet18", x.device)

    def loss(x_adv: Tensor) -> Tensor:
        logits = model(x)
        return F.cross_entropy(logits, y) + 6 * _kl(model(x), model(x_adv))

    return _trainer(model, lambda: _climb(x, _gaussian(x), lambda z: _kl(model(x), model(z))), loss)


def mart(x: Tensor, y: Tensor) -> Work:
    """Wang et al. 2020 (mart.py)."""
    model = cifar_model("resnet18", x.device)

    def loss(x_adv: Tensor) -> Tensor:
        clean, robust = model(x), model(x_adv)
        p, q = F.softmax(clean, 1), F.softmax(robust, 1)
        top = torch.argsort(q, 1)[:, -2:]
        other = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
        boosted = F.cross_entropy(robust, y) + F.nll_loss(torch.log(1.0001 - q + 1e-12), other)
        true = torch.gather(p, 1, y[:, None]).squeeze(1)
        weighted = F.kl_div(torch.log(q + 1e-12), p, reduction="none").sum(1) * (1.0000001 - true)
        return boosted + 5 * weighted.mean()

    return _trainer(model, lambda: _climb(x, _gaussian(x), lambda z: F.cross_entropy(model(z), y)), loss)


def afd(x: Tensor, y: Tensor) -> Work:
    """Zhou et al. 2025 (tl+sl.py): its three optimisers in the one-step form that equals them to first order; EMA after it."""
    model = cifar_model("resnet18", x.device, disentangled=True)
    teacher, average = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    rest = [*model.encoder.parameters(), *model.intrinsic.parameters(), *model.head.parameters()]
    main = torch.optim.SGD(rest, 0.025, momentum=0.9, weight_decay=1e-3)
    second = torch.optim.SGD(model.confused.parameters(), 0.025, momentum=0.9, weight_decay=5e-4)

    def work() -> None:
        model.eval()
        x_adv = _climb(x, _uniform(x), lambda z: F.cross_entropy(model(z), y))
        model.train()
        with torch.no_grad():
            target = teacher.latent(x)
        out = model.branches(x_adv)
        wrong = out.logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        second.zero_grad()
        (0.05 * F.cross_entropy(out.confused_logits, wrong)).backward(
            inputs=list(model.confused.parameters()), retain_graph=True
        )
        second.step()
        confused = out.confused.detach()
        main.zero_grad()
        alike, gap = (F.cosine_similarity(out.intrinsic, other).mean() for other in (confused, target))
        leak = F.cross_entropy(model.head(confused), wrong)
        (F.cross_entropy(out.logits, y) + 25 * (1 - gap) + 0.5 * alike + 0.1 * leak).backward()
        main.step()
        with torch.no_grad():
            for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(0.999 * mine + 0.001 * theirs)

    return work


def ancra(x: Tensor, y: Tensor) -> Work:
    """Zhou et al. 2023 (train_CIFAR10_ResNet.py) on TRADES; its Python loops over a batch are written as tensors here."""
    model = cifar_model("resnet18", x.device, reverse_attention=True)
    others = torch.stack([torch.nonzero(y != label)[0, 0] for label in y])  # one negative for each anchor

    def over_heads(term: Callable[..., Tensor], *seen: list[Tensor]) -> Tensor:
        final, *auxiliary = (term(*logits) for logits in zip(*seen, strict=True))
        return final + 2 * torch.stack(auxiliary).mean()

    def heads(z: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        seen = model.attend(z, labels)
        return [seen.logits, *seen.auxiliary]

    def ce(z: Tensor, gates: Tensor | None = None) -> Tensor:
        return over_heads(lambda logits: F.cross_entropy(logits, y), heads(z, gates))

    def contrast(logits: Tensor, negative: Tensor) -> Tensor:
        p, q = F.softmax(logits.detach(), 1).max(1), F.softmax(negative, 1).max(1)
        return ((p.indices == q.indices) * (p.values * q.values).sqrt()).mean()

    x_o: list[Tensor] = []

    def attack() -> Tensor:
        x_o[:] = [_climb(x[others], _gaussian(x[others]), lambda z: -ce(z))]  # towards the anchor's class
        return _climb(x, _gaussian(x), ce)

    def loss(x_adv: Tensor) -> Tensor:
        clean, robust, negative = heads(x, y), heads(x_adv, y), heads(x_o[0], y[others])
        natural = over_heads(lambda logits: F.cross_entropy(logits, y), clean)
        return natural + 6 * over_heads(_kl, clean, robust) + 3 * over_heads(contrast, clean, negative)

    return _trainer(model, attack, loss)


LOOPS: dict[str, Callable[[Tensor, Tensor], Work]] = {
    "pgd_at": pgd_at,
    "trades": trades,
    "mart": mart,
    "afd": afd,
    "ancra": ancra,
}

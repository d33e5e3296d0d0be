"""Tiny fixed runs of every method, attack and measure, and the numbers they gave when their version was set.

benchmarks/store_numerics.py stores them. Machines round differently, and where an attack takes signs, a training goes another way. So
each name has a `spread`: the largest difference between ten ways of computing them (measured on an AMD EPYC with AVX-512 bf16; float32
makes no use of AMX). Numbers may differ by MARGIN times that, at least by LEAST, as a share of their size.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustlib.attacks import APGD, FAB, PGD, AutoAttack, BatchPGD, ExampleRNG, Square, StAdv, Tangent, Threat
from robustlib.audit import audit
from robustlib.data import Dataset
from robustlib.evaluation import adversarial_distances, evaluate, summarise
from robustlib.evaluation.stochastic import draw_statistics
from robustlib.methods import METHODS, make_method
from robustlib.methods.rep_spectral import Regularised
from robustlib.models import build_model
from robustlib.representation import embedding, features, measures
from robustlib.training import fit

FILE = Path(__file__).parent / "numerics.json"
MARGIN, LEAST, SMALL = 10.0, 1e-4, 0.02  # numbers below SMALL count as that large
TINY: dict[str, Any] = {
    **{"arch": "small_cnn", "lr": 0.05, "epochs": 2, "train_examples": 96, "batch_size": 48, "attack_steps": 2},
    **{"augment": "none", "schedule": "constant", "milestones": (1,), "burn_in": 0.5, "strength": 0.1, "cadence": 1},
    **{"replay": 0.5, "repeats": 1, "pretrain_epochs": 2, "pretrain_burn_in": 0.5, "pretrain_schedule": "constant"},
    **{"pretrain_cadence": 1, "classifier_epochs": 2, "purifier_epochs": 1, "aug_epochs": 1, "head_epochs": 1},
    **{"tuning_epochs": 1, "final_steps": 2, "attack_step_size": None, "refresh_passes": 1, "head_lr": 0.01},
    "projection": (32, 16),
}
OWN: dict[str, dict[str, Any]] = {
    **{name: {"attack_steps": 1} for name in ("fgsm_rs", "n_fgsm")},
    **{name: {"arch": "mlp_512"} for name, kind in METHODS.items() if issubclass(kind, Regularised)},
    "simclr": {"weight_decay": 1e-4},  # more than its own, which a run so short does not feel
    "acl": {"lr": 0.005},  # with two BatchNorms of so few images rounding grows
    "atop": {  # it must learn
        **{"attack_steps": 1, "train_examples": 300, "purifier_epochs": 3, "repeats": 4, "sigma": 0.1, "width": 6},
        **{"grid": 4, "purifier_lr": 1e-3, "lr": 1e-3, "gan_weight": 0.2, "cls_weight": 2.0},
    },
}


def training(name: str, dataset: Dataset, **changes: Any) -> list[float]:
    """What a tiny training of a method ends as: losses of its stages and logits of some images."""
    known = set(make_method(name).hyperparameters())
    settings = {k: v for k, v in {**TINY, **OWN.get(name, {}), **changes}.items() if k in known}
    method, few = make_method(name, **settings), replace(dataset, val=dataset.val.sample(20))
    with tempfile.TemporaryDirectory() as root:
        run = fit(method, few, root=root, device="cpu", threads=torch.get_num_threads(), progress=False)
        rows = run.metrics()
        losses = rows.filter(regex="(^|/)loss$").groupby(rows["stage"], sort=False).last().to_numpy().ravel()
        torch.manual_seed(0)
        with torch.no_grad():
            logits = run.model("last")(dataset.test.images[:16].float() / 255)
    return [*losses[np.isfinite(losses)].tolist(), *_sizes(logits)]


def _sizes(values: torch.Tensor) -> list[float]:
    """Mean size, mean and spread of some numbers."""
    values = values.double().flatten()
    return [float(values.abs().mean()), float(values.mean()), float(values.std())]


class Curved(nn.Module):
    """A small smooth network in float64, where rounding decides no sign; a little unsure of everything."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(64, 24, generator=generator, dtype=torch.float64) / 4)
        self.outer = nn.Parameter(torch.randn(24, 5, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x.flatten(1) @ self.inner) @ self.outer


def attack(one: Any) -> list[float]:
    """Where an attack ends on a curved model: how far it goes, what the model says there, and, of each image, a place."""
    model, generator = Curved().eval(), torch.Generator().manual_seed(1)
    whole = isinstance(one, BatchPGD)
    x = torch.rand(8 if whole else 12, 1, 8, 8, generator=generator, dtype=torch.float64)
    if whole:
        x_adv = one(model, x, lambda net, at: net(at).logsumexp(1).mean(), generator=torch.Generator().manual_seed(2))
    else:
        x_adv = one(model, x, model(x).argmax(1), rng=ExampleRNG.for_examples(0, torch.arange(12)))
    found = [*_sizes(x_adv - x), *_sizes(model(x_adv).detach())]
    place = torch.randn(x[0].numel(), generator=generator, dtype=torch.float64)
    return found if whole else [*found, *((x_adv - x).flatten(1) @ place)[:4].tolist()]


LINF, L2 = Threat("linf", 0.06), Threat("l2", 0.5)


def small_model(dataset: Dataset) -> nn.Module:
    """A linear classifier of digits, which a few steps of full gradients fit."""
    torch.manual_seed(0)
    model = build_model("mlp_8", dataset)
    x, y = dataset.train.images[:300].float() / 255, dataset.train.labels[:300]
    optimiser = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


class Shaken(nn.Sequential):
    stochastic = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (logits := super().forward(x)) + 2 * torch.randn_like(logits)


def evaluation(dataset: Dataset) -> list[float]:
    threat = Threat("linf", 0.05)
    attacks = {"pgd": PGD(threat, 5), "autoattack": AutoAttack(threat, steps=5, queries=20)}
    table = summarise(evaluate(small_model(dataset), dataset.test.sample(60), attacks))
    return table[["accuracy", "low", "high"]].to_numpy().ravel().tolist()


def randomness(dataset: Dataset) -> list[float]:
    torch.manual_seed(0)
    model, attacks = Shaken(small_model(dataset)), {"pgd": PGD(Threat("linf", 0.03), 3, eot=2)}
    records = evaluate(model, dataset.test.sample(40), attacks)
    statistics = [float(v) for v in draw_statistics(records).values() if isinstance(v, (int, float))]
    return [*statistics, *summarise(records)["accuracy"].tolist()]


def audited(dataset: Dataset) -> list[float]:
    checks = audit(small_model(dataset), dataset.test, Threat("linf", 0.05), n=24)
    return [float(check.value) for check in checks if check.value is not None and np.isfinite(check.value)]


def distances(dataset: Dataset) -> list[float]:
    found = adversarial_distances(small_model(dataset), dataset.test.sample(20), Tangent(L2, queries=600))
    return _sizes(torch.tensor(found["distance"].dropna().to_numpy()))


def representation(dataset: Dataset) -> list[float]:
    model, split = small_model(dataset), dataset.test.sample(80)
    pair = features(model, split), features(model, split, attack=PGD(Threat("linf", 0.05), 5))
    (layer,) = pair[0].layers
    return list(measures(*pair, layer, model.head).values())


def maps(dataset: Dataset) -> list[float]:
    """UMAP is not ours; what it is given, and how a map is judged, are."""
    model = small_model(dataset)
    (table,) = features(model, dataset.test.sample(120)).layers.values()
    u = nn.functional.normalize(table, dim=1)
    positions, away = embedding.nearest(u, 6)
    plane, shares = embedding.principal_components(u, 2)
    return [float(positions.mean()), float(away.mean()), *shares.tolist(), embedding.trustworthiness(u, plane)]


def makers(dataset: Dataset) -> dict[str, Callable[[], list[float]]]:
    make: dict[str, Callable[[], list[float]]] = {f"methods/{k}": partial(training, k, dataset) for k in METHODS}
    make["methods/aff"] = partial(training, "simclr", dataset, final="aff")
    make["methods/awp"] = partial(training, "pgd_at", dataset, awp_gamma=0.01)
    attacks = {
        "pgd": PGD(LINF, 6),
        "apgd": APGD(LINF, 12, objective="dlr", targets=2),
        "fab": FAB(LINF, 8, 2),
        "square": Square(LINF, 30),
        "autoattack": AutoAttack(L2, steps=6, queries=10),
        "tangent": Tangent(L2, queries=400),
        "stadv": StAdv(steps=8),
        "ascent": BatchPGD(LINF, steps=4),
    }
    make |= {f"attacks/{name}": partial(attack, one) for name, one in attacks.items()}
    measured = {"evaluation": evaluation, "audit": audited, "distances": distances, "randomness": randomness}
    measured |= {"representation": representation, "embedding": maps}
    return make | {f"measures/{name}": partial(measure, dataset) for name, measure in measured.items()}


def stored() -> dict[str, dict[str, Any]]:
    return dict(json.loads(FILE.read_text()))


def difference(some: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference of two lists of numbers, as a share of the size of the others."""
    if len(some) != len(others):
        return float("inf")
    a, b = (np.array(numbers, dtype=float) for numbers in (some, others))
    return float((np.abs(a - b) / np.maximum(np.abs(b), SMALL)).max(initial=0.0))


def tolerance(known: dict[str, Any]) -> float:
    return max(MARGIN * known["spread"], LEAST)

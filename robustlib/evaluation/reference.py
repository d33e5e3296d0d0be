"""The authors' own AutoAttack (package pyautoattack) on the same images, as a second opinion."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks.base import frozen_eval
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.evaluate import BATCH, device_of
from robustlib.evaluation.measurements import images_of
from robustlib.evaluation.metrics import accuracy, robust_correct, valid
from robustlib.models.classifier import full_float32
from robustlib.runs import Run
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

INSTALL = "The reference suite needs the authors' package: pip install 'robustlib[reference]'."


@dataclass(frozen=True)
class Comparison:
    """Two AutoAttacks on the same images."""

    ours: dict[str, float]  # see `accuracy`
    theirs: dict[str, float]
    only_ours: list[int]  # indices of the images that only we broke
    only_theirs: list[int]
    seconds: float  # of the authors' package

    @property
    def difference(self) -> float:
        """Our accuracy less theirs, in points: negative where our attack is the stronger one."""
        return 100 * (self.ours["accuracy"] - self.theirs["accuracy"])


def compare_with_reference(
    run: Run, dataset: Dataset, *, n: int | None = None, device: str = "auto", seed: int = 0
) -> Comparison:
    """Runs the authors' AutoAttack on the best weights of an evaluated run, on the images of its evaluation (see `evaluate_run`).

    The model must be deterministic and have at least 4 classes.
    """
    split, threat, model = images_of(run, dataset, n), Threat(**run.params()["threat"]), run.model()
    records = run.records()
    ours = _our_correct(records, split) if len(records) else None
    if ours is None or ours.isna().any():
        raise InputError(f"{run.path} has no AutoAttack on all {len(split)} images: call `robustlib evaluate` first.")
    if model.stochastic or model.num_classes < 4:
        raise InputError("The authors' standard AutoAttack judges deterministic models of at least 4 classes only.")
    began = time.monotonic()
    theirs = reference_correct(model.to(resolve_device(device)), split, threat, seed=seed).numpy()
    mine = ours.to_numpy(dtype=bool)
    return Comparison(
        accuracy(int(mine.sum()), len(split)),
        accuracy(int(theirs.sum()), len(split)),
        split.indices[torch.from_numpy(theirs & ~mine)].tolist(),
        split.indices[torch.from_numpy(mine & ~theirs)].tolist(),
        time.monotonic() - began,
    )


def _our_correct(records: pd.DataFrame, split: Split) -> pd.Series:
    """Which images withstood our AutoAttack on the deployed model, in the split's order; NaN where it was not tried."""
    ours = records[(records["attack"] == "autoattack") & (records["surrogate"] == "")]
    return robust_correct(ours).groupby(ours["index"]).min().reindex(split.indices.tolist())


def reference_correct(
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    seed: int = 0,
    attacks: Sequence[str] = (),
) -> Tensor:
    """Which examples withstand the authors' standard AutoAttack: (N,) bool on the CPU, judged like ours.

    `attacks` are only these of its parts, by their names there (also "apgd-dlr"); () for all four.
    """
    try:
        from pyautoattack import AutoAttack as Authors
    except ImportError as error:
        raise InputError(INSTALL) from error
    device = device_of(model, split)
    split = split.to(device)
    x, y = split.images.float() / 255, split.labels
    norm: Any = {"linf": "Linf", "l2": "L2"}[threat.norm]
    with frozen_eval(model), full_float32(), warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        authors = Authors(model, norm=norm, eps=threat.eps, seed=seed, version="standard", device=device)
        authors.verbose, authors.attacks_to_run = False, list(attacks) or authors.attacks_to_run
        classes = int(model(x[:1]).shape[1])
        for attack in (authors.fab, authors.apgd_targeted):
            attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        x_adv, _ = authors.run_standard_evaluation(x, y, batch_size=BATCH)
        with torch.no_grad():
            logits = torch.cat([model(part) for part in x_adv.split(BATCH)])
    return ((logits.argmax(1) == y) & logits.isfinite().all(1) & valid(x_adv, x, threat)).cpu()

"""The audit of a model: fifteen questions to a robust accuracy, thirteen of which need nothing but model and images."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from robustlib.attacks.float32 import full_float32
from robustlib.attacks.search import borrowed
from robustlib.audit.check import Check
from robustlib.audit.evidence import Evidence
from robustlib.audit.hygiene import check_bookkeeping, check_randomness, modes
from robustlib.audit.landscape import check_binarised, check_gradients, check_noise, check_sanity
from robustlib.audit.records import fitting
from robustlib.audit.strength import (
    check_black_box,
    check_gap,
    check_iterations,
    check_losses,
    check_radii,
    check_restarts,
    check_steps,
)
from robustlib.audit.views import sources_of
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES, STOCHASTIC_EXAMPLES = 256, 128
QUERIES, STOCHASTIC_QUERIES = 1000, 300
DRAWS, EOT = 20, 8  # of a stochastic model: for each score, for each gradient

CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    *(check_iterations, check_radii, check_steps, check_restarts, check_losses),
    *(check_black_box, check_noise, check_gradients, check_randomness),
)


def audit(
    model: nn.Module,
    split: Split,
    threat: Threat,
    *,
    n: int | None = None,
    seed: int = 0,
    queries: int | None = None,
    noise: int = 1000,
    targets: int | None = None,
    readouts: int = 64,
    transfer: Mapping[str, nn.Module] | None = None,
    records: "pd.DataFrame | None" = None,
    progress: Callable[[str], None] | None = None,
) -> list[Check]:
    """Asks whether the robust accuracy of a model on these images can be believed.

    Every attack is made once on the same images and shared by the checks; a threshold is broken only where the 95 % bound
    of the paired effect is beyond it. What `surrogates_of` names is attacked as well: the per-example minimum is judged. A
    stochastic model is judged without the surrogates that it declares (deterministic ones are sources of transfer), by its
    expected accuracy over 20 draws, with the mean gradient of 8 and Square on the mean of 8.

    Args:
        model: x -> logits, on the device where it shall be audited, in the mode in which its numbers were measured.
        split: examples it was not trained on.
        threat: the threat that its robust accuracy is given for.
        n: how many examples, a stratified choice; None = 256, 128 for stochastic models.
        seed: of every random start.
        queries: of Square; None = 1000, 300 for stochastic models.
        noise: random points of the ball tried for each example.
        targets: classes aimed at by targeted attacks; None = 9, 3 for stochastic models (at most K - 1).
        readouts: examples in the binarisation test.
        transfer: other models of the same images by name, whose adversarial examples are tried on this one.
        records: of `evaluate`, compared (check 6) and looked through (13); those of other images or eps only make 13 red.
        progress: called with the name of each piece of work before it starts.

    Returns:
        One Check for each number from 1 to 13, in order. A run has two more, see `audit_run`.

    Raises:
        InputError: no examples, eps = 0, or fewer than 2 classes.
    """
    stochastic = bool(getattr(model, "stochastic", False))
    device = _refuse(model, split, threat)
    some = split.sample(n or (STOCHASTIC_EXAMPLES if stochastic else EXAMPLES)).to(device)
    before, tell = modes(model), progress or (lambda what: None)
    settings = {"queries": queries or (STOCHASTIC_QUERIES if stochastic else QUERIES), "noise": noise}
    settings |= {"targets": targets or (3 if stochastic else 9), "seed": seed}
    settings |= {"draws": DRAWS, "eot": EOT} if stochastic else {"draws": 1, "eot": 1}
    others = sources_of(model) | {name: other.to(device).eval() for name, other in (transfer or {}).items()}
    with _alone(model, device, seed):
        evidence = Evidence(model, some, threat, transfer=others, **settings)
        checks = []
        for check in CHECKS:
            tell(check.__name__.removeprefix("check_").replace("_", " "))
            checks.append(check(evidence))
        tell("binarisation")
        checks += [check_gap(evidence, fitting(records, split, threat)), check_binarised(evidence, readouts)]
        checks += [check_sanity(evidence), check_bookkeeping(evidence, before, modes(model), records, split)]
    return sorted(checks, key=lambda check: check.number)


@contextmanager
def _alone(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Lends the model in eval mode and full float32, with PyTorch's own random numbers seeded and given back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model's outputs look like softmax")  # check 5 says so
        torch.manual_seed(seed)
        with borrowed(model), full_float32():
            yield


def _refuse(model: nn.Module, split: Split, threat: Threat) -> torch.device:
    """Where the model is; an error if there is nothing to audit."""
    if not len(split):
        raise InputError("There is no example to audit on: give a split with images.")
    if threat.eps == 0:
        raise InputError("A threat of eps=0 leaves nothing to audit: its robust accuracy is the clean accuracy.")
    return next((t.device for t in (*model.parameters(), *model.buffers())), split.images.device)

"""The audit of a model: fifteen questions to a robust accuracy, thirteen of which need nothing but model and images. The audit of an
evaluated run: checks 1 to 13 on its weights, 14 and 15 on what is stored of it, and two badges."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustlib.attacks.base import frozen_eval
from robustlib.audit import checks as model_checks
from robustlib.audit.attacks import AuditAttacks, sources_of
from robustlib.audit.verdicts import VERDICTS, Check, Part, Verdict, make_check, matching, not_applicable
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation import stochastic_protocol
from robustlib.figures.canvas import ATTACKS
from robustlib.methods import METHODS
from robustlib.models.classifier import full_float32
from robustlib.runs import Run, measured, transfer_sources, versions
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

EXAMPLES, STOCHASTIC_EXAMPLES = 256, 128
QUERIES, STOCHASTIC_QUERIES = 1000, 300
DRAWS, EOT = 20, 8  # of a stochastic model: for each score, for each gradient

OVERSTATES, MISLEADS = 3.0, 12.0  # points by which a paper's protocol may exceed the minimum: amber above, red above
OUTSIDE = 2.0  # points
SOURCES = ("standard", "pgd_at")  # methods whose adversarial examples are tried on others
FACTS = ("n", "seed", "numerics", "threat", "checkpoint", "split")  # of results.json, by which an audit knows it again

# (data set, architecture, method) -> {attack: (least, most) % published for the full protocol, eps 8/255, best checkpoint}:
# Rice et al. 2020, Pang et al. 2021 and their reproductions.
PUBLISHED: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    ("cifar10", "resnet18", "pgd_at"): {"clean": (81, 84), "pgd20": (51, 53.5), "autoattack": (47, 49)},
    ("cifar10", "resnet18", "trades"): {"clean": (80, 83), "pgd20": (51, 54), "autoattack": (48, 49.5)},
}

ON_ATTACKS: tuple[Callable[[AuditAttacks], Check], ...] = (
    *(model_checks.check_iterations, model_checks.check_radii, model_checks.check_steps, model_checks.check_restarts),
    *(model_checks.check_losses, model_checks.check_black_box, model_checks.check_noise),
    *(model_checks.check_gradients, model_checks.check_randomness),
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
        n: how many examples, a stratified choice; None = 256, 128 for stochastic models.
        queries: of Square; None = 1000, 300 for stochastic models.
        noise: random points of the ball tried for each example.
        targets: classes aimed at by targeted attacks; None = 9, 3 for stochastic models (at most K - 1).
        readouts: examples in the binarisation test.
        transfer: other models of the same images by name, whose adversarial examples are tried on this one.
        records: of `evaluate`, compared (check 6) and looked through (13); those of other images or eps only make 13 red.
        progress: called with the name of each piece of work before it starts.

    Returns:
        One Check for each number from 1 to 13, in order. A run has two more, see `audit_run`.
    """
    if not len(split):
        raise InputError("There is no example to audit on: give a split with images.")
    if threat.eps == 0:
        raise InputError("A threat of eps=0 leaves nothing to audit: its robust accuracy is the clean accuracy.")
    stochastic = bool(getattr(model, "stochastic", False))
    device = next((t.device for t in (*model.parameters(), *model.buffers())), split.images.device)
    some = split.sample(n or (STOCHASTIC_EXAMPLES if stochastic else EXAMPLES)).to(device)
    before, tell = model_checks.train_mode_layers(model), progress or (lambda what: None)
    settings = {"queries": queries or (STOCHASTIC_QUERIES if stochastic else QUERIES), "noise": noise}
    settings |= {"targets": targets or (3 if stochastic else 9), "seed": seed}
    settings |= {"draws": DRAWS, "eot": EOT} if stochastic else {"draws": 1, "eot": 1}
    others = sources_of(model) | {name: other.to(device).eval() for name, other in (transfer or {}).items()}
    with _isolated(model, device, seed):
        attacks = AuditAttacks(model, some, threat, transfer=others, **settings)
        checks = []
        for check in ON_ATTACKS:
            tell(check.__name__.removeprefix("check_").replace("_", " "))
            checks.append(check(attacks))
        tell("binarisation")
        checks.append(model_checks.check_gap(attacks, matching(records, split, threat)))
        checks += [model_checks.check_binarised(attacks, readouts), model_checks.check_sanity(attacks)]
        checks.append(model_checks.check_bookkeeping(attacks, before, model, records, split))
    return sorted(checks, key=lambda check: check.number)


@contextmanager
def _isolated(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Lends the model in eval mode and full float32, with PyTorch's own random numbers seeded and given back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model's outputs look like softmax")  # check 5 says so
        torch.manual_seed(seed)
        with frozen_eval(model), full_float32():
            yield


def audit_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The audit of a run's best weights and of its evaluation, stored in the run; a stored one that still fits is returned.

    Finished standard and PGD-AT runs of the same data set beside it serve as sources of transferred examples.

    Args:
        n: how many test images; None = as many as were evaluated, at most 256. Of a stochastic model no more than its protocol has
            for curves.
        progress: called with the name of each piece of work before it starts.

    Returns:
        The content of audit.json: numerics, n, seed, threat, seconds, results (facts of the evaluation that was judged), transfer
        (the other runs used), checks (the fields of each `Check`), badges: {"headline": {"verdict", "text"}, "protocol":
        {"verdict", "text", "overstates" (points)}}.
    """
    results, params = run.results(), run.params()
    if not results:
        raise InputError(f"{run.path} has no evaluation to audit: call `robustlib evaluate {run.path}` first.")
    run.model().check_data(dataset)
    run = Run(run.path.resolve())
    sources, threat = transfer_sources(run, SOURCES), Threat(**params["threat"])
    most = _most(run.model().stochastic, params.get("preset"), n, results["n"])
    facts: dict[str, Any] = {"numerics": versions("measures/audit"), "n": most, "seed": seed, "threat": str(threat)}
    facts |= {"results": {name: results.get(name) for name in FACTS}}
    facts |= {"transfer": [source.place for source in sources.values()]}
    measure = partial(_audit_weights, run, dataset, sources, device, n=most, seed=seed, progress=progress)
    return measured(run, "audit.json", facts, measure)


def _audit_weights(
    run: Run, dataset: Dataset, sources: Mapping[str, Run], device: str, **settings: Any
) -> dict[str, Any]:
    """What audit.json holds besides its facts."""
    started, others = time.perf_counter(), {name: source.model() for name, source in sources.items()}
    model, results, threat = run.model().to(resolve_device(device)), run.results(), Threat(**run.params()["threat"])
    checks = audit(model, dataset.test, threat, transfer=others, records=run.records(), **settings)
    checks += [check_published(run, results), check_selection(run, results)]
    badges = {"headline": headline_badge(checks), "protocol": protocol_badge(run.params()["method"], results)}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "checks": [asdict(check) for check in checks], "badges": badges}


def _most(stochastic: bool, preset: str | None, n: int | None, evaluated: int) -> int:
    """How many images an audit has."""
    asked = n or min(EXAMPLES, evaluated)
    return min(asked, STOCHASTIC_EXAMPLES, stochastic_protocol(preset).curve) if stochastic else asked


def check_published(run: Run, results: Mapping[str, Any]) -> Check:
    """14: where architecture, data and protocol are those of published results, so is the outcome."""
    name, params = "published results", run.params()
    windows = PUBLISHED.get((params["dataset"], params["arch"], params["method"]), {})
    if not windows or params.get("preset") != "cifar10-paper" or run.changed:
        why = "No published result has this architecture, data set, budget and hyper-parameters."
        return not_applicable(14, name, why)
    parts = []
    for row in results["rows"]:
        if row["attack"] in windows:
            least, most = windows[row["attack"]]
            off = max(least - 100 * row["high"], 100 * row["low"] - most)  # of the interval's nearer end
            said = f"{row['attack']} {100 * row['accuracy']:.1f} % where {least:g} to {most:g} % were published"
            parts.append(Part(off, OUTSIDE, off > OUTSIDE, said, "", "find out why before reporting", "amber"))
    why = "The evaluation has none of the published attacks."
    return make_check(14, name, *parts) if parts else not_applicable(14, name, why)


def check_selection(run: Run, results: Mapping[str, Any]) -> Check:
    """15: the epoch was chosen on validation images, or is the last, and best and last are both reported on others."""
    problems = []
    if results.get("split") != "test":
        problems.append(f"the numbers are of the {results.get('split')} images")
    if not results.get("last", {}).get("rows"):
        problems.append("the last epoch is not reported")
    if "robust_val" not in run.metrics():
        problems.append("no validation accuracy was recorded by which the epoch could have been chosen")
    fine = "No test image had a part in choosing the epoch; best and last are both reported on test images"
    said = "Not a clean choice" if problems else fine
    part = Part(len(problems), 0, bool(problems), said, "", "; ".join(problems), unit="count")
    return make_check(15, "selection", part)


def headline_badge(checks: Sequence[Check]) -> dict[str, Any]:
    """The badge of the per-example minimum over all attacks: its gravest check."""
    verdict: Verdict = max((check.verdict for check in checks), key=VERDICTS.index, default="n/a")
    speaking = [check for check in checks if check.verdict == verdict]
    if verdict in ("amber", "red"):
        text = " ".join(f"{check.number}. {check.name}: {check.meaning}" for check in speaking)
        return {"verdict": verdict, "text": text}
    unsure = " and ".join(str(check.number) for check in speaking if check.doubtful)
    doubt = f"; of check {unsure} the images are too few to tell" if unsure else ""
    return {"verdict": verdict, "text": f"{len(speaking)} checks found no sign of a weak attack{doubt}."}


def protocol_badge(method: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """The badge of the attack by which the method's paper reports: by how much it exceeds the minimum over all attacks."""
    name = METHODS[method].protocol if method in METHODS else "autoattack"
    rows = {row["attack"]: row["accuracy"] for row in results["rows"]}
    if name not in rows or "worst" not in rows:
        lacks = f"The evaluation has no {ATTACKS.get(name, name)}, the paper's protocol."
        text = lacks if name else "The paper reports no accuracy under attack that could overstate."
        return {"verdict": "n/a", "text": text, "overstates": None}
    excess = 100 * (rows[name] - rows["worst"])
    verdict = "red" if excess > MISLEADS else "amber" if excess > OVERSTATES else "pass"
    said = f"The paper's protocol ({ATTACKS.get(name, name)}) overstates by {excess:.1f} points"
    text = f"{said}." if verdict != "pass" else f"{said}: no more than {OVERSTATES:g}."
    return {"verdict": verdict, "text": text, "overstates": excess}

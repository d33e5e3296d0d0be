"""The standard evaluation of a run, stored with it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Dataset, Split
from robustlib.errors import InputError, unknown
from robustlib.evaluation.curves import robustness_curve
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.numbers import cascade
from robustlib.evaluation.protocol import TRANSFER, TWINS, Suite
from robustlib.evaluation.steps import Progress
from robustlib.evaluation.suites import EOT
from robustlib.runs import Run, code_digest, transfer_sources, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd

EPS_MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)  # of the threat's eps, for the curve
STEPS = (0, 1, 2, 5, 10, 20, 50)  # of PGD, for the curve
CURVE_EXAMPLES = 500
LAST = ("fgsm", "pgd20", "cw50")  # attacks on the last epoch's weights


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """The standard evaluation of a finished run, stored in the run; a stored one is returned, an interrupted one resumed.

    The best weights meet all `standard_attacks`, those of the last epoch only the quick ones (see LAST): enough to see
    whether the training overfitted, which is a question of PGD against PGD. Of a model with `surrogates()` these meet the
    `adaptive_attacks` (see `evaluate`), and examples found on finished runs of TWINS beside it are tried as well.

    Args:
        run: finished, of the same data set.
        dataset: whose test split is attacked.
        n: use a stratified choice of this many test images, the same for all runs; None or 0 for all.
        device: "cpu", "cuda" or "auto".
        seed: of the attacks' random draws.
        progress: called before and after each batch of each attack.

    Returns:
        The content of results.json: n, split, checkpoint, threat, seed, code, rows (one an attack, see `summarise`, with the
        protocol that made it; the last, "worst", is the headline), cascade (see `cascade`; of the deployed model), last
        (rows of the last epoch), curve (over eps) and steps_curve; of a model with surrogates also transfer (the twins by
        method). It is evaluated again when a method of TWINS has a finished run that had none.

    Raises:
        InputError: the run is not finished, or of another data set or other images or classes.
    """
    split, threat = images_of(run, dataset, n), Threat(**run.params()["threat"])
    asked: dict[str, Any] = {"n": len(split), "split": "test", "checkpoint": "best", "threat": str(threat)}
    asked |= {"seed": seed, "code": code_digest()}
    stored, where, tables, frames = run.results(), resolve_device(device), {}, []
    if stored and all(stored.get(k) == v for k, v in asked.items()) and not has_new_twins(run):
        return stored
    run.model().check_data(dataset)
    twins = transfer_sources(run, TWINS) if run.model().surrogates() else {}
    if run.model().surrogates():
        asked["transfer"] = {method: twin.place for method, twin in twins.items()}
    for which in ("best", "last"):
        model = run.model(which).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        suite = Suite.of(model, threat, twins if which == "best" else {}, () if which == "best" else LAST)
        state = run.evaluation / f"{which}-{_digest(asked, where)}"
        sources = {TRANSFER + method: twin.model().to(where) for method, twin in suite.twins.items()}
        suites: dict[str, Any] = {"attacks": suite.attacks, "adaptive": suite.adaptive, "sources": sources}
        records = evaluate(model, split, **suites, seed=seed, state=state, progress=progress)
        frames.append(records.assign(checkpoint=which))
        tables[which] = suite.table(records)
    curves = _curves(run.model().to(where), split, threat, seed)
    steps = cascade(frames[0][frames[0]["surrogate"] == ""]).to_dict("records")
    results = {**asked, "rows": tables["best"], "cascade": steps, "last": {"rows": tables["last"]}, **curves}
    if stored.get("n", 0) <= len(split) or stored.get("code") != asked["code"]:  # never replace more images by fewer
        _store(run, results, frames)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    return results


def has_new_twins(run: Run) -> bool:
    """Whether an evaluated model with surrogates would now be attacked by way of other runs than it was: more, or fitter ones."""
    stored = run.results()
    if "transfer" not in stored:
        return False
    now = {method: twin.place for method, twin in transfer_sources(run, TWINS).items()}
    return bool(now) and now != stored["transfer"]


def images_of(run: Run, dataset: Dataset, n: int | None, split: str = "test") -> Split:
    """The images on which a finished run is judged: all of the split "test" or "val", or a stratified choice of `n`.

    Raises:
        InputError: the run is not finished, or of another data set; an unknown split.
    """
    if split not in ("test", "val"):
        raise unknown("split", split, ("test", "val"))
    if not run.finished:
        raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first.")
    trained_on = run.params()["dataset"]
    if trained_on != dataset.name:
        raise InputError(f"{run.path} was trained on {trained_on!r}, not on {dataset.name!r}: load that data set.")
    chosen: Split = getattr(dataset, split)
    return chosen.sample(n or 0)


def _digest(asked: Mapping[str, Any], device: torch.device) -> str:
    """Eight characters for what is asked and where, so that an interrupted evaluation only meets its own state."""
    facts = json.dumps([asked, device.type, torch.__version__], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def _store(run: Run, results: dict[str, Any], frames: "list[pd.DataFrame]") -> None:
    """Records first: a results.json without its records would have no proof. An audit of older numbers goes with them."""
    import pandas as pd

    (run.path / "audit.json").unlink(missing_ok=True)
    run.write_frame("records.parquet", pd.concat(frames, ignore_index=True))
    write_json(run.path / "results.json", results)


def _curves(model: nn.Module, split: Split, threat: Threat, seed: int) -> dict[str, Any]:
    few, stochastic = split.sample(CURVE_EXAMPLES), bool(getattr(model, "stochastic", False))
    attack = PGD(threat, steps=20, early_stop=not stochastic, eot=EOT if stochastic else 1)
    radii = sorted({threat.scaled(multiple).eps for multiple in EPS_MULTIPLES})
    over_eps = robustness_curve(model, few, attack, eps=radii, seed=seed)
    over_steps = robustness_curve(model, few, attack, steps=STEPS, seed=seed)
    return {"curve": over_eps.to_dict("records"), "steps_curve": over_steps.to_dict("records")}

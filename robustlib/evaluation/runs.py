"""The standard evaluation of a run, stored with it.

How much of a finished run's robustness is left under attacks that it was not trained against; never part of its headline.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.cache import images_of, state_key
from robustlib.evaluation.curves import robustness_curve
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.metrics import cascade, summarise
from robustlib.evaluation.protocols import (
    EOT,
    TRANSFER,
    TRANSFER_METHODS,
    Suite,
    stochastic_protocol,
    unseen_attacks,
    unseen_of,
)
from robustlib.evaluation.schedule import Progress
from robustlib.evaluation.stochastic import measure_randomness
from robustlib.runs import Run, attack_names, merge_json, read_json, transfer_sources, versions, write_json
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
    `adaptive_attacks` (see `evaluate`), and examples found on finished runs of TRANSFER_METHODS beside it are tried as well. A stochastic
    model meets what the preset's budget for such models allows (see `StochasticProtocol`), and `measure_randomness` follows.

    Args:
        run: finished, of the same data set.
        dataset: whose test split is attacked.
        n: use a stratified choice of this many test images, the same for all runs; None or 0 for all. Of a stochastic model
            no more than its budget's.
        device: "cpu", "cuda" or "auto".
        seed: of the attacks' random draws.
        progress: called before and after each batch of each attack.

    Returns:
        The content of results.json: n, split, checkpoint, threat, seed, numerics, rows (one an attack, see `summarise`, with the
        protocol that made it; the last, "worst", is the headline), cascade (see `cascade`; of the deployed model), last
        (rows of the last epoch), curve (over eps) and steps_curve; of a model with surrogates also transfer (the twins by
        method), of a stochastic one budget. It is evaluated again when a method of TRANSFER_METHODS has a finished run that had none.

    Raises:
        InputError: the run is not finished, or of another data set or other images or classes.
    """
    split, asked = _asked(run, dataset, n, seed)
    stored, random = run.results(), "budget" in asked
    if stored and all(stored.get(k) == v for k, v in asked.items()) and not has_new_sources(run):
        results = stored
    else:
        run.model().check_data(dataset)
        results, frames = _attacked(run, split, asked, resolve_device(device), progress)
        if (
            stored.get("n", 0) <= len(split) or stored.get("numerics") != asked["numerics"]
        ):  # never replace more images by fewer
            _store(run, results, frames)
        shutil.rmtree(run.evaluation, ignore_errors=True)
    if random:
        measure_randomness(run, dataset, device=device, progress=progress)
    return results


def _asked(run: Run, dataset: Dataset, n: int | None, seed: int) -> tuple[Split, dict[str, Any]]:
    """The images, and the facts by which a stored evaluation is known again."""
    split, facts, model, budget = (
        images_of(run, dataset, n),
        {},
        run.model(),
        stochastic_protocol(run.params().get("preset")),
    )
    threat = Threat(**run.params()["threat"])
    if model.stochastic:
        split, facts = images_of(run, dataset, min(len(split), budget.images)), {"budget": budget.facts()}
    asked: dict[str, Any] = {"n": len(split), "split": "test", "checkpoint": "best"}
    suite = Suite.of(model, threat, {}, budget=budget)
    names = attack_names([*suite.attacks.values(), *suite.adaptive.values(), PGD(threat)])
    asked |= {"threat": str(threat), "seed": seed, "numerics": versions("measures/evaluation", *names)}
    return split, asked | facts


def _attacked(
    run: Run,
    split: Split,
    asked: dict[str, Any],
    where: torch.device,
    progress: Callable[[Progress], None] | None,
) -> "tuple[dict[str, Any], list[pd.DataFrame]]":
    """What results.json shall hold, and the records of best and last weights."""
    threat, tables, frames = Threat(**run.params()["threat"]), {}, []
    budget, seed = stochastic_protocol(run.params().get("preset")), asked["seed"]
    twins = transfer_sources(run, TRANSFER_METHODS) if run.model().surrogates() else {}
    if run.model().surrogates():
        asked["transfer"] = {method: twin.place for method, twin in twins.items()}
    quick = LAST[:2] if "budget" in asked else LAST
    beside: Mapping[str, tuple[Any, Any]] = {"best": (twins, ()), "last": ({}, quick)}
    for which in ("best", "last"):
        model = run.model(which).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        suite = Suite.of(model, threat, *beside[which], budget)
        state = run.evaluation / f"{which}-{state_key(asked, where)}"
        sources = {TRANSFER + method: twin.model().to(where) for method, twin in suite.twins.items()}
        suites: dict[str, Any] = {"attacks": suite.attacks, "adaptive": suite.adaptive, "sources": sources}
        records = evaluate(model, split, **suites, seed=seed, state=state, progress=progress)
        frames.append(records.assign(checkpoint=which))
        tables[which] = suite.table(records)
    steps = cascade(frames[0][frames[0]["surrogate"] == ""]).to_dict("records")
    few = split.sample(budget.curve if "budget" in asked else CURVE_EXAMPLES)
    curves = _curves(run.model().to(where), few, threat, seed)
    return {**asked, "rows": tables["best"], "cascade": steps, "last": {"rows": tables["last"]}, **curves}, frames


def has_new_sources(run: Run) -> bool:
    """Whether an evaluated model with surrogates would now be attacked by way of other runs than it was: more, or fitter ones."""
    stored = run.results()
    if "transfer" not in stored:
        return False
    now = {method: twin.place for method, twin in transfer_sources(run, TRANSFER_METHODS).items()}
    return bool(now) and now != stored["transfer"]


def _store(run: Run, results: dict[str, Any], frames: "list[pd.DataFrame]") -> None:
    """Records first: a results.json without its records would have no proof. What judged older numbers goes with them."""
    import pandas as pd

    for old in ("audit.json", "randomness.json"):
        (run.path / old).unlink(missing_ok=True)
    run.write_frame("records.parquet", pd.concat(frames, ignore_index=True))
    write_json(run.path / "results.json", results)


def _curves(model: nn.Module, split: Split, threat: Threat, seed: int) -> dict[str, Any]:
    stochastic = bool(getattr(model, "stochastic", False))
    attack = PGD(threat, steps=20, early_stop=not stochastic, eot=EOT if stochastic else 1)
    radii = sorted({threat.scaled(multiple).eps for multiple in EPS_MULTIPLES})
    over_eps = robustness_curve(model, split, attack, eps=radii, seed=seed)
    over_steps = robustness_curve(model, split, attack, steps=STEPS, seed=seed)
    return {"curve": over_eps.to_dict("records"), "steps_curve": over_steps.to_dict("records")}


def measure_unseen(
    runs: Mapping[str, Run], dataset: Dataset, *, n: int = 0, seed: int = 0, device: str = "auto"
) -> "pd.DataFrame":
    """Accuracy of runs' best weights under unseen attacks, beside the known worst case, on the same test images for all.

    What is stored in a run's unseen.json is read back where images, strengths, seed, weights, versions and evaluation are the same.

    Args:
        runs: evaluated by `evaluate_run`, of this data set and one preset, whose strengths and budget are taken; by the names
            they get in the table. Any method: deterministic models meet the attacks without averaging.
        dataset: whose test images are attacked.
        n: a stratified choice of so many of them; 0 for the number of the preset's budget for stochastic models, or for that
            on which all runs were evaluated if it is smaller.
        seed: of the attacks.
        device: "cpu", "cuda" or "auto".

    Returns:
        Columns run, attack ("clean", "known": the worst case of the evaluation, "l2", "stadv"), protocol, n, correct, accuracy,
        low, high, loss (known less this, in [-1, 1]); the headline has no part in it, and they none in the headline.

    Raises:
        InputError: no runs; one that is not finished, not evaluated on these images, or of another data set or preset.
    """
    import pandas as pd

    if not runs:
        raise InputError("There are no runs to measure: train some first (`robustlib run`), or give another directory.")
    presets = {run.params().get("preset") for run in runs.values()}
    if len(presets) > 1:
        raise InputError(f"The runs are of the presets {sorted(map(str, presets))}: compare runs of one preset.")
    (preset,) = presets
    asked = {"split": "test", "seed": seed, "strengths": asdict(unseen_of(preset))}
    most, rows = (
        n or min([stochastic_protocol(preset).images, *(run.results().get("n", 1) for run in runs.values())]),
        [],
    )
    for name, run in runs.items():
        images = images_of(run, dataset, most)
        run.model().check_data(dataset)
        look = _measured(
            run, images, {**asked, "n": len(images), "images": _digest(images.images.numpy().tobytes())}, device
        )
        known = look["accuracies"]["known"]["accuracy"]
        rows += [
            {"run": name, "attack": a, **row, "loss": known - row["accuracy"]} for a, row in look["accuracies"].items()
        ]
    return pd.DataFrame(rows)


def _measured(run: Run, images: Split, asked: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What unseen.json holds of this protocol, measured if it is not there."""
    known, stochastic = _known(run, images), run.model().stochastic
    suites = unseen_attacks(
        unseen_of(run.params().get("preset")), stochastic, stochastic_protocol(run.params().get("preset"))
    )
    names = attack_names(attack for suite in suites.values() for attack in suite.values())
    asked = {**asked, "numerics": versions("measures/evaluation", *names)}
    asked = {**asked, "weights": _digest((run.path / "model.safetensors").read_bytes()), "known": known}
    key = "{strengths} on {n} of {split}, seed {seed}".format(**asked)
    look: dict[str, Any] = read_json(run.path / "unseen.json").get(key, {})
    if {name: look.get(name) for name in asked} != asked:
        found = _attack_unseen(run, images, asked["seed"], device)
        bare, clean = found.pop("bare"), found.pop("clean")
        look = {**asked, "bare": bare, "accuracies": {"clean": clean, "known": known, **found}}
        merge_json(run.path / "unseen.json", key, look)
    return look


def _known(run: Run, images: Split) -> dict[str, Any]:
    """The worst case over the attacks of the run's evaluation on these images, or what its plateau check took from it.

    Raises:
        InputError: it was not evaluated on all of them.
    """
    records, wanted = run.records(), set(images.indices.tolist())
    if not len(records) or not wanted <= set(records["index"]):
        raise InputError(
            f"{run.path} was not evaluated on all of these {len(images)} images, so what it knows cannot be compared: "
            f"call `robustlib evaluate {run.path} --examples {len(images)}` or more first."
        )
    row: Mapping[Any, Any] = summarise(records[records["index"].isin(wanted)]).to_dict("records")[-1]
    plateau, protocol = run.results().get("plateau", {}), "per-example worst case over the attacks of the evaluation"
    if plateau.get("taken") and plateau["full"]["n"] == len(images):
        row, protocol = plateau["full"], f"{plateau['full']['protocol']}, the plateau check"
    return {**_numbers(row), "protocol": protocol}


def _attack_unseen(run: Run, images: Split, seed: int, device: str) -> dict[str, dict[str, Any]]:
    """The clean accuracy, and that under each kind of unseen attack: the per-example minimum over its attacks; and "bare", the clean
    accuracy of the classifier that stands behind a purifier ({} where none does)."""
    model, preset = run.model().to(resolve_device(device)), run.params().get("preset")
    adaptive: Any = {} if model.stochastic else None  # a stochastic model's own gradients are exact
    behind = model.surrogates().get("classifier")
    bare = _numbers(summarise(evaluate(behind, images, {}, seed=seed)).to_dict("records")[0]) if behind else {}
    found: dict[str, dict[str, Any]] = {"bare": bare}
    for kind, attacks in unseen_attacks(unseen_of(preset), model.stochastic, stochastic_protocol(preset)).items():
        table = summarise(evaluate(model, images, attacks, seed=seed, adaptive=adaptive, minimum=True)).to_dict(
            "records"
        )
        found["clean"] = {**_numbers(table[0]), "protocol": "no attack"}
        found[kind] = {**_numbers(table[-1]), "protocol": " and ".join(map(repr, attacks.values()))}
    return found


def _numbers(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("n", "correct", "accuracy", "low", "high")}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

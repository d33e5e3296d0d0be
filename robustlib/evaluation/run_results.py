"""The standard evaluation of a run, stored with it, and the leaderboard of many."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from robustlib.attacks import PGD
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation.numbers import robustness_curve, summarise
from robustlib.evaluation.records import Progress, evaluate, standard_attacks
from robustlib.runs import Run, code_digest, write_json
from robustlib.threat import Threat
from robustlib.training.fit import resolve_device

if TYPE_CHECKING:
    import pandas as pd

EPS_MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)  # of the threat's eps, for the curve
STEPS = (0, 1, 2, 5, 10, 20, 50)  # of PGD, for the curve
CURVE_EXAMPLES = 500


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    n: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The standard evaluation of a finished run's best and last weights, stored in the run; a stored one is returned.

    Args:
        run: finished, of the same data set.
        dataset: whose test split is attacked.
        n: use a stratified choice of this many test images, the same for all runs; None or 0 for all.
        device: "cpu", "cuda" or "auto".
        seed: of the attacks' random starts.
        progress: called after each batch of each attack.

    Returns:
        The content of results.json: n, split, checkpoint, threat, seed, code, rows (one an attack, see `summarise`, with the
        protocol that made it), last (the same for the last epoch), curve (over eps) and steps_curve.

    Raises:
        InputError: the run is not finished, or of another data set or other images or classes.
    """
    if not run.finished:
        raise InputError(f"{run.path} is not finished ({run.status()['state']}): train it first.")
    params = run.params()
    if params["dataset"] != dataset.name:
        raise InputError(
            f"{run.path} was trained on {params['dataset']!r}, not on {dataset.name!r}: load that data set."
        )
    threat, split = Threat(**params["threat"]), dataset.test.sample(n or 0)
    asked = {"n": len(split), "split": "test", "checkpoint": "best", "threat": str(threat), "seed": seed}
    asked["code"] = code_digest()
    stored = run.results()
    if stored and all(stored.get(k) == v for k, v in asked.items()):
        return stored
    run.model().check_data(dataset)
    where, tables, frames = resolve_device(device), {}, []
    for which in ("best", "last"):
        model = run.model(which).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        records = evaluate(model, split, standard_attacks(threat), seed=seed, progress=progress)
        frames.append(records.assign(checkpoint=which))
        tables[which] = _table(records, threat)
    curves = _curves(run.model().to(where), split, threat, seed)
    results = {**asked, "rows": tables["best"], "last": {"rows": tables["last"]}, **curves}
    if stored.get("n", 0) <= len(split) or stored.get("code") != asked["code"]:  # never replace more images by fewer
        _store(run, results, frames)
    return results


def _store(run: Run, results: dict[str, Any], frames: "list[pd.DataFrame]") -> None:
    """Records first: a results.json without its records would have no proof."""
    import pandas as pd

    run.write_frame("records.parquet", pd.concat(frames, ignore_index=True))
    write_json(run.path / "results.json", results)


def _table(records: "pd.DataFrame", threat: Threat) -> list[dict[str, Any]]:
    protocol = {"clean": "no attack", "worst": "per-example worst case over the attacks above"}
    protocol |= {name: repr(attack) for name, attack in standard_attacks(threat).items()}
    table = summarise(records)
    return table.assign(protocol=table.attack.map(protocol)).to_dict("records")  # type: ignore[return-value]


def _curves(model: nn.Module, split: Split, threat: Threat, seed: int) -> dict[str, Any]:
    few, attack = split.sample(CURVE_EXAMPLES), PGD(threat, steps=20, early_stop=True)
    radii = sorted({threat.scaled(multiple).eps for multiple in EPS_MULTIPLES})
    over_eps = robustness_curve(model, few, attack, eps=radii, seed=seed)
    over_steps = robustness_curve(model, few, attack, steps=STEPS, seed=seed)
    return {"curve": over_eps.to_dict("records"), "steps_curve": over_steps.to_dict("records")}


def leaderboard(runs: Iterable[Run]) -> "pd.DataFrame":
    """One row for each evaluated run, the best worst case first.

    Returns:
        Columns preset, dataset, method, title, arch, changed (from the preset, e.g. "beta=3.0"), precision, seed, clean, fgsm, pgd20, pgd50x10, cw50, worst (fractions; clean and worst
        with _low and _high), last_worst (of the last epoch), n, minutes, epochs, path, stale, warnings, checkpoint.
    """
    import pandas as pd

    rows = [_row(run) for run in runs if run.results()]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("worst", ascending=False, ignore_index=True)


# What runs must share for a mean over their seeds to mean something.
KIND = ["dataset", "method", "title", "arch", "changed", "precision", "n"]
ATTACKS = ("clean", "fgsm", "pgd20", "pgd50x10", "cw50", "worst")
COLUMNS = (
    *("preset", "dataset", "method", "title", "arch", "changed", "precision", "seed", *ATTACKS),
    *("clean_low", "clean_high", "worst_low", "worst_high", "last_worst", "n", "minutes", "epochs", "path", "stale"),
    *("warnings", "checkpoint"),
)


def _row(run: Run) -> dict[str, Any]:
    params, results, facts, metrics = run.params(), run.results(), run.provenance(), run.metrics()
    rows = {row["attack"]: row for row in results["rows"]}
    bounds = {f"{name}_{side}": rows[name][side] for name in ("clean", "worst") for side in ("low", "high")}
    last = {row["attack"]: row["accuracy"] for row in results["last"]["rows"]}
    said = metrics["warnings"].iloc[-1] if len(metrics) else []
    return {
        **{
            name: params.get(name)
            for name in ("preset", "dataset", "method", "title", "arch", "changed", "precision", "seed")
        },
        **{name: rows[name]["accuracy"] if name in rows else float("nan") for name in ATTACKS},
        **bounds,
        "last_worst": last["worst"],
        "n": results["n"],
        "minutes": facts.get("wall_seconds", float("nan")) / 60,
        "epochs": int(metrics["epoch_total"].iloc[-1]) if len(metrics) else 0,
        "path": str(run.path),
        "stale": run.stale,
        "warnings": list(said),
        "checkpoint": results["checkpoint"],
    }


def aggregate(board: "pd.DataFrame") -> "pd.DataFrame":
    """Mean and standard deviation over seeds for each kind of run in a leaderboard (see KIND); std is NaN for one seed."""
    groups = board.groupby(KIND, sort=False)
    table = groups[[*ATTACKS, "minutes"]].agg(["mean", "std"])
    table.columns = table.columns.map("_".join)
    return table.assign(seeds=groups.seed.nunique()).reset_index()

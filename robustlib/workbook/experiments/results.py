"""What finished runs say together, as frames for `robustlib.figures` and `robustlib.workbook.tables`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from robustlib.attacks import Attack
from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation import distances_over_seeds, leaderboard, select_strength, withstood_by
from robustlib.evaluation.metrics import t_interval
from robustlib.methods import METHODS
from robustlib.methods.layer_norms import LayerNorms
from robustlib.representation import feature_jacobian_norm, measure_runs, stored_measures
from robustlib.runs import Run, changes_text
from robustlib.workbook.experiments.studies import title_of
from robustlib.workbook.tables import random_answers


def curves(runs: Sequence[Run]) -> pd.DataFrame:
    """The robustness curves over eps of evaluated runs with their method, title, seed and changes, for `robustness_over_seeds`."""
    rows = []
    for run in runs:
        facts = {name: run.params()[name] for name in ("method", "title", "seed")}
        rows += [{**point, **facts, "changed": run.changed} for point in run.results()["curve"]]
    return pd.DataFrame(rows)


def on_same_images(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What those of the runs that have records withstand of their images (see `withstood_by`), the best first; empty for fewer than two."""
    known = {name: run for name, run in runs.items() if len(run.records())}
    table = withstood_by(known) if len(known) > 1 else pd.DataFrame()
    return table[table.mean().sort_values(ascending=False, kind="stable").index]


def geometry(runs: Sequence[Run], usable: Sequence[Run], dataset: Dataset | None, attack: Attack) -> pd.DataFrame:
    """`measure_runs` of the `usable` ones of the runs, and what the others keep of it; empty where there is neither."""
    rows = [stored_measures([run for run in runs if run not in usable], attack)]
    if usable and dataset is not None:
        rows.insert(0, measure_runs(usable, dataset, attack))
    known = [part for part in rows if len(part)]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame()


def unseen(runs: Sequence[Run], usable: Sequence[Run], look_inside: bool = True) -> str:
    """Why features of some or all of the runs are not computed, in a sentence; "" if they all are."""
    if not runs:
        return "There are no runs to show."
    if not look_inside:
        return "Not shown: features are not computed here, which needs the data."
    if not usable:
        return f"Not shown: this needs weights, and none of the {len(runs)} runs has any here. `robustlib run --rerun` makes them."
    fewer = len(runs) - len(usable)
    return f"Left out: {fewer} of the {len(runs)} runs, whose weights are not here." if fewer else ""


def checkpoints(runs: Sequence[Run], geometry: pd.DataFrame | None = None) -> pd.DataFrame:
    """Networks from elsewhere whose files name different epochs, for `robustlib.figures.checkpoint_curves`; empty where there are not several.

    `geometry` is what `measure_runs` says of them.
    """
    epochs = {run.name: run.params()["about"].get("epoch") for run in runs if run.external}
    if len(set(epochs.values()) - {None}) < max(2, len(runs)):
        return pd.DataFrame(columns=["epoch", "clean", "worst"])
    gaps = {} if geometry is None else dict(zip(geometry["run"], geometry["relative_l2"], strict=True))
    rows = []
    for run in runs:
        found = {row["attack"]: row for row in run.results()["rows"]}
        ends = {f"{name}_{end}": found[name][end] for name in ("clean", "worst") for end in ("low", "high")}
        accuracies = {name: found[name]["accuracy"] for name in ("clean", "worst")}
        rows.append({"epoch": epochs[run.name], **accuracies, **ends, "relative_l2": gaps.get(run.name)})
    return pd.DataFrame(rows).sort_values("epoch", ignore_index=True)


def metrics_of(runs: Iterable[Run], stage: str = "") -> dict[str, list[pd.DataFrame]]:
    """By title of a variant, the metrics over epochs of each run, those of one stage or ("") of all; runs without it are left out."""
    metrics: dict[str, list[pd.DataFrame]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        rows = run.metrics()
        rows = rows[rows["stage"] == stage] if stage else rows
        if len(rows) or not stage:
            metrics.setdefault(title_of(run), []).append(rows)
    return metrics


def concat_stages(metrics: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, list[pd.DataFrame]]:
    """Metrics by title with their epochs counted through all stages, for `robustlib.figures.probe_curves`."""

    def concat(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.drop_duplicates("epoch_total", keep="last").drop(columns="stage")
        return rows.assign(epoch=rows["epoch_total"])

    return {title: list(map(concat, frames)) for title, frames in metrics.items()}


def with_passes(table: pd.DataFrame, runs: Iterable[Run]) -> pd.DataFrame:
    """A leaderboard or its means over seeds with a column "attack passes": `Method.attack_passes` of the trainings.

    A user's method is not asked, since a run's name of it is no code that anybody here trusts; its runs say it themselves, or "–".
    """
    passes = {}
    for run in runs:
        params, values = run.params(), dict(run.params()["hyperparameters"])
        known = METHODS.get(params["method"]) if "code" not in params else None
        count = known.from_preset(values.pop("preset") or None, **values).attack_passes if known else None
        passes[params["method"], run.changed] = params.get("attack_passes", "–") if count is None else count
    variants = zip(table["method"], table["changed"], strict=True)
    return table.assign(**{"attack passes": [passes[variant] for variant in variants]})


def sweep_table(runs: Iterable[Run], parameters: Sequence[str]) -> pd.DataFrame:
    """Accuracies of runs against the hyper-parameters in which they differ, for `robustlib.figures.sweep`.

    Columns method (its title), parameter, value, seed, clean, robust (worst case), in [0, 1]. An unchanged run is a point of each of
    the `parameters`; runs that differ from their preset in more than one are left out.
    """
    rows = []
    for run in runs:
        params, (board,) = run.params(), leaderboard([run]).to_dict("records")
        numbers = {"seed": params["seed"], "clean": board["clean"], "robust": board["worst"]}
        changed = list(run.changes())
        for name in (changed or parameters) if len(changed) <= 1 and set(changed) <= set(parameters) else ():
            value = float(params["hyperparameters"][name])
            rows.append({"method": params["title"], "parameter": name, "value": value, **numbers})
    return pd.DataFrame(rows, columns=["method", "parameter", "value", "seed", "clean", "robust"])


# AToP: purifiers under a weak and a strong attack, and what their randomness is worth
PURIFIERS = {"none": "no purifier", "gan": "GAN", "mae": "autoencoder"}  # in the order of the table
TRANSFORMS = {"none": "no transform", "rt1": "RT1", "rt2": "RT2", "rt3": "RT3"}
# "pgd20@classifier" knows the bare classifier alone; its success is judged by the whole model. The strong ones go through the whole
# model; PGD-50 with 10 restarts where nothing is random.
ATTACKS = {"clean": ("clean",), "weak": ("pgd20@classifier",), "strong": ("pgd_eot", "pgd50x10"), "worst": ("worst",)}


def purifier_grid(runs: Iterable[Run]) -> pd.DataFrame:
    """Accuracies of purifiers by transform, with and without fine-tuning, under a weak attack and a strong one; means over seeds.

    Of runs evaluated in one way; those of other methods than `atop` and those without one of the attacks are left out. Columns row
    (what people call the variant), purifier, transform, changed (all else that differs from the preset), fine_tuned, seeds, n, and
    those of ATTACKS with 95 % intervals as "weak_low", "weak_high", ...: of the images for one seed, over seeds (t) for more.
    """
    every = [row for run in runs if (row := _purifier_row(run))]
    kinds = ["row", "purifier", "transform", "changed", "fine_tuned", "n"]
    if not every:
        return pd.DataFrame(columns=[*kinds, "seeds", *ATTACKS])
    rows = []
    for key, part in pd.DataFrame(every).groupby(kinds, sort=False):
        row = dict(zip(kinds, key, strict=True)) | {"seeds": len(part)}
        for kind in ATTACKS:
            ends = part[[f"{kind}_low", f"{kind}_high"]].iloc[0]
            low, high = np.clip(t_interval(part[kind].tolist()), 0, 1) if len(part) > 1 else ends
            row |= {kind: part[kind].mean(), f"{kind}_low": float(low), f"{kind}_high": float(high)}
        rows.append(row)
    grid = pd.DataFrame(rows)
    places = {name: place for names in (PURIFIERS, TRANSFORMS) for place, name in enumerate(names.values())}
    order = grid[["purifier", "changed", "transform", "fine_tuned"]].replace(places)
    return grid.loc[order.sort_values(order.columns.tolist()).index].reset_index(drop=True)


def _purifier_row(run: Run) -> dict[str, Any]:
    """One run's accuracies; {} for another method, or where an attack is missing."""
    params, results = run.params(), run.results()
    measured = {row["attack"]: row for row in results.get("rows", [])}
    picked = {kind: measured[name] for kind, names in ATTACKS.items() for name in names if name in measured}
    if params["method"] != "atop" or len(picked) < len(ATTACKS):
        return {}
    values, columns = params["hyperparameters"], ("purifier", "transform", "fine_tune")
    other = changes_text({name: value for name, value in run.changes().items() if name not in columns})
    names = {"purifier": PURIFIERS[values["purifier"]], "transform": TRANSFORMS[values["transform"]]}
    tuned = bool(values["fine_tune"])
    title = ", ".join(filter(None, (*names.values(), "fine-tuned" if tuned else "", other)))
    row: dict[str, Any] = {"row": title, **names, "changed": other, "fine_tuned": tuned, "n": results["n"]}
    for kind, attack in picked.items():
        row |= {kind: attack["accuracy"], f"{kind}_low": attack["low"], f"{kind}_high": attack["high"]}
    return row


def attack_table(grid: pd.DataFrame) -> pd.DataFrame:
    """The weak and the strong attack of a `purifier_grid`, for `accuracy_dots`. Rows with more images than the fewest say so."""
    titles = grid["row"].where(grid["n"] == grid["n"].min(), grid["row"] + "\n(" + grid["n"].astype(str) + " images)")
    series = {"weak": "weak: gradients of the bare classifier", "strong": "strong: gradients of the whole model"}
    rows = [
        (title, name, row[kind], row[f"{kind}_low"], row[f"{kind}_high"])
        for title, row in zip(titles, grid.to_dict("records"), strict=True)
        for kind, name in series.items()
    ]
    return pd.DataFrame(rows, columns=["row", "series", "accuracy", "low", "high"])


def randomness_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """`robustlib.evaluation.measure_randomness`, clean and attacked, with the columns of `attack_table`."""
    rows = [
        (title.replace(", ", ",\n"), series, share["accuracy"], share["low"], share["high"])
        for title, pair in random_answers(measured).items()
        for series, share in zip(("clean", "attacked"), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=["row", "series", "accuracy", "low", "high"])


# The spectral family: which strength to take, and what a distance goes with
NONE = ("none", 0.0)  # the unregularised variant, of whichever method
PROTOCOL = ("attack", "n", "seed", "images")
PROJECTIONS = 16
Distances = list[tuple[Run, pd.DataFrame]]


def strength_grid(runs: Iterable[Run]) -> pd.DataFrame:
    """`select_strength` of what the runs' notebooks stored on validation images; no rows where there is no such grid.

    Of runs of one architecture; those that differ from their preset in more than that and the strength are left out, and so are
    variants that lack a seed of the unregularised one (strength 0, of whichever method).
    """

    def cell(run: Run) -> tuple[str, float]:
        strength = float(run.params()["hyperparameters"]["strength"])
        return (run.params()["title"], strength) if strength else NONE

    own = [(run, frame) for run, frame in _distances(runs, "val") if set(run.changes()) <= {"arch", "strength"}]
    cells = _by_seed(own, cell)
    none = cells.pop(NONE, {})
    whole = {cell: {seed: f[seed] for seed in none} for cell, f in cells.items() if none and set(none) <= set(f)}
    return select_strength(none, dict(sorted(whole.items()))) if whole else pd.DataFrame()


def variant_distances(runs: Iterable[Run]) -> pd.DataFrame:
    """`distances_over_seeds` of what the runs' notebooks stored on test images, by decisions (Tangent) and by gradients (FAB).

    Beside its rows for Tangent stand fab, fab_low, fab_high, on the images that all have right and no attack failed on; NaN where FAB
    did not measure all runs that Tangent did, whose rows then stand without regard to it.
    """
    runs = list(runs)
    near, white = (_by_seed(_distances(runs, "test", attack), title_of) for attack in ("Tangent", "FAB"))
    both = {title: set(frames) for title, frames in near.items()} == {title: set(f) for title, f in white.items()}
    table = distances_over_seeds({**near, **({f"FAB: {title}": white[title] for title in near} if both else {})})
    if table.empty:
        return table
    second = table[len(near) :].reset_index(drop=True) if both else pd.DataFrame(columns=table.columns)
    names = {"fab": "distance", "fab_low": "low", "fab_high": "high"}
    return table[: len(near)].assign(**{new: second[old].astype(float) for new, old in names.items()})


def spectral_family(runs: Iterable[Run], dataset: Dataset) -> pd.DataFrame:
    """What may explain the distances of runs, on the test images that all have right.

    Of runs with weights, of one architecture; those whose notebooks stored no distances of test images are left out. A row a run:
    title, seed, n (images), distance (mean, Tangent), jacobian (mean Frobenius norm of the penultimate features' Jacobian), sigma
    (sum over the encoder's layers of sigma_max^2, the readout left out).
    """
    known = _distances(runs, "test")
    if len(archs := sorted({run.params()["arch"] for run, _ in known})) > 1:
        names = " and ".join(archs)
        raise InputError(f"Distances of {names} do not go with one sum of norms: give runs of one of them.")
    images = [set(frame["index"][frame["correct"] & frame["distance"].notna()]) for _, frame in known]
    shared = sorted(set.intersection(*images)) if images else []
    rows = []
    for run, frame in known if shared else ():
        distance = float(frame["distance"][frame["index"].isin(shared)].mean())
        facts = {"title": title_of(run), "seed": run.params()["seed"], "n": len(shared), "distance": distance}
        model, generator = run.model(), torch.Generator().manual_seed(0)
        x = dataset.test.images[torch.isin(dataset.test.indices, torch.tensor(shared))].float() / 255
        jacobian = feature_jacobian_norm(model, x, projections=PROJECTIONS, generator=generator)
        squares = LayerNorms(model, dataset.image_shape, ("encoder.",)).converge(model, tolerance=1e-4, limit=1000)
        rows.append(facts | {"jacobian": float(jacobian.mean()), "sigma": float(sum(squares.values()))})
    return pd.DataFrame(rows)


def _distances(runs: Iterable[Run], split: str, attack: str = "Tangent") -> Distances:
    """The runs that an attack measured by the most common protocol, and their frames: index, correct, distance."""
    alike: dict[tuple[Any, ...], Distances] = {}
    for run in runs:
        if measured := run.distances(split, attack):
            frame = pd.DataFrame({name: measured[name] for name in ("index", "correct", "distance")})
            protocol = tuple(measured.get(name) for name in PROTOCOL)
            alike.setdefault(protocol, []).append((run, frame.astype({"distance": float})))
    return max(alike.values(), key=len, default=[])


def _by_seed(distances: Distances, key: Callable[[Run], Any]) -> dict[Any, dict[int, pd.DataFrame]]:
    """The first frame of each seed, by what `key` says of its run."""
    groups: dict[Any, dict[int, pd.DataFrame]] = {}
    for run, frame in distances:
        groups.setdefault(key(run), {}).setdefault(run.params()["seed"], frame)
    return groups

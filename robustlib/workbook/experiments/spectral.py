"""What the runs of the spectral family say together: which strength to take, and what a distance goes with."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from robustlib.data import Dataset
from robustlib.errors import InputError
from robustlib.evaluation import distances_over_seeds, select_strength
from robustlib.methods.layer_norms import LayerNorms
from robustlib.representation import feature_jacobian_norm
from robustlib.runs import Run
from robustlib.workbook.experiments.studies import Study, title_of

if TYPE_CHECKING:
    import pandas as pd


NONE = ("none", 0.0)
PROTOCOL = ("attack", "n", "seed", "images")
PROJECTIONS = 16


def strength_grid(runs: Iterable[Run]) -> "pd.DataFrame":
    """`select_strength` of what the runs' notebooks stored on validation images; no rows where there is no such grid.

    Args:
        runs: of one architecture; those that differ from their preset in more than that and the strength are left out, and so are
            variants that lack a seed of the unregularised one (strength 0, of whichever method).
    """
    import pandas as pd

    cells: dict[tuple[str, float], dict[int, pd.DataFrame]] = {}
    for run, frame in _stored(runs, "val"):
        params = run.params()
        strength = float(params["hyperparameters"]["strength"])
        if set(run.changes()) <= {"arch", "strength"}:
            cell = (params["title"], strength) if strength else NONE
            cells.setdefault(cell, {}).setdefault(params["seed"], frame)
    none = cells.pop(NONE, {})
    whole = {cell: {seed: f[seed] for seed in none} for cell, f in cells.items() if none and set(none) <= set(f)}
    return select_strength(none, dict(sorted(whole.items()))) if whole else pd.DataFrame()


def in_grid(run: Run, study: Study) -> bool:
    """Whether a run may stand among those of a grid of strengths: of its preset and methods, and changed in nothing but the strength."""
    params = run.params()
    kinds = [(study.preset, method) for method, _ in study.variants]
    return (params.get("preset"), params["method"]) in kinds and set(run.changes()) <= {"strength"}


def variant_distances(runs: Iterable[Run]) -> "pd.DataFrame":
    """`distances_over_seeds` of what the runs' notebooks stored on test images, by decisions (Tangent) and by gradients (FAB).

    Returns:
        Its rows for Tangent, and beside them fab, fab_low, fab_high, both on the images that all have right and on which neither
        attack failed; the latter NaN, and the former without regard to it, where FAB did not measure all runs that Tangent did.
    """
    import pandas as pd

    runs = list(runs)
    near, white = (_by_arm(_stored(runs, "test", attack)) for attack in ("Tangent", "FAB"))
    both = {variant: set(frames) for variant, frames in near.items()} == {
        variant: set(frames) for variant, frames in white.items()
    }
    other = {f"FAB: {variant}": white[variant] for variant in near} if both else {}
    table = distances_over_seeds({**near, **other})
    if table.empty:
        return table
    second = table[len(near) :].reset_index(drop=True) if both else pd.DataFrame(columns=table.columns)
    names = {"fab": "distance", "fab_low": "low", "fab_high": "high"}
    return table[: len(near)].assign(**{new: second[old].astype(float) for new, old in names.items()})


def _by_arm(known: "Iterable[tuple[Run, pd.DataFrame]]") -> "dict[str, dict[int, pd.DataFrame]]":
    found: dict[str, dict[int, pd.DataFrame]] = {}
    for run, frame in known:
        found.setdefault(title_of(run), {}).setdefault(run.params()["seed"], frame)
    return found


def spectral_family(runs: Iterable[Run], dataset: Dataset) -> "pd.DataFrame":
    """What may explain the distances of runs, on the test images that all have right.

    Args:
        runs: with weights, of one architecture; those whose notebooks stored no distances of test images are left out.
        dataset: of the runs.

    Returns:
        A row a run: title, seed, n (images), distance (mean, Tangent), jacobian (mean Frobenius norm of the penultimate features'
        Jacobian), sigma (sum over the encoder's layers of sigma_max^2, the readout left out).

    Raises:
        InputError: runs of several architectures, whose norms are not of the same layers.
    """
    import pandas as pd

    known = _stored(runs, "test")
    if len(archs := sorted({run.params()["arch"] for run, _ in known})) > 1:
        raise InputError(
            f"Distances of {' and '.join(archs)} do not go with one sum of norms: give runs of one of them."
        )
    images = [set(frame["index"][frame["correct"] & frame["distance"].notna()]) for _, frame in known]
    shared = sorted(set.intersection(*images)) if images else []
    rows = []
    for run, frame in known if shared else ():
        facts = {"title": title_of(run), "seed": run.params()["seed"], "n": len(shared)}
        far = float(frame["distance"][frame["index"].isin(shared)].mean())
        rows.append({**facts, "distance": far, **_slopes(run, dataset, shared)})
    return pd.DataFrame(rows)


def _slopes(run: Run, dataset: Dataset, shared: Sequence[int]) -> dict[str, float]:
    """How steep the representation of a run is: at the test images `shared` (places in the original file), and by its weights."""
    model = run.model()
    x = dataset.test.images[torch.isin(dataset.test.indices, torch.tensor(shared))].float() / 255
    generator = torch.Generator().manual_seed(0)
    jacobian = feature_jacobian_norm(model, x, projections=PROJECTIONS, generator=generator)
    squares = LayerNorms(model, dataset.image_shape, ("encoder.",)).converge(model, tolerance=1e-4, limit=1000)
    return {"jacobian": float(jacobian.mean()), "sigma": float(sum(squares.values()))}


def concat_stages(metrics: "Mapping[str, Sequence[pd.DataFrame]]") -> "dict[str, list[pd.DataFrame]]":
    """Metrics by method with their epochs counted through all stages, for `robustlib.figures.probe_curves`."""
    return {
        title: [
            frame.drop_duplicates("epoch_total", keep="last")
            .assign(epoch=lambda rows: rows["epoch_total"])
            .drop(columns="stage")
            for frame in frames
        ]
        for title, frames in metrics.items()
    }


def _stored(runs: Iterable[Run], split: str, attack: str = "Tangent") -> "list[tuple[Run, pd.DataFrame]]":
    """The runs that an attack measured by the most common protocol, and their frames."""
    import pandas as pd

    looks = [(run, look) for run in runs if (look := run.distances(split, attack))]
    kinds = Counter(_protocol(look) for _, look in looks)
    usual = kinds.most_common(1)[0][0] if kinds else ()
    names = ("index", "correct", "distance")
    return [
        (run, pd.DataFrame({name: look[name] for name in names}).astype({"distance": float}))
        for run, look in looks
        if _protocol(look) == usual
    ]


def _protocol(look: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(look.get(name) for name in PROTOCOL)

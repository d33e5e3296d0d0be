"""What a defence does to the feature space, in numbers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MEASURES = {  # of `robustlib.representation.measures` -> heading, decimals
    "relative_l2": ("relative L2 gap", 3),
    "cosine": ("cosine gap", 3),
    "alignment": ("alignment, clean to adversarial", 3),
    "margin": ("exclusion margin, clean", 3),
    "adversarial_margin": ("exclusion margin, adversarial", 3),
    "cka": ("CKA, clean with adversarial", 3),
    "effective_rank": ("effective rank, clean", 1),
    "adversarial_effective_rank": ("effective rank, adversarial", 1),
    "variability": ("within-class spread (NC1)", 3),
}


def geometry(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The feature spaces of runs side by side: mean ± standard deviation over the seeds of each method, then each run.

    Gaps, alignment and NC1 are the better the smaller, exclusion margins the better the larger; a method of one seed has no
    mean. Measures that the frame lacks are left out; "–" is a number that is not there.

    Args:
        frame: of `robustlib.representation.measure_runs`, a row a run (and layer): `method`, `seed`, the measures, and
            optionally `title`, `changed` and `layer`.
    """
    import pandas as pd

    rows = frame.assign(method=frame.get("title", frame["method"]).fillna(frame["method"]))
    names = [name for name in MEASURES if name in rows]
    who = ["method", *(name for name in ("changed", "layer") if name in rows and rows[name].nunique() > 1)]
    means: list[dict[Any, Any]] = [
        dict(zip(who, key, strict=True)) | {"seed": f"mean of {len(mine)}"} | _cells(mine, names)
        for key, mine in rows.groupby(who, sort=False, dropna=False)
        if len(mine) > 1
    ]
    single: list[dict[Any, Any]] = [
        row[who].to_dict() | {"seed": str(row["seed"])} | _cells(row.to_frame().T, names) for _, row in rows.iterrows()
    ]
    return pd.DataFrame(means + single, columns=[*who, "seed", *(MEASURES[name][0] for name in names)])


def consistency(frame: "pd.DataFrame") -> "pd.DataFrame":
    """How far copies of images move in the feature spaces of models, for people.

    Args:
        frame: of `robustlib.representation.consistency`.
    """
    same = [f"{100 * share:.1f} %" for share in frame["same answer"]]
    cells = {MEASURES["relative_l2"][0]: [f"{value:.3f}" for value in frame["relative_l2"]]}
    cells |= {"alignment with the image": [f"{value:.3f}" for value in frame["alignment"]], "same answer": same}
    return frame[["model", "copy"]].assign(**cells)


def _cells(rows: "pd.DataFrame", names: list[str]) -> dict[str, str]:
    """The measures of one run, or the means of several with their standard deviations."""
    cells = {}
    for name in names:
        heading, digits = MEASURES[name]
        values = rows[name].astype(float)
        spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        mean = f"{values.mean():.{digits}f}".replace("-", "−")
        cells[heading] = mean + spread if values.notna().all() else "–"
    return cells

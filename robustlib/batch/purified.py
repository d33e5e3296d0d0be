"""What the runs of an AToP ablation say together, and what one of them says of its randomness, as tables for figures."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from robustlib.runs import Run

if TYPE_CHECKING:
    import pandas as pd

PURIFIERS = {"none": "no purifier", "gan": "GAN", "mae": "autoencoder"}  # in the order of the table
TRANSFORMS = {"none": "no transform", "rt1": "RT1", "rt2": "RT2", "rt3": "RT3"}
OWN = ("purifier", "transform", "fine_tune")  # hyper-parameters that have a column of their own
WEAK = ("pgd20@classifier",)  # knows the bare classifier alone; its success is judged by the whole model
STRONG = ("pgd_eot", "pgd50x10")  # through the whole model; the second where nothing is random
ATTACKS = {"clean": ("clean",), "weak": WEAK, "strong": STRONG, "worst": ("worst",)}
WAYS = {"expected": "mean over fresh draws", "single": "a single draw"}


def purifier_grid(runs: Iterable[Run]) -> "pd.DataFrame":
    """Accuracies of purifiers by transform, with and without fine-tuning, under a weak attack and a strong one; means over seeds.

    Args:
        runs: of the method `atop`, evaluated alike; others are left out, and so are those without one of the attacks.

    Returns:
        Columns row (what people call the arm), purifier, transform, changed (all else that differs from the preset), fine_tuned,
        seeds, n, clean, weak (PGD-20 on the bare classifier), strong (PGD+EOT through the whole model; PGD-50 with 10 restarts
        where nothing is random), worst (the headline); with 95 % intervals as "weak_low", "weak_high", ...: of the images for one
        seed, over seeds (t) for more.
    """
    import pandas as pd

    every = [row for run in runs if (row := _row(run))]
    kinds = ["row", "purifier", "transform", "changed", "fine_tuned", "n"]
    if not every:
        return pd.DataFrame(columns=[*kinds, "seeds", *ATTACKS])
    groups = pd.DataFrame(every).groupby(kinds, sort=False)
    rows = [dict(zip(kinds, key, strict=True)) | _over_seeds(part) for key, part in groups]
    found = pd.DataFrame(rows)
    places = {name: place for names in (PURIFIERS, TRANSFORMS) for place, name in enumerate(names.values())}
    order = found[["purifier", "changed", "transform", "fine_tuned"]].replace(places)
    return found.loc[order.sort_values(order.columns.tolist()).index].reset_index(drop=True)


def _row(run: Run) -> dict[str, Any]:
    """One run's accuracies; {} for another method, or where an attack is missing."""
    facts = run.params()
    if facts["method"] != "atop":
        return {}
    found = {row["attack"]: row for row in run.results().get("rows", [])}
    picked = {kind: found[name] for kind, names in ATTACKS.items() for name in names if name in found}
    if len(picked) < len(ATTACKS):
        return {}
    values = facts["hyperparameters"]
    changes = [part for part in str(facts.get("changed") or "").split(", ") if part]
    other = ", ".join(part for part in changes if part.partition("=")[0] not in OWN)
    names = {"purifier": PURIFIERS[values["purifier"]], "transform": TRANSFORMS[values["transform"]]}
    tuned = bool(values["fine_tune"])
    called = ", ".join(filter(None, (*names.values(), "fine-tuned" if tuned else "", other)))
    row: dict[str, Any] = {"row": called, **names, "changed": other, "fine_tuned": tuned, "n": run.results()["n"]}
    for kind, attack in picked.items():
        row |= {kind: attack["accuracy"], **{f"{kind}_{end}": attack[end] for end in ("low", "high")}}
    return row


def _over_seeds(part: "pd.DataFrame") -> dict[str, Any]:
    """Means of the runs of one arm, with their intervals."""
    from scipy.stats import t

    count = len(part)
    row: dict[str, Any] = {"seeds": count}
    for kind in ATTACKS:
        row[kind], ends = part[kind].mean(), part[[f"{kind}_low", f"{kind}_high"]].iloc[0].tolist()
        if count > 1:
            half = t.ppf(0.975, count - 1) * part[kind].std() / count**0.5
            ends = [max(row[kind] - half, 0.0), min(row[kind] + half, 1.0)]
        row[f"{kind}_low"], row[f"{kind}_high"] = ends
    return row


def weak_and_strong(grid: "pd.DataFrame") -> "pd.DataFrame":
    """The weak and the strong attack of a `purifier_grid`, a row each: row, series, accuracy, low, high; for
    `robustlib.figures.accuracy_dots`. Where rows differ in their images, those with more than the fewest say so."""
    import pandas as pd

    grid = grid.assign(
        row=grid["row"].where(grid["n"] == grid["n"].min(), grid["row"] + "\n(" + grid["n"].astype(str) + " images)")
    )
    series = {"weak": "weak: gradients of the bare classifier", "strong": "strong: gradients of the whole model"}
    rows = [
        {"row": row["row"], "series": words, "accuracy": row[kind]}
        | {end: row[f"{kind}_{end}"] for end in ("low", "high")}
        for row in grid.to_dict("records")
        for kind, words in series.items()
    ]
    return pd.DataFrame(rows, columns=["row", "series", "accuracy", "low", "high"])


def draws_apart(found: Mapping[str, Any]) -> "pd.DataFrame":
    """A randomised model asked in every way, clean and attacked: row, series, accuracy, low, high; for
    `robustlib.figures.accuracy_dots`.

    Args:
        found: of `robustlib.evaluation.measure_randomness`; not empty.
    """
    import pandas as pd

    ways = {**WAYS, "worst": f"worst of {found['draws']} draws"}
    asked = {name: (found["clean"][kind], found["attacked"][kind]) for kind, name in ways.items()}
    for fixed in found["fixed"]:
        asked[f"draw fixed by seed {fixed['seed']},\nknown to the attacker"] = (fixed["clean"], fixed["attacked"])
    rows = [
        {"row": row, "series": side, **{name: numbers[name] for name in ("accuracy", "low", "high")}}
        for row, pair in asked.items()
        for side, numbers in zip(("clean", "attacked"), pair, strict=True)
    ]
    return pd.DataFrame(rows)

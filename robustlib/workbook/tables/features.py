"""What a defence does to the feature space, in numbers.

What the randomness of a model is worth, and what is left of its robustness under attacks that it was not trained against.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustlib.figures.labels import attack_name
from robustlib.workbook.tables.labels import percent

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
        frame: of `robustlib.representation.measures`.
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


NOTHING = {"accuracy": float("nan")}
WEAK = "classifier"  # the surrogate without purifier, whose gradients say little
VERDICTS = {
    "flat": "flat",
    "falling": "still falling, a stronger attack finds more",
    "unclear": "so few images cannot tell",
}  # of a plateau's last step


def randomness(results: Mapping[str, Any], found: Mapping[str, Any]) -> "pd.DataFrame":
    """A randomised model asked in every way, clean and attacked, with 95 % intervals: expected, once, worst of K, fixed, at full strength.

    The worst of K draws of clean images is the control: what random failures alone cost. The last rows are no robustness: what
    an attack leaves that knows only the bare classifier, BPDA + EOT at the strength of the preset's budget, answered by a vote as
    it is published, and PGD+EOT over gradient samples (and, after a plateau check, steps), which should no longer fall.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
        found: of `robustlib.evaluation.measure_randomness`.
    """
    import pandas as pd

    rows = {row["attack"]: row for row in results["rows"]}
    table = random_answers(found)
    if "plateau" in results:
        plateau = results["plateau"]
        told = "its number is the headline" if plateau["taken"] else "the headline stands"
        table[f"PGD+EOT at full strength: {told}"] = (NOTHING, plateau["full"])
        table["headline before it"] = (rows["clean"], plateau["worst"])
    if weak := [row for name, row in rows.items() if name.endswith(f"@{WEAK}")]:
        least = min(weak, key=lambda row: float(row["accuracy"]))
        table[f"weak: {attack_name(least['attack'])} alone"] = (NOTHING, least)
    if vote := found.get("vote"):
        steps, samples = found["budget"]["bpda"]
        strength = f"{_strength({'steps': steps, 'samples': samples})}, {vote['clean']['n']} images"
        table[f"BPDA + EOT with {strength}, answered by a vote of {vote['draws']} draws"] = (
            vote["clean"],
            vote["attacked"],
        )
    for point in [*found["eot"], *_grid(results, "samples"), *_grid(results, "steps")]:
        table[f"PGD+EOT with {_strength(point)}, {point['n']} images"] = (NOTHING, point)
    written = {name: {"clean": _cell(clean), "attacked": _cell(attacked)} for name, (clean, attacked) in table.items()}
    return pd.DataFrame.from_dict(written, orient="index").rename_axis("asked how")


def random_answers(found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By how a randomised model is asked, its clean and its attacked accuracy with their intervals."""
    kinds = {"expected": "mean over fresh draws", "single": "a single draw"}
    kinds["worst"] = f"worst of {found['draws']} draws"
    answers = {name: (found["clean"][kind], found["attacked"][kind]) for kind, name in kinds.items()}
    for fixed in found["fixed"]:
        name = f"draw fixed by seed {fixed['seed']}, known to the attacker"
        answers[name] = (fixed["clean"], fixed["attacked"])
    return answers


def plateau_summary(results: Mapping[str, Any]) -> str:
    """Whether PGD+EOT still gains by more gradient samples or steps; "" for results without a plateau check."""
    said = []
    for name in ("samples", "steps"):
        if points := _grid(results, name):
            before, last = points[-2:]
            step = results["plateau"][name]["last"]
            lost, low, high = (f"{100 * step[end]:.1f}" for end in ("lost", "low", "high"))
            less = f"{lost} points ({low} to {high}) less than with {before[name]}: {VERDICTS[step['verdict']]}"
            said.append(f"with {_strength(last)} PGD+EOT leaves {_cell(last)} of {last['n']} images, {less}")
    words = "; ".join(said).replace(" -", " −").replace("(-", "(−")
    return f"Plateau (flat: the last step surely loses less than 3 points): {words}." if said else ""


def _grid(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The points of a plateau check over "samples" or "steps"; [] without one."""
    points: list[dict[str, Any]] = results.get("plateau", {}).get(name, {}).get("points", [])
    return points


def _strength(point: Mapping[str, Any]) -> str:
    steps, samples = point["steps"], point["samples"]
    return f"{steps} step{'s' * (steps > 1)} of {samples} gradient sample{'s' * (samples > 1)}"


def unseen(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Known worst case and unseen attacks of several runs on the same images, and what each run loses from one to the other.

    Args:
        measured: of `robustlib.evaluation.measure_unseen`.
    """
    import pandas as pd

    rows = []
    for name, run in measured.groupby("run", sort=False):
        cells = {attack_name(row["attack"]): _cell(row) for row in run.to_dict("records")}
        lost = {
            f"lost to {attack_name(row['attack']).removeprefix('unseen: ')}": f"{100 * row['loss']:+.1f}".replace(
                "-", "−"
            )
            for row in run.to_dict("records")
            if row["attack"] not in ("clean", "known")
        }
        rows.append({"run": name, **cells, **lost, "images": int(run["n"].iloc[0])})
    return pd.DataFrame(rows)


def inflation(grid: "pd.DataFrame") -> "pd.DataFrame":
    """Purifiers by transform and fine-tuning: what a weak attack says of each, what a strong one, and how far these are apart.

    Args:
        grid: of `robustlib.workbook.experiments.purifier_grid`.
    """
    import pandas as pd

    rows = []
    for row in grid.to_dict("records"):
        cells = {kind: percent(row[kind], row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("weak", "strong")}
        apart = f"{100 * (row['weak'] - row['strong']):+.1f} points".replace("-", "−")
        told = {"clean": percent(row["clean"]), **cells, "weak less strong": apart, "worst case": percent(row["worst"])}
        rows.append({"model": row["row"], **told, "seeds": row["seeds"], "images": row["n"]})
    return pd.DataFrame(rows)


def cost(frame: "pd.DataFrame") -> "pd.DataFrame":
    """What the purifier costs each image, for people.

    Args:
        frame: of `robustlib.representation.forward_cost`.
    """
    sides = {f"{side}, ms an image": [f"{value:.3g}" for value in frame[side]] for side in ("classifier", "purified")}
    return frame[["pass"]].assign(**sides, ratio=[f"{value:.1f}×" for value in frame["ratio"]])


def _cell(row: Mapping[Any, Any]) -> str:
    return percent(row["accuracy"], row.get("low"), row.get("high"))

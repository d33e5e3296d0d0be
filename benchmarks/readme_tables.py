"""Writes the generated parts of README.md from committed files: a picture, what the methods are, and two short tables of results.

    python benchmarks/readme_tables.py            # rewrites README.md
    python benchmarks/readme_tables.py --check    # exit code 1 if it would change

The site has the whole tables (see site_parts.py): results of reports/reference/*/, the agreement of benchmarks/autoattack_agreement.md,
and speed from *_speed*.md there and in reports/reference/gpu/.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from readme_figure import REFERENCE, alt_text, panels, reference_runs
from side_by_side import markdown

from robustlib.methods import METHODS, load_preset, preset_names
from robustlib.runs import find_runs
from robustlib.workbook.claims import Finding
from robustlib.workbook.experiments import Study, claim_findings, claim_studies
from robustlib.workbook.tables import ATTACKS, claims, mean_percent, percent, verdict_label, worst_verdict

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ROWS = (
    "standard",
    "pgd_at",
    "trades",
    "mart",
    "n_fgsm",
    "vaft",
    "afd",
    "ancra",
    "atop",
    "claf",
    "rep_spectral",
)  # of README's results
COLUMNS = ("clean", "pgd20", "autoattack", "worst")  # and their numbers
SAID = {  # what README says of a method, and the verdicts on claims that it says it by
    "pgd_at": (
        "The bar for all others, with a far smaller feature gap than standard training.",
        {"gap-training": "supported"},
    ),
    "trades": (
        "A smaller feature gap than PGD-AT, yet no better in the worst case.",
        {"gap-trades": "supported", "robust-worst": "not supported"},
    ),
    "claf": (
        "Refreshing the head matters; PGD-AT is far more robust at equal cost.",
        {"claf-refresh": "supported", "claf-robust-pgd-at": "not supported"},
    ),
    "afd": (
        "More robust than plain fine-tuning, but its feature gap is larger, not smaller.",
        {"afd-vaft": "supported", "afd-gap": "not supported"},
    ),
    "rep_spectral": (
        "Moves adversarial images away on its paper's network, not on ours; withstands no attack of this size.",
        {"network-distance": "supported", "rep-spectral-distance": "undecided"},
    ),
    "atop": (
        "Fine-tuning the purifier helps; PGD-AT is more robust even against unseen attacks.",
        {"atop-tuning": "supported", "atop-level-l2": "not supported", "atop-level-stadv": "not supported"},
    ),
    "ancra": (
        "Most of its gain is gone once attacks know how it answers.",
        {"ancra-paper": "supported", "ancra-adaptive": "undecided"},
    ),
}
NONE_YET = "No reference results are committed yet; `make study` makes them."
CAPTION = """*Above: accuracy of the first seed of each method that the preset reports, as the attack's radius grows past that of the threat model, with 95 % intervals, on {images}. Below:
clean against worst-case accuracy, one dot a run. Data: {data}. Drawn by `python benchmarks/readme_figure.py --preset {preset}` from the
[reference results](reports/reference/{preset}/README.md).*"""


MAPS = """*Feature spaces of the first seed of each method: clean test images (circles) and the same images attacked (crosses), mapped together by UMAP. Data: {data}.
Drawn by `python benchmarks/readme_figure.py --preset {preset} --data-root DIR` from the [reference results](reports/reference/{preset}/README.md).*"""


def pictures(reference: Path = REFERENCE) -> str:
    """Those of all presets that have any, or that there are none yet."""
    drawn = [name for name in preset_names() if (reference / name / "robustness.png").is_file()]
    each = [*(features(reference, name) for name in drawn), *(picture(reference, name) for name in drawn)]
    return "\n\n".join(filter(None, each)) or NONE_YET


def features(reference: Path, preset: str) -> str:
    """The maps of feature spaces with their alt text and caption; "" where there are none."""
    from PIL import Image

    file = reference / preset / "features.png"
    if not file.is_file():
        return ""
    with Image.open(file) as image:
        alt = image.info["Description"]
    caption = MAPS.format(data=load_preset(preset)["title"], preset=preset)
    return f"![{alt}](reports/reference/{preset}/features.png)\n\n{caption}"


def picture(reference: Path = REFERENCE, preset: str = "digits") -> str:
    """Robustness curves and trade-off with alt text and caption."""
    runs = reference_runs(preset, reference)
    counts = pd.Series({run.params()["title"]: run.results()["curve"][0]["n"] for run in reversed(runs)})
    caption = CAPTION.format(data=load_preset(preset)["title"], preset=preset, images=_images(counts))
    return f"![{alt_text(panels(runs))}](reports/reference/{preset}/robustness.png)\n\n{caption}"


def methods(reference: Path = REFERENCE) -> str:
    """A row for each method of which README says something; SystemExit where the runs no longer say it."""
    verdicts = {one.claim.name: one.verdict for _, findings in _judged(reference, "digits") for one in findings}
    rows = []
    for name, (words, rests_on) in SAID.items():
        wrong = {claim: verdicts.get(claim) for claim, verdict in rests_on.items() if verdicts.get(claim) != verdict}
        if wrong:
            raise SystemExit(f"README's sentence on {name} no longer holds, since the runs say {wrong}: correct SAID.")
        method = METHODS[name]
        first, *_, venue = method.paper.split(", ")
        link = f"[{method.notebook}.ipynb](notebooks/{method.notebook}.ipynb)"
        rows.append({"method": method.title, "paper": f"{first}, {venue}", "notebook": link, "on digits": words})
    return markdown(rows)


def in_short(preset: str, reference: Path = REFERENCE) -> str:
    """The results of a preset in short: the methods of ROWS, the numbers of COLUMNS."""
    board = _board(reference, preset)
    board = board[board["method"].isin(ROWS)]
    if board.empty:
        return NONE_YET
    rows = [_method(board[board["method"] == name], name, COLUMNS) for name in ROWS if name in set(board["method"])]
    table = markdown([{key: cell for key, cell in row.items() if key != "minutes"} for row in rows])
    return f"**{load_preset(preset)['title']}**: {_measured_on(board)}.\n\n{table}"


def family(name: str, members: Sequence[str], reference: Path = REFERENCE) -> str:
    """What the reference runs say of one method and its rivals, and of its claims: a table a preset, then one a study."""
    parts = []
    for preset in preset_names():
        board = _board(reference, preset)
        present = [method for method in members if method in set(board["method"])]
        if not present or name not in (*present, "baselines"):
            continue
        rows = [_method(board[board["method"] == method], method, COLUMNS) for method in present]
        own = [method for method in members if name == "baselines" or METHODS[method].notebook == name]
        parts.append(f"**{load_preset(preset)['title']}**\n\n{markdown(rows)}{_claims(reference, preset, own)}")
    return "\n".join(parts) or NONE_YET


def results(reference: Path = REFERENCE) -> str:
    """For each preset with reference results a table of methods, over seeds."""
    presets = [name for name in preset_names() if (reference / name / "leaderboard.csv").is_file()]
    return "\n".join(_preset(reference, name) for name in presets) or NONE_YET


def _preset(reference: Path, preset: str) -> str:
    board = _board(reference, preset)
    order = [name for name in METHODS if name in set(board["method"])]
    measured = [attack for attack in ATTACKS if attack in board and board[attack].notna().any()]
    rows = [_method(board[board["method"] == name], name, measured) for name in order]
    link = f"[every run with its interval, and each attack's protocol](reports/reference/{preset}/README.md)"
    head = f"**{load_preset(preset)['title']}**: {_measured_on(board)}; {link}."
    return f"{head}\n\n{markdown(rows)}{_claims(reference, preset)}"


def _measured_on(board: pd.DataFrame) -> str:
    """On how many images, and over how many seeds."""
    images = _images(board.groupby(board["method"].map(lambda name: METHODS[name].title))["n"].max())
    seeds = sorted(board.groupby("method").seed.nunique().unique())
    span = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[-1]}"
    several = f"mean ± standard deviation over {span} seeds" if seeds[-1] > 1 else "one seed, with 95 % intervals"
    return f"{images}; {several}"


def _board(reference: Path, preset: str) -> pd.DataFrame:
    """The leaderboard of a preset without variants of ablations; without rows where there are no results."""
    file = reference / preset / "leaderboard.csv"
    if not file.is_file():
        return pd.DataFrame({"method": []})
    verdicts_too: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # "n/a" is one of them
    board = pd.read_csv(file, **verdicts_too)
    return board[board["changed"].isna()]


def _images(counts: "pd.Series[int]") -> str:
    """How many images methods were measured on: the usual number, and those of methods that have others, being random."""
    usual = counts.mode()[0]
    other = [f"{title} {n}" for title, n in counts.items() if n != usual]
    return f"{usual} test images" + (f" ({', '.join(other)})" if other else "")


def _claims(reference: Path, preset: str, methods: Sequence[str] = ()) -> str:
    """What the reference runs of a preset say of papers' claims (on some methods), a table a study; "" where none are written down."""
    tables = []
    for study, findings in _judged(reference, preset):
        asked = [one for one in findings if not methods or one.claim.variant.split()[0] in methods]
        table = claims(asked)[["claim", "effect", "verdict"]]
        measured = table[table["effect"] != "–"]
        if measured.empty:
            continue
        rows = [{str(name): cell for name, cell in row.items()} for row in measured.to_dict("records")]
        which = (
            "the claims"
            if len(rows) == len(table)
            else f"{len(rows)} of {len(table)} claims (of the others, runs are missing)"
        )
        head = f"What they say of {which} in `{study.name}`, which asks for {len(study.seeds)} seeds:"
        tables.append(f"\n{head}\n\n{markdown(rows)}")
    return "".join(tables)


@cache
def _judged(reference: Path, preset: str) -> list[tuple[Study, list[Finding]]]:
    """What the reference runs of a preset say of the claims of its studies: seconds, so once for all tables."""
    runs = find_runs(reference, preset=preset)
    return [(study, claim_findings(study, runs)) for study in claim_studies(preset)] if runs else []


def _method(runs: pd.DataFrame, name: str, measured: Sequence[str]) -> Mapping[str, object]:
    """A row of the table; models that answer at random meet other attacks than the rest."""
    cells = {ATTACKS[attack]: _cell(runs, attack) for attack in measured}
    if "headline_badge" in runs:
        cells |= {kind: verdict_label(worst_verdict(runs[f"{kind}_badge"])) for kind in ("headline", "protocol")}
    return {"method": METHODS[name].title, **cells, "minutes": f"{runs['minutes'].mean():.1f}", "seeds": len(runs)}


def _cell(runs: pd.DataFrame, attack: str) -> str:
    if runs[attack].isna().all():
        return "–"
    if len(runs) > 1:
        return mean_percent(runs[attack].mean(), runs[attack].std())
    row = runs.iloc[0]
    return percent(row[attack], row.get(f"{attack}_low"), row.get(f"{attack}_high"))


def agreement(benchmarks: Path = ROOT / "benchmarks") -> str:
    """Where the agreement with the authors' AutoAttack was measured, and what it says of the whole cascade."""
    file = benchmarks / "autoattack_agreement.md"
    if not file.is_file():
        return "Not measured yet: `python benchmarks/autoattack_agreement.py` does it."
    lines = file.read_text().splitlines()
    made = next(line for line in lines if line.startswith("`python"))
    whole = [line for line in lines if line.startswith("- ") and "ensemble" in line]
    link = "[each attack on each model](benchmarks/autoattack_agreement.md)"
    return f"{made}; {link}:\n\n" + "\n".join(whole)


def speed(folders: Sequence[Path] = (ROOT / "benchmarks", REFERENCE / "gpu")) -> str:
    """The committed reports of the speed benchmarks, each under its title, after how many of its claims hold."""
    files = [file for folder in folders for file in sorted(folder.glob("*_speed*.md"))]
    texts = [_section(*file.read_text().removeprefix("# ").split("\n", 1)) for file in files]
    return "\n\n".join(texts) or "No speed measurements are committed yet; the scripts are in `benchmarks/`."


def _section(title: str, body: str) -> str:
    held, failed = (body.count(f"\n- {verdict}: ") for verdict in ("holds", "**does not hold**"))
    return f"## {title}\n\n{held} of {held + failed} claims hold.\n\n{body.strip()}"


def regenerate(text: str, parts: Mapping[str, str]) -> str:
    """`text` with what stands between `<!-- name:begin -->` and `<!-- name:end -->` replaced, for each part."""
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, middle, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not (middle and found):
            raise SystemExit(f"README.md lacks the markers {begin} and {end}: put them back.")
        text = f"{head}{begin}\n{part.strip()}\n{end}{tail}"
    return text


def parts() -> dict[str, str]:
    """All generated parts of the README, by name."""
    short = {f"results-{preset}": in_short(preset) for preset in ("cifar10-small", "digits")}
    return {"picture": features(REFERENCE, "cifar10-small"), "methods": methods(), **short}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something would change")
    options = parser.parse_args()
    old = README.read_text()
    new = regenerate(old, parts())
    if options.check:
        print(
            "README.md is up to date." if new == old else "README.md is out of date: run benchmarks/readme_tables.py."
        )
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Pages of many runs: the index, with each preset's leaderboard and what its comparison shows, and the atlas of feature spaces."""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from bs4 import Tag
from nbformat.v4 import new_code_cell, new_markdown_cell

from robustlib.attacks import Attack
from robustlib.data import Dataset
from robustlib.figures.canvas import COLOURS, encode_png
from robustlib.representation import embed_runs, run_features
from robustlib.representation.runs import check_runs
from robustlib.runs import Run, write_atomic
from robustlib.workbook.report.page import DISPLAYED, fill_template, read, to_soup
from robustlib.workbook.tables import BADGES, VERDICTS, worst_verdict

UNAUDITED = "no checks were made; robustlib audit makes them"
COMMAND = re.compile(r"(robustlib .+?)(?= makes them anew|$)")

HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
FORMS = DISPLAYED[: DISPLAYED.index("text/plain")]  # of outputs that the index shows

LIMIT = 2_900_000  # bytes of an atlas, which is to stay below 3 MB
TILES = 25  # images in a row of its sprite
FEW = 10  # classes that colours can still distinguish
SHOWN = 200  # runs of a leaderboard, and incomplete ones, on the index; all are in ALL
ALL = "leaderboard.csv"
SCALE = 9999  # its coordinates are whole numbers in [0, SCALE]

Record = dict[str, Any]  # a row of the leaderboard without its missing values


class Column(NamedTuple):
    """A column of the leaderboard: its key in the rows, and how it is shown."""

    key: str
    label: str
    kind: str = "share"  # or "number", "minutes", "text"
    help: str = ""


COLUMNS = (  # beside the method's; what matters most comes first, so that a telephone shows it
    Column("arch", "Network", "text"),
    Column("threat", "Threat", "text"),
    Column("seed", "Seed", "number"),
    Column("clean", "Clean", help="accuracy on untouched test images"),
    Column("worst", "Worst case", help="right under every attack, on the model and its surrogates"),
    Column("headline_badge", "Audit", "text", "what checks say of the worst case, and of the method's own protocol"),
    Column("fgsm", "FGSM", help="one gradient step"),
    Column("pgd20", "PGD-20", help="20 steps of projected gradient ascent"),
    Column("pgd50x10", "PGD-50×10", help="50 steps, the worst of 10 random starts"),
    Column("cw50", "CW-50", help="50 steps on the margin loss of Carlini and Wagner"),
    Column("pgd_eot", "PGD+EOT", help="steps along the mean gradient of several draws of a randomised model"),
    Column("autoattack", "AutoAttack", help="APGD, targeted APGD, targeted FAB and Square in turn"),
    Column("minutes", "Minutes", "minutes", "time of training"),
    Column("epochs", "Epochs", "number"),
)


def write_index(
    reports_dir: Path,
    rows: pd.DataFrame,
    pages: Mapping[str, str],
    *,
    compare: Sequence[tuple[str, str]] = (),
    incomplete: pd.DataFrame | None = None,
    views: Mapping[str, Path] | None = None,
    claims: pd.DataFrame | None = None,
) -> Path:
    """Writes `reports_dir`/index.html, and all of its rows as leaderboard.csv; returns the page's path.

    Of a leaderboard the page shows at most the best SHOWN.
    Rows are those of `robustlib.evaluation.leaderboard`; without any the page says which command makes runs. `pages` are addresses,
    relative to `reports_dir`, by path of a run; `compare` (title, address) of those that put runs side by side, which stand with the
    preset whose directory they are in. Runs of `robustlib.evaluation.incomplete` are listed with what they lack. `views` are the
    executed compare.ipynb by preset, whose cells tagged "index" are shown below its leaderboard. `claims` are those of
    `robustlib.workbook.tables.claims_by_preset`: where a verdict differs between presets.
    """
    boards = _leaderboards(_records(rows), pages)
    links, views, figures = list(compare), dict(views or {}), count(1)
    for board in boards:  # the first of a preset has the preset's links and views
        board["links"] = [link for link in links if link[1].startswith(f"{board['preset']}/")]
        links = [link for link in links if link not in board["links"]]
        view = views.pop(board["preset"], None)
        board["sections"] = extract_sections(view, figures) if view else []
    threats = {row["threat"] for board in boards for row in board["rows"] if row.get("threat")}
    offered = {"dataset": {board["dataset"] for board in boards}, "threat": threats}
    shown: dict[str, Any] = {"leaderboards": boards, "compare": links, "runs": len(rows), "audit": _audit_badges}
    shown["choices"] = {name: sorted(values) if len(values) > 1 else [] for name, values in offered.items()}
    lacking = [] if incomplete is None else _records(incomplete)  # of what is missing every second part is a command
    shown["lacking"], shown["all"] = len(lacking), ALL
    shown["incomplete"] = [row | {"missing": COMMAND.split(row["missing"])} for row in lacking[:SHOWN]]
    shown["claims"] = [] if claims is None else claims.to_dict("split")["data"]
    shown["presets"] = [] if claims is None else list(claims.columns)[1:-1]
    target = Path(reports_dir) / "index.html"
    addresses = [pages.get(str(path), "") for path in rows.get("path", ())]
    write_atomic(target.with_name(ALL), rows.assign(page=addresses).to_csv(index=False))
    write_atomic(target, fill_template("index.html.j2", title="What holds under attack", **shown))
    return target


def _records(frame: pd.DataFrame) -> list[Record]:
    """The rows of a frame, each without its missing values."""
    rows = frame.to_dict("records")
    return [{str(k): v for k, v in row.items() if isinstance(v, list | tuple) or pd.notna(v)} for row in rows]


def _leaderboards(records: Sequence[Record], pages: Mapping[str, str]) -> list[dict[str, Any]]:
    """One leaderboard for each preset and data set, as the template shows it, in the order of their first rows.

    Networks from elsewhere, of no preset, stand in each of those of their data set.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    presets: dict[Any, list[str]] = {}  # by data set
    for record in records:
        known = presets.setdefault(record.get("dataset"), [])
        known += [record["preset"]] if record.get("preset") and record["preset"] not in known else []
    placed = [
        r | {"preset": p}
        for r in records
        for p in ([r.get("preset")] if r.get("preset") else presets[r.get("dataset")] or [""])
    ]
    for record in placed:
        preset = str(record.get("preset") or record.get("dataset") or "runs")
        title, href = str(record.get("title") or record["method"]), pages.get(str(record["path"]), "")
        row = record | {"title": title, "href": href}
        if row.get("external"):
            del row["seed"]  # nobody here knows it
        groups.setdefault((preset, str(record.get("dataset") or preset)), []).append(row)
    boards: list[dict[str, Any]] = []
    for (preset, dataset), rows in groups.items():
        alike = [key for key in ("arch", "threat") if len({row.get(key) for row in rows}) == 1]
        columns = [c for c in COLUMNS if c.key not in alike and any(c.key in row for row in rows)]
        ranked = sorted(rows, key=lambda row: -row.get("worst", -1))
        board = {"preset": preset, "dataset": dataset, "cards": _cards(rows)[:SHOWN], "columns": columns}
        boards.append(board | {"rows": ranked[:SHOWN], "every": rows})
    return boards


def _audit_badges(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """The headline's and the protocol's badge; of several runs the gravest of each."""
    badges = []
    for name in BADGES:
        verdicts = [worst_verdict([row.get(f"{name}_badge")]) for row in rows]  # one that is unknown is none
        word = worst_verdict(verdicts)
        several = f"{verdicts.count(word)} of {len(rows)} runs " if len(rows) > 1 else ""
        reason = rows[verdicts.index(word)].get(f"{name}_text") or UNAUDITED
        text = f"{several}{word or 'not audited'}: {reason}"
        kind, sign = word.replace("/", "") or "none", VERDICTS[word].split()[0]
        badges.append({"kind": kind, "text": f"{sign} {name}", "title": text, "rank": list(VERDICTS).index(word)})
    silent = all(badge["kind"] == "none" for badge in badges)
    return [badges[0] | {"text": VERDICTS[""], "title": UNAUDITED}] if silent else badges


def _cards(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """The headline of each method: means over its runs in percent, best worst case first."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        if "worst" in row and "clean" in row:
            key = (row["title"], *(row.get(name, "") for name in ("arch", "changed", "threat")))
            groups.setdefault(key, []).append(row)
    several = len({arch for _, arch, *_ in groups}) > 1
    cards = []
    for (title, arch, changed, threat), runs in groups.items():
        worst = [100 * row["worst"] for row in runs]
        minutes = [row["minutes"] for row in runs if "minutes" in row]
        card: dict[str, Any] = {"title": " · ".join(filter(None, [title, arch if several else "", changed]))}
        card |= {"threat": threat, "runs": runs, "seeds": len({row.get("seed") for row in runs})}
        card["external"] = all(row.get("external") for row in runs)
        card |= {"worst": f"{fmean(worst):.1f}", "spread": f"{stdev(worst):.1f}" if len(runs) > 1 else ""}
        card["clean"] = f"{100 * fmean(row['clean'] for row in runs):.1f}"
        cards.append({**card, "minutes": fmean(minutes) if minutes else None})
    return sorted(cards, key=lambda card: -float(card["worst"]))


def extract_sections(notebook: Path, numbers: Iterator[int]) -> list[tuple[str, list[Tag]]]:
    """(width, [words, *outputs]) of each section of an executed notebook that has cells tagged "index" with figures or tables.

    A width is "half" a row (one figure, no table), "wide" (such a figure beside its words, the last of an odd number), or "full".
    """
    nb = read(notebook)
    nb.cells = list(_tagged_cells(nb))
    groups: list[list[Tag]] = []
    for part in to_soup(nb, notebook, "index", numbers, {}).select("main > *"):
        groups = [*groups, [part]] if part.name == "section" else [*groups[:-1], [*groups[-1], part]]

    groups = [group for group in groups if any(part.find(["figure", "table"]) for part in group[1:])]

    def is_half(parts: list[Tag]) -> bool:
        figures = sum(len(part.find_all("figure")) for part in parts[1:])
        return figures == 1 and not any(part.find("table") for part in parts[1:])

    sections: list[tuple[str, list[Tag]]] = []
    for half, group in groupby(groups, is_half):
        neighbours = list(group)
        widths = ["half" if half else "full"] * len(neighbours)
        if half and len(neighbours) % 2:
            widths[-1] = "wide"
        sections += zip(widths, neighbours, strict=True)
    return sections


def _tagged_cells(nb: Any) -> Iterator[Any]:
    """A cell of words for each section (the nearest heading, its first paragraph), then its tagged cells without code."""
    words, last = "", None
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (headings := list(HEADING.finditer(cell.source))):
            paragraph = cell.source[headings[-1].end() :].strip().split("\n\n")[0]
            words = f"### {headings[-1][1]}\n\n{paragraph}"
        outputs = [o for o in cell.get("outputs", []) if any(str(o.get("data", {}).get(f, "")).strip() for f in FORMS)]
        if outputs and "index" in cell.metadata.get("tags", []):
            if words != last:
                yield new_markdown_cell(words)
            last = words
            yield new_code_cell("", outputs=outputs)


def write_atlas(
    target: Path, runs: Sequence[Run], dataset: Dataset, attack: Attack, *, title: str, index: str = "", n: int = 500
) -> None:
    """Writes one page with each run's map of clean and adversarial features, and the images behind its points.

    Features and maps are those of `robustlib.representation.embed_runs` with the same arguments, which keeps them: of `n`
    test images, a stratified choice (0 for all). `index` is the relative address of the index page ("" for no link).
    The images are one PNG: the clean ones, then for each run what the attack added (modulo 256, exact), which packs better
    than the adversarial images. Examples are left out, evenly, until the page is below 3 MB; the page says how many.
    """
    check_runs(runs, dataset)
    split, classes = dataset.test.sample(n), list(dataset.class_names)
    shown, adversarial = zip(*(_map(run, dataset, attack, n) for run in runs), strict=True)
    images = np.stack([split.images.numpy(), *adversarial])
    data: dict[str, Any] = {"shape": list(dataset.image_shape), "columns": TILES, "scale": SCALE, "classes": classes}
    data |= {"colours": COLOURS[: len(classes)] if len(classes) <= FEW else [], "labels": split.labels.numpy()}
    data["runs"], several = [], len({run.params().get("arch") for run in runs}) > 1
    for run, answered in zip(runs, shown, strict=True):
        params = run.params()
        name = params.get("title") or params["method"], run.changed, params["arch"] * several, f"seed {params['seed']}"
        data["runs"].append(answered | {"name": " · ".join(filter(None, name))})
    same = f"{len(split)} test images of {dataset.name}, the same for every network"
    facts = {"Attack": repr(attack), "Images": same, "Features": "penultimate"}
    places = np.arange(len(split))
    for _ in range(5):
        text = json.dumps(data, separators=(",", ":"), default=lambda table: table[places].ravel().tolist())  # noqa: B023
        values = {"data": text.replace("<", "\\u003c"), "sprite": _sprite(images[:, places]), "facts": facts}
        counts = {"shown": len(places), "total": len(split)}
        page = fill_template("atlas.html.j2", title=title, index=index, **values, **counts)
        if len(page) <= LIMIT:
            break
        fewer = max(1, int(0.95 * len(places) * LIMIT / len(page)))
        places = np.linspace(0, len(split) - 1, fewer).round().astype(int)
    write_atomic(target, page)


def _map(run: Run, dataset: Dataset, attack: Attack, n: int) -> tuple[dict[str, Any], np.ndarray]:
    """What the page knows of one run, an entry for each example, and its adversarial images."""
    (made,) = embed_runs([run], dataset, attack, n=n)
    clean, adversarial = run_features(run, dataset, attack, n=n)
    assert adversarial.images is not None
    answers = [clean.predictions.numpy(), adversarial.predictions.numpy()]
    maps = {}  # coordinates (N, 4), clean then adversarial, as whole numbers in [0, SCALE] that keep the map's shape
    for name, points in {"UMAP": made.points, "PCA": made.pca}.items():
        both = points.swapaxes(0, 1)
        low, high = both.min((0, 1)), both.max((0, 1))
        centred = (both - (low + high) / 2) / (max(high - low) or 1.0)
        maps[name] = ((centred + 0.5) * SCALE).round().astype(int).reshape(len(both), 4)
    return {"answers": answers, "maps": maps, "note": str(made)}, adversarial.images.numpy()


def _sprite(images: np.ndarray) -> str:
    """Clean images and what each run's attack added, uint8 (1 + runs, N, C, H, W), as one PNG in base64."""
    blocks, count, channels, height, width = images.shape
    rows = -(-count // TILES)
    sheet = np.zeros((blocks, rows * TILES, channels, height, width), dtype=np.uint8)
    sheet[0, :count], sheet[1:, :count] = images[0], images[1:] - images[:1]  # uint8 wraps around, and back again
    tiled = sheet.reshape(blocks * rows, TILES, channels, height, width).transpose(0, 3, 1, 4, 2)
    drawn = tiled.reshape(blocks * rows * height, TILES * width, channels)
    return encode_png(drawn, compress_type=zlib.Z_HUFFMAN_ONLY)  # noise does not repeat itself

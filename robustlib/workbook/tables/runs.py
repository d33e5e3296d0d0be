"""Tables of one run: its method, its data, its accuracies, its audit, and where they come from."""

import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape, unescape
from typing import Any

import pandas as pd

from robustlib.errors import Whole, typed
from robustlib.figures.canvas import attack_name, percent, verdict_label, worst_verdict
from robustlib.runs import source_text

FIELD = re.compile(r"^ {4}(\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)  # a dataclass field with its comment
PASSES = "passes per image (forward + backward)"  # of the search


def hyperparameters(method: Any) -> pd.DataFrame:
    """All fields of a dataclass such as a `Method`: value, default, and the comment that stands on the field."""
    meaning: dict[str, str] = {}
    for kind in reversed(type(method).__mro__[:-1]):
        meaning |= dict(FIELD.findall(_source(kind)))
    rows = {
        field.name: (_plain(getattr(method, field.name)), _plain(field.default), meaning.get(field.name, ""))
        for field in dataclasses.fields(method)
        if field.name != "preset"
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "paper", "meaning"])
    return table.rename_axis("hyper-parameter")


def _source(kind: type) -> str:
    with suppress(OSError, TypeError):  # Python does not find that of a class in a notebook's cell
        return inspect.getsource(kind)
    return source_text(kind)


def _plain(value: object) -> str:
    if value is None or value == ():
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def splits(dataset: Any, test_examples: int = 0, trained: bool = True) -> pd.DataFrame:
    """How many images each split of a data set has, of which shape and classes; of `test_examples` only so many are reported on.

    Where nothing is `trained`, only the test split has a part in anything.
    """
    some = typed(test_examples, Whole, "test_examples")
    part = f", on {some} of them" if 0 < some < len(dataset.test) else ""
    uses = {"train": "training", "val": "choosing the best epoch"} if trained else {}
    uses |= {"test": f"the numbers reported{part}"}
    table = pd.DataFrame({"images": [len(getattr(dataset, name)) for name in uses]}, index=pd.Index(uses, name="split"))
    shape = " × ".join(map(str, dataset.image_shape))
    return table.assign(shape=shape, classes=dataset.num_classes, **{"for": list(uses.values())})


def network(params: Mapping[str, Any]) -> pd.DataFrame:
    """What a network from elsewhere is and what was done to it: `Run.params` of a run whose `external` is set."""
    facts, about = params["external"], params.get("about", {})
    mean, std = (", ".join(f"{number:g}" for number in facts[name]) for name in ("mean", "std"))
    normalised = f"mean {mean or 0}, deviation {std or 1}" if mean or std else "inside, if at all"
    card = {
        "built by": f"{about.get('place', '')}:{facts['name']}".strip(":") or "an object in Python",
        "with": ", ".join(f"{name}={value}" for name, value in facts["arguments"].items()) or "–",
        "weights": about.get("file") or "as they were given",
        "digest of the weights": facts["weights"],
        "images normalised by": normalised,
        "features": facts["layer"]
        or (f"the input of module {facts['last_linear']}" if facts["last_linear"] else "its logits"),
        "answers": "at random" if facts["stochastic"] else "always alike",
        "adapted": " ".join(about.get("said", [])) or "nothing",
    }
    return pd.Series(card, name=str(params.get("title"))).rename_axis("network").to_frame()


def sanity(findings: Iterable[Any]) -> pd.DataFrame:
    """The findings of `robustlib.audit.check_run`."""
    rows = [(finding.name, verdict_label(finding.verdict), finding.text) for finding in findings]
    return pd.DataFrame(rows, columns=["question", "verdict", "answer"]).set_index("question")


def share(row: Mapping[Any, Any], name: str = "accuracy") -> str:
    """An accuracy of a row with its interval, which is `low` and `high`, or `{name}_low` and `{name}_high`."""
    prefix = "" if name == "accuracy" else f"{name}_"
    return percent(row[name], row.get(f"{prefix}low"), row.get(f"{prefix}high"))


def passes(row: Mapping[str, Any]) -> str:
    """A row's forward and backward passes an image; a dash where none were counted."""
    return f"{row['passes']:,.0f}" if row.get("passes") else "–"


def accuracies(results: Mapping[str, Any]) -> pd.DataFrame:
    """A run's accuracy under each attack, for its best and its last epoch, with the protocol of each number.

    Attacks on surrogates stand in `adaptive`; the worst case counts them. Of a stochastic model the accuracies are
    expected ones, over its draws; what a single draw gave stands beside them. PASSES are those on the best epoch.
    """
    first = "accuracy" if results.get("checkpoint") == "given" else "best epoch"
    columns = {first: results["rows"], "last epoch": results.get("last", {}).get("rows", [])}
    shown = {epoch: {row["attack"]: row for row in rows if "@" not in row["attack"]} for epoch, rows in columns.items()}
    written = {epoch: {name: share(row) for name, row in rows.items()} for epoch, rows in shown.items() if rows}
    table, best = pd.DataFrame(written).fillna("–"), shown[first]
    rows = [best.get(name, {}) for name in table.index]
    if any(row.get("single", row["accuracy"]) != row["accuracy"] for row in best.values()):
        table.insert(1, "one draw", [percent(row.get("single", float("nan"))) for row in rows])
    if any(row.get("passes") for row in rows):
        table[PASSES] = [passes(row) for row in rows]
    table["images"] = [row.get("n", results["rows"][0]["n"]) for row in rows]
    table["protocol"] = [row.get("protocol", "") for row in rows]
    return table.rename(index=attack_name).rename_axis("attack")


def published_protocol(
    results: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], protocol: str = "pgd20"
) -> pd.DataFrame:
    """Rows of an invalid `robustlib.evaluation.PublishedProtocol` below a run's valid clean, `protocol` and worst case."""
    shown = [row for row in results["rows"] if row["attack"] in ("clean", protocol, "worst")]
    counts = {True: "✓ valid", False: "✕ invalid"}
    table = [
        (attack_name(row["attack"]), share(row), row.get("n", results["n"]), counts[bool(row.get("valid", True))])
        for row in [*shown, *rows]
    ]
    return pd.DataFrame(table, columns=["attack", "accuracy", "images", "counts"])


def autoattack_steps(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What each step of AutoAttack took from those before it: `results["cascade"]`, or `evaluation.cascade_steps`."""
    table = []
    for row in rows:
        name = attack_name("@".join(filter(None, (row["attack"], row.get("surrogate")))))
        attacked = row["attacked"] if row["component"] != "clean" else "–"
        broken, left = f"{row['broken']:g}", percent(row["accuracy"])
        table.append((name, row["component"], attacked, broken, left, passes(row)))
    frame = pd.DataFrame(table, columns=["attack", "step", "images attacked", "broken", "accuracy after it", PASSES])
    return frame.drop(columns="attack") if frame["attack"].nunique() == 1 else frame


def as_markdown(text: object) -> str:
    """What a file says, as Markdown that shows it as it stands: on one line, without markup, HTML, links or formulas."""
    return re.sub(r"([\\`*_\[\]<>&$~|!#])", r"\\\1", " ".join(str(text).split()))


def warnings(metrics: pd.DataFrame) -> str:
    """What training warned of, as Markdown; a sentence if there was nothing."""
    lists: Iterable[Any] = metrics.get("warnings", [])
    said = [(n, text) for n, texts in zip(metrics.get("epoch_total", []), lists, strict=False) for text in texts]
    if not said:
        return "No catastrophic or robust overfitting was detected."
    lines = [f"- {f'epoch {n}' if n else 'before training'}: {as_markdown(text)}" for n, text in said]
    return "\n".join(["**Warnings**", "", *lines])


def provenance(facts: Mapping[str, Any], path: object = "") -> pd.DataFrame:
    """Where a run's numbers come from: machine, versions, code, time, and the command that repeats it."""
    card: dict[str, object] = {
        "repeat it with": facts.get("command") or "–",
        "run directory": path,
        "code": facts.get("git") or "–",
        "packages": ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items()),
        "python": facts.get("python", "–"),
        "machine": f"{facts.get('device_name', facts.get('device', '–'))}, {facts.get('threads', '–')} CPU thread(s)",
    }
    if "wall_seconds" in facts:  # of a network from elsewhere nobody here knows them
        card["training time"] = f"{facts['wall_seconds'] / 60:.1f} minutes"
        card["peak memory"] = f"{facts.get('peak_memory_mb', 0):.0f} MiB"
    return pd.Series(card, name="this run").rename_axis("provenance").to_frame()


DEPLOYED, FAR = "the deployed logits", "everything so far"
COSTLY = ("pgd100x5", "cw100x5", "autoattack")  # on surrogates: only of what still stood
SEARCHES = ("pgd20", "cw50", "pgd_eot", "aa_standard")  # on surrogates: in full


def adaptive(results: Mapping[str, Any]) -> pd.DataFrame:
    """What each view of a model tells an attacker: first the deployed logits, as in papers, last the minimum over all.

    Costly attacks on surrogates met only what nothing before them had broken; their rows stand below the views, with the share that
    was left after them on all views. Views of a stochastic model met everything in full. Without surrogates there are no rows.
    """
    rows = {row["attack"]: row for row in results["rows"]}
    searched = _searched(rows)
    views = {"": DEPLOYED} | {f"@{view}": view for view in searched} if searched else {}
    table = {
        view: {attack_name(name): percent(rows[name + at]["accuracy"]) for name in SEARCHES if name + at in rows}
        for at, view in views.items()
    }
    if searched and "autoattack" in rows:
        table[DEPLOYED][attack_name("autoattack")] = share(rows["autoattack"])
    for attack, row in rows.items():  # of each costly attack the last row counts
        name, at, _ = attack.partition("@")
        if at and name in COSTLY:
            table[f"{attack_name(name)} on surrogates"] = {FAR: percent(row["accuracy"])}
    if searched:
        table["adaptive minimum"] = {FAR: share(rows["worst"])}
    columns = [attack_name(name) for name in (*SEARCHES, "autoattack") if name in rows]
    return pd.DataFrame.from_dict(table, orient="index", columns=[*columns, FAR]).fillna("–").rename_axis("searched on")


def _searched(rows: Iterable[str]) -> list[str]:
    """The views that were searched on in full, in the order of the results."""
    pairs = (name.partition("@") for name in rows)
    return list(dict.fromkeys(view for attack, at, view in pairs if at and attack in SEARCHES))


def adaptive_summary(results: Mapping[str, Any], protocol: str = "autoattack") -> str:
    """By how much the paper's protocol, on the deployed logits, overstates; "" for a model without surrogates."""
    rows = {row["attack"]: row["accuracy"] for row in results["rows"]}
    if protocol not in rows or not _searched(rows):
        return ""
    paper, least, name = rows[protocol], rows["worst"], f"{attack_name(protocol)} on the deployed logits"
    said = f"{name} alone" if results.get("checkpoint") == "given" else f"The paper's protocol ({name})"
    return f"{said} leaves {percent(paper)}, the adaptive minimum {percent(least)}: overstated by {100 * (paper - least):.1f} points."


def show_adaptive(results: Mapping[str, Any], protocol: str = "autoattack") -> None:
    """Displays both in a notebook, and nothing for a model without surrogates."""
    if words := adaptive_summary(results, protocol):
        _display(f"<p>{escape(words)}</p>", words)
        show(adaptive(results))


def show_badges(audit: Mapping[str, Any], path: object = "RUN") -> None:
    """Displays the two badges of a run's audit.json with their sentences; how to get them if there are none."""
    said = []
    for name, badge in audit.get("badges", {}).items():
        kind = worst_verdict([badge["verdict"]]).replace("/", "")  # a class that the report's style sheet knows
        text = escape(f"{name}: {verdict_label(badge['verdict'])}")
        said.append(f'<p><span class="badge {kind}">{text}</span> {escape(str(badge["text"]))}</p>')
    none = f"Not audited: `robustlib audit {shlex.quote(str(path))}` looks for signs that the accuracies above are artefacts of weak attacks."
    html = "\n".join(said) or f"<p>{escape(none)}</p>"
    _display(html, unescape(re.sub("<[^>]+>", "", html)))


def checks(audit: Mapping[str, Any]) -> pd.DataFrame:
    """The checks of an audit, in their order: verdict, what was measured, its threshold, and what that means."""
    rows = []
    for check in audit.get("checks", []):
        unit = f" {check['unit']}" if check.get("unit") in ("points", "%") else ""
        numbers = [
            "–" if value is None or value != value else f"{value:.3g}{unit}".replace("-", "−")
            for value in (check["value"], check["threshold"])
        ]
        name = f"{check['number']}. {check['name']}"
        rows.append((name, verdict_label(check["verdict"]), *numbers, check["meaning"]))
    return pd.DataFrame(rows, columns=["check", "verdict", "value", "threshold", "meaning"])


BARE = "classifier"  # the surrogate without purifier, whose gradients say little
PLATEAU = {"falling": "still falling, a stronger attack finds more", "unclear": "so few images cannot tell"}


def randomness(results: Mapping[str, Any], measured: Mapping[str, Any]) -> pd.DataFrame:
    """A randomised model asked in every way (expected, once, worst of K, fixed, at full strength), with 95 % intervals.

    The worst of K draws of clean images is the control: what random failures alone cost. The last rows are no robustness: what an
    attack leaves that knows only the bare classifier, BPDA + EOT at the strength of the preset's budget, answered by a vote as it
    is published, and PGD+EOT over gradient samples (and, after a plateau check, steps), which should no longer fall.
    """
    rows, nothing = {row["attack"]: row for row in results["rows"]}, {"accuracy": None}
    table = random_answers(measured)
    if plateau := results.get("plateau"):
        counts = "its number is the headline" if plateau["taken"] else "the headline stands"
        table[f"PGD+EOT at full strength: {counts}"] = (nothing, plateau["full"])
        table["headline before it"] = (rows["clean"], plateau["worst"])
    if weak := [row for name, row in rows.items() if name.endswith(f"@{BARE}")]:
        least = min(weak, key=lambda row: float(row["accuracy"]))
        table[f"weak: {attack_name(least['attack'])} alone"] = (nothing, least)
    if vote := measured.get("vote"):
        strength = _strength(dict(zip(("steps", "samples"), measured["budget"]["bpda"], strict=True)))
        name = f"BPDA + EOT with {strength}, {vote['clean']['n']} images, answered by a vote of {vote['draws']} draws"
        table[name] = (vote["clean"], vote["attacked"])
    for point in [*measured["eot"], *_plateau(results, "samples"), *_plateau(results, "steps")]:
        table[f"PGD+EOT with {_strength(point)}, {point['n']} images"] = (nothing, point)
    written = {name: {"clean": share(clean), "attacked": share(attacked)} for name, (clean, attacked) in table.items()}
    return pd.DataFrame.from_dict(written, orient="index").rename_axis("asked how")


def random_answers(measured: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By how a randomised model is asked, its clean and its attacked accuracy with their intervals."""
    kinds = {"expected": "mean over fresh draws", "single": "a single draw"}
    kinds["worst"] = f"worst of {measured['draws']} draws"
    answers = {name: (measured["clean"][kind], measured["attacked"][kind]) for kind, name in kinds.items()}
    for fixed in measured["fixed"]:
        name = f"draw fixed by seed {fixed['seed']}, known to the attacker"
        answers[name] = (fixed["clean"], fixed["attacked"])
    return answers


def plateau_summary(results: Mapping[str, Any]) -> str:
    """Whether PGD+EOT still gains by more gradient samples or steps; "" for results without a plateau check."""
    said = []
    for name in ("samples", "steps"):
        if points := _plateau(results, name):
            before, last = points[-2:]
            step = results["plateau"][name]["last"]
            lost, low, high = (f"{100 * step[end]:.1f}" for end in ("lost", "low", "high"))
            words = PLATEAU.get(step["verdict"], step["verdict"])
            less = f"{lost} points ({low} to {high}) less than with {before[name]}: {words}"
            said.append(f"with {_strength(last)} PGD+EOT leaves {share(last)} of {last['n']} images, {less}")
    words = "; ".join(said).replace(" -", " −").replace("(-", "(−")
    return f"Plateau (flat: the last step surely loses less than 3 points): {words}." if said else ""


def _plateau(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The points of a plateau check over "samples" or "steps"; [] without one."""
    points: list[dict[str, Any]] = results.get("plateau", {}).get(name, {}).get("points", [])
    return points


def _strength(point: Mapping[str, Any]) -> str:
    steps, samples = point["steps"], point["samples"]
    return f"{steps} step{'s' * (steps > 1)} of {samples} gradient sample{'s' * (samples > 1)}"


def show(table: pd.DataFrame, folded: str = "") -> None:
    """Displays a table in a notebook with its texts in full (pandas would cut them at 50 characters), `folded` under these words."""
    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        named = table.reset_index() if table.index.name else table
        html, text = named.to_html(index=False, border=0), named.to_string(index=False)
    fold(folded, html, text) if folded else _display(html, text)


def fold(title: str, html: str, text: str) -> None:
    """Displays HTML behind a title that opens it; its text where there is no HTML."""
    _display(f'<details class="code"><summary>{escape(title)}</summary>\n{html}\n</details>', f"{title}\n{text}")


def show_cards(rows: Mapping[str, Mapping[Any, Any]], images: int) -> None:
    """Displays accuracies by their titles, large, each with its interval and the number of images (`images` where a row names none)."""
    cards, words = [], []
    for title, row in rows.items():
        n, interval = row.get("n", images), f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"
        small = f"<small>{interval} (95\u00a0%)<br>{n} images</small>"
        cards.append(f'<li><h3>{escape(title)}</h3><p class="big">{percent(row["accuracy"])}{small}</p></li>')
        words.append(f"{title}: {share(row)} of {n} images")
    _display(f'<ul class="cards">{"".join(cards)}</ul>', "\n".join(words))


def _display(html: str, text: str) -> None:
    from IPython.display import display

    display({"text/html": html, "text/plain": text}, raw=True)

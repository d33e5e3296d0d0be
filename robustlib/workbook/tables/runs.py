"""Tables of one run: its method, its data, its accuracies, its audit, and where they come from."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape
from typing import Any

import pandas as pd

from robustlib.figures.canvas import attack_name, percent, verdict_label

FIELD = re.compile(r"^ {4}(\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)  # a dataclass field with its comment


def hyperparameters(method: Any) -> pd.DataFrame:
    """All fields of a dataclass such as a `Method`: value, default, and the comment that stands on the field."""
    meaning: dict[str, str] = {}
    for kind in reversed(type(method).__mro__[:-1]):
        meaning |= dict(FIELD.findall(inspect.getsource(kind)))
    rows = [
        {
            "hyper-parameter": field.name,
            "value": _plain(getattr(method, field.name)),
            "paper": _plain(field.default),
            "meaning": meaning.get(field.name, ""),
        }
        for field in dataclasses.fields(method)
        if field.name != "preset"
    ]
    return pd.DataFrame(rows).set_index("hyper-parameter")


def _plain(value: object) -> str:
    if value is None or value == ():
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def splits(dataset: Any) -> pd.DataFrame:
    """How many images each split of a data set has, of which shape and classes."""
    shape = " × ".join(map(str, dataset.image_shape))
    rows = [
        {
            "split": name,
            "images": len(getattr(dataset, name)),
            "shape": shape,
            "classes": dataset.num_classes,
            "for": use,
        }
        for name, use in {"train": "training", "val": "choosing the best epoch", "test": "the numbers reported"}.items()
    ]
    return pd.DataFrame(rows).set_index("split")


def accuracies(results: Mapping[str, Any]) -> pd.DataFrame:
    """A run's accuracy under each attack, for its best and its last epoch, with the protocol of each number.

    Attacks on surrogates stand in `adaptive`; the worst case counts them. Of a stochastic model the accuracies are expected ones, over its draws; what a single draw gave stands beside them.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
    """
    columns = {"best epoch": results["rows"], "last epoch": results.get("last", {}).get("rows", [])}
    table = pd.DataFrame({column: _by_attack(rows) for column, rows in columns.items() if rows}).fillna("–")
    first = {row["attack"]: row for row in results["rows"] if "@" not in row["attack"]}
    rows = [first.get(name, {}) for name in table.index]
    if any(row.get("single", row["accuracy"]) != row["accuracy"] for row in first.values()):
        table.insert(1, "one draw", [percent(row.get("single", float("nan"))) for row in rows])
    table["images"] = [row.get("n", results["rows"][0]["n"]) for row in rows]
    table["protocol"] = [row.get("protocol", "") for row in rows]
    return table.rename(index=attack_name).rename_axis("attack")


def published_protocol(
    results: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], protocol: str = "pgd20"
) -> pd.DataFrame:
    """What an invalid protocol says of a run, beside what valid ones say, each labelled.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
        rows: of the invalid protocol, e.g. `robustlib.evaluation.PublishedProtocol.rows`.
        protocol: the valid attack to show beside clean accuracy and worst case.
    """
    shown = [row for row in results["rows"] if row["attack"] in ("clean", protocol, "worst")]
    return pd.DataFrame(
        [
            {
                "attack": attack_name(row["attack"]),
                "accuracy": _accuracy(row),
                "images": row.get("n", results["n"]),
                "counts": "✓ valid" if row.get("valid", True) else "✕ invalid",
            }
            for row in [*shown, *rows]
        ]
    )


def autoattack_steps(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What each step of AutoAttack took from those before it, one row a step.

    Args:
        rows: `results["cascade"]` of `evaluate_run`, or the rows of `robustlib.evaluation.cascade_steps`.
    """
    table = [
        {
            "attack": attack_name(row["attack"] + (f"@{row['surrogate']}" if row.get("surrogate") else "")),
            "step": row["component"],
            "images attacked": row["attacked"] if row["component"] != "clean" else "–",
            "broken": f"{row['broken']:g}",
            "accuracy after it": percent(row["accuracy"]),
        }
        for row in rows
    ]
    frame = pd.DataFrame(table, columns=["attack", "step", "images attacked", "broken", "accuracy after it"])
    return frame.drop(columns="attack") if frame["attack"].nunique() == 1 else frame


def _by_attack(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    shown = [row for row in rows if "@" not in row["attack"]]
    return {row["attack"]: _accuracy(row) for row in shown}


def _accuracy(row: Mapping[str, Any]) -> str:
    return percent(row["accuracy"], row.get("low"), row.get("high"))


def warnings(metrics: pd.DataFrame) -> str:
    """What training warned of, as Markdown; a sentence if there was nothing."""
    lists: Iterable[Any] = metrics.get("warnings", [])
    said = [(n, text) for n, texts in zip(metrics.get("epoch_total", []), lists, strict=False) for text in texts]
    if not said:
        return "No catastrophic or robust overfitting was detected."
    return "**Warnings**\n\n" + "\n".join(f"- {f'epoch {n}' if n else 'before training'}: {text}" for n, text in said)


def provenance(facts: Mapping[str, Any], path: object = "") -> pd.DataFrame:
    """Where a run's numbers come from: machine, versions, code, time, and the command that repeats it."""
    packages = ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items())
    card: dict[str, object] = {
        "repeat it with": facts.get("command", "–"),
        "run directory": path,
        "code": facts.get("git") or "–",
        "packages": packages,
        "python": facts.get("python", "–"),
        "machine": f"{facts.get('device_name', facts.get('device', '–'))}, {facts.get('threads', '–')} CPU thread(s)",
        "training time": f"{facts.get('wall_seconds', 0) / 60:.1f} minutes",
        "peak memory": f"{facts.get('peak_memory_mb', 0):.0f} MiB",
    }
    return pd.Series(card, name="this run").rename_axis("provenance").to_frame()


DEPLOYED, MINIMUM, FAR = "the deployed logits", "adaptive minimum", "everything so far"
COSTLY = ("pgd100x5", "cw100x5", "autoattack")  # on surrogates: only of what still stood
SEARCHES = ("pgd20", "cw50", "pgd_eot", "aa_standard")  # on surrogates: in full
ALONE = (*SEARCHES, "autoattack")  # attacks with a column of their own


def adaptive(results: Mapping[str, Any]) -> pd.DataFrame:
    """What each view of a model tells an attacker: first the deployed logits, which papers attack, last the minimum over all.

    Costly attacks on surrogates met only what nothing before them had broken; their rows stand below the views, with the share
    that was left after them on all views. Views of a stochastic model met everything in full.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.

    Returns:
        A row a view and columns of text; no rows for a model without surrogates.
    """
    rows = {row["attack"]: row for row in results["rows"]}
    searched, costly = _split(rows)
    columns = [attack_name(name) for name in ALONE if name in rows]
    table = {DEPLOYED: _cells(rows, "", ALONE)} if searched else {}
    for view in searched:
        table[view] = _cells(rows, f"@{view}", SEARCHES)
    for attack, left in costly.items():
        table[f"{attack_name(attack)} on surrogates"] = {FAR: percent(rows[left]["accuracy"])}
    if searched:
        table[MINIMUM] = {FAR: _accuracy(rows["worst"])}
    frame = pd.DataFrame.from_dict(table, orient="index", columns=[*columns, FAR])
    return frame.fillna("–").rename_axis("searched on")


def adaptive_summary(results: Mapping[str, Any], protocol: str = "autoattack") -> str:
    """By how much the paper's protocol, an attack on the deployed logits, overstates; "" for a model without surrogates."""
    rows = {row["attack"]: row["accuracy"] for row in results["rows"]}
    if protocol not in rows or not _split(rows)[0]:
        return ""
    paper, least = rows[protocol], rows["worst"]
    return (
        f"The paper's protocol ({attack_name(protocol)} on the deployed logits) leaves {percent(paper)}, the adaptive minimum "
        f"{percent(least)}: overstated by {100 * (paper - least):.1f} points."
    )


def show_adaptive(results: Mapping[str, Any], protocol: str = "autoattack") -> None:
    """Displays both in a notebook, and nothing for a model without surrogates."""
    from IPython.display import display

    if words := adaptive_summary(results, protocol):
        display({"text/html": f"<p>{escape(words)}</p>", "text/plain": words}, raw=True)
        show(adaptive(results))


def _split(rows: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Views that were searched on, in order, and for each costly attack the last of its rows, all in the results' order."""
    pairs = [(attack, view) for attack, at, view in (name.partition("@") for name in rows) if at]
    views = list(dict.fromkeys(view for attack, view in pairs if attack in SEARCHES))
    costly = {attack: f"{attack}@{view}" for attack, view in pairs if attack in COSTLY}
    return views, costly


def _cells(rows: Mapping[str, Any], at: str, attacks: Sequence[str]) -> dict[str, str]:
    """The accuracies of a view by the attack's name; with its interval where it is the deployed model's AutoAttack."""
    there = {name: rows[name + at] for name in attacks if name + at in rows}
    return {
        attack_name(name): percent(row["accuracy"], *([row["low"], row["high"]] if name == ALONE[-1] else []))
        for name, row in there.items()
    }


NONE = "Not audited: `robustlib audit {path}` looks for signs that the accuracies above are artefacts of weak attacks."


def badges(audit: Mapping[str, Any], path: object = "RUN") -> str:
    """The two badges of a run with their sentences, as HTML; how to get them if there are none.

    Args:
        audit: the content of audit.json, `Run.audit()`.
        path: of the run, for the command.
    """
    said = []
    for name, badge in audit.get("badges", {}).items():
        kind = badge["verdict"].replace("/", "")  # a class that the report's style sheet knows
        text = f"{name}: {verdict_label(badge['verdict'])}"
        said.append(f'<p><span class="badge {kind}">{text}</span> {escape(badge["text"])}</p>')
    return "\n".join(said) or f"<p>{escape(NONE.format(path=path))}</p>"


def show_badges(audit: Mapping[str, Any], path: object = "RUN") -> None:
    """Displays the badges in a notebook; see `badges`."""
    from IPython.display import display

    html = badges(audit, path)
    display({"text/html": html, "text/plain": unescape(re.sub("<[^>]+>", "", html))}, raw=True)


def checks(audit: Mapping[str, Any]) -> pd.DataFrame:
    """The checks of an audit, in their order: verdict, what was measured, its threshold, and what that means."""
    rows = [
        {
            "check": f"{check['number']}. {check['name']}",
            "verdict": verdict_label(check["verdict"]),
            "value": _measure(check["value"], check.get("unit", "")),
            "threshold": _measure(check["threshold"], check.get("unit", "")),
            "meaning": check["meaning"],
        }
        for check in audit.get("checks", [])
    ]
    return pd.DataFrame(rows, columns=["check", "verdict", "value", "threshold", "meaning"])


def _measure(value: float | None, unit: str) -> str:
    if value is None or value != value:
        return "–"
    number = f"{value:.3g}".replace("-", "−")
    return f"{number} {unit}" if unit in ("points", "%") else number


NOTHING = {"accuracy": None}
BARE = "classifier"  # the surrogate without purifier, whose gradients say little
PLATEAU = {
    "flat": "flat",
    "falling": "still falling, a stronger attack finds more",
    "unclear": "so few images cannot tell",
}  # of a plateau's last step


def randomness(results: Mapping[str, Any], found: Mapping[str, Any]) -> pd.DataFrame:
    """A randomised model asked in every way, clean and attacked, with 95 % intervals: expected, once, worst of K, fixed, at full strength.

    The worst of K draws of clean images is the control: what random failures alone cost. The last rows are no robustness: what
    an attack leaves that knows only the bare classifier, BPDA + EOT at the strength of the preset's budget, answered by a vote as
    it is published, and PGD+EOT over gradient samples (and, after a plateau check, steps), which should no longer fall.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
        found: of `robustlib.evaluation.measure_randomness`.
    """
    rows = {row["attack"]: row for row in results["rows"]}
    table = random_answers(found)
    if "plateau" in results:
        plateau = results["plateau"]
        told = "its number is the headline" if plateau["taken"] else "the headline stands"
        table[f"PGD+EOT at full strength: {told}"] = (NOTHING, plateau["full"])
        table["headline before it"] = (rows["clean"], plateau["worst"])
    if weak := [row for name, row in rows.items() if name.endswith(f"@{BARE}")]:
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
    written = {
        name: {"clean": _accuracy(clean), "attacked": _accuracy(attacked)} for name, (clean, attacked) in table.items()
    }
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
            less = f"{lost} points ({low} to {high}) less than with {before[name]}: {PLATEAU[step['verdict']]}"
            said.append(f"with {_strength(last)} PGD+EOT leaves {_accuracy(last)} of {last['n']} images, {less}")
    words = "; ".join(said).replace(" -", " −").replace("(-", "(−")
    return f"Plateau (flat: the last step surely loses less than 3 points): {words}." if said else ""


def _grid(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The points of a plateau check over "samples" or "steps"; [] without one."""
    points: list[dict[str, Any]] = results.get("plateau", {}).get(name, {}).get("points", [])
    return points


def _strength(point: Mapping[str, Any]) -> str:
    steps, samples = point["steps"], point["samples"]
    return f"{steps} step{'s' * (steps > 1)} of {samples} gradient sample{'s' * (samples > 1)}"


def show(table: pd.DataFrame) -> None:
    """Displays a table in a notebook with its texts in full (pandas would cut them at 50 characters)."""
    from IPython.display import display

    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        named = table.reset_index() if table.index.name else table
        data = {"text/html": named.to_html(index=False, border=0), "text/plain": named.to_string(index=False)}
    display(data, raw=True)

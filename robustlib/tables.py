"""Tables for people: numbers in, a DataFrame of text out, the same in notebooks, reports and the terminal.

Nothing here knows runs or files. Accuracies are shown with their 95 % intervals, never alone.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ATTACKS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd50x10": "PGD-50×10",  # 10 restarts
    "cw50": "CW-50",
    "worst": "worst case",
}
FIELD = re.compile(r"^ {4}(\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)  # a dataclass field with its comment


def show(table: "pd.DataFrame") -> None:
    """Displays a table in a notebook with its texts in full (pandas would cut them at 50 characters)."""
    import pandas as pd
    from IPython.display import display

    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        named = table.reset_index() if table.index.name else table
        data = {"text/html": named.to_html(index=False, border=0), "text/plain": named.to_string(index=False)}
    display(data, raw=True)


def percent(value: float, low: float | None = None, high: float | None = None) -> str:
    """A fraction as "75.2 %", with its interval "75.2 % (71.3-78.8)"; "–" for a number that is not there."""
    if value is None or value != value:
        return "–"
    interval = f" ({100 * low:.1f}–{100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f} %{interval}"


def hyperparameters(method: Any) -> "pd.DataFrame":
    """All fields of a dataclass such as a `Method`: value, default, and the comment that stands on the field."""
    import pandas as pd

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


def splits(dataset: Any) -> "pd.DataFrame":
    """How many images each split of a data set has, of which shape and classes."""
    import pandas as pd

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


def accuracies(results: Mapping[str, Any]) -> "pd.DataFrame":
    """A run's accuracy under each attack, for its best and its last epoch, with the protocol of each number.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
    """
    import pandas as pd

    columns = {"best epoch": results["rows"], "last epoch": results.get("last", {}).get("rows", [])}
    table = pd.DataFrame({column: _by_attack(rows) for column, rows in columns.items() if rows})
    first = {row["attack"]: row for row in results["rows"]}
    table["images"] = [first[name]["n"] for name in table.index]
    table["protocol"] = [first[name].get("protocol", "") for name in table.index]
    return table.rename(index=ATTACKS).rename_axis("attack")


def _by_attack(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {row["attack"]: percent(row["accuracy"], row["low"], row["high"]) for row in rows}


def leaderboard(board: "pd.DataFrame") -> "pd.DataFrame":
    """The runs of a `robustlib.evaluation.leaderboard`, one a row; intervals where the board has them.

    Columns that would say the same of every run (one architecture, no notes) are left out.
    """
    import pandas as pd

    rows = [
        {
            "method": row["method"],
            "arch": row["arch"],
            "seed": row["seed"],
            "changed": row.get("changed", "") or "",
            **{ATTACKS[name]: _cell(row, name) for name in ("clean", "worst", *ATTACKS) if name in row},
            "minutes": f"{row['minutes']:.1f}",
            "notes": notes(row),
        }
        for row in board.to_dict("records")
    ]
    return _without_dull(pd.DataFrame(rows))


def _without_dull(table: "pd.DataFrame") -> "pd.DataFrame":
    empty = [name for name in ("changed", "notes") if name in table and not table[name].any()]
    alike = [name for name in ("arch",) if name in table and table[name].nunique() == 1]
    return table.drop(columns=empty + alike)


def _cell(row: Mapping[Any, Any], name: str) -> str:
    return percent(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))


def notes(row: Mapping[Any, Any]) -> str:
    """What a reader of a leaderboard row must know: stale (made by other code), warnings."""
    said = row.get("warnings")
    warnings = [said] if isinstance(said, str) and said else list(said) if isinstance(said, list | tuple) else []
    return "; ".join((["stale"] if row.get("stale") else []) + warnings)


def over_seeds(aggregate: "pd.DataFrame") -> "pd.DataFrame":
    """Mean ± standard deviation over seeds of each method; one seed has no deviation and says so."""
    import pandas as pd

    rows = []
    for row in aggregate.to_dict("records"):
        numbers: dict[str, Any] = {}
        for name in ("clean", "worst", *ATTACKS):  # first what matters most
            label = ATTACKS[name]
            mean, std = row.get(f"{name}_mean"), row.get(f"{name}_std")
            if mean is not None:
                numbers[label] = percent(mean) if std is None or std != std else f"{100 * mean:.1f} ± {100 * std:.1f} %"
        who: dict[str, Any] = {key: row[key] for key in ("method", "arch", "changed", "seeds") if key in row}
        rows.append(who | numbers)
    return _without_dull(pd.DataFrame(rows))


def warnings(metrics: "pd.DataFrame") -> str:
    """What training warned of, as Markdown; a sentence if there was nothing."""
    lists: Iterable[Any] = metrics.get("warnings", [])
    said = [(n, text) for n, texts in zip(metrics.get("epoch_total", []), lists, strict=False) for text in texts]
    if not said:
        return "No catastrophic or robust overfitting was detected."
    return "**Warnings**\n\n" + "\n".join(f"- epoch {epoch}: {text}" for epoch, text in said)


def provenance(facts: Mapping[str, Any], path: object = "") -> "pd.DataFrame":
    """Where a run's numbers come from: machine, versions, code, time, and the command that repeats it."""
    import pandas as pd

    packages = ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items())
    card: dict[str, object] = {
        "repeat it with": facts.get("command", "–"),
        "run directory": path,
        "code": " ".join(str(facts[key]) for key in ("code", "git") if facts.get(key)),
        "packages": packages,
        "python": facts.get("python", "–"),
        "machine": f"{facts.get('device_name', facts.get('device', '–'))}, {facts.get('threads', '–')} CPU thread(s)",
        "training time": f"{facts.get('wall_seconds', 0) / 60:.1f} minutes",
        "peak memory": f"{facts.get('peak_memory_mb', 0):.0f} MiB",
    }
    return pd.Series(card, name="this run").rename_axis("provenance").to_frame()


def inventory(runs: Iterable[Any]) -> "pd.DataFrame":
    """All runs, finished or not, as `robustlib list` shows them."""
    import pandas as pd

    rows = []
    for run in runs:
        params, state = run.params(), run.status()["state"]
        by_attack = {row["attack"]: percent(row["accuracy"]) for row in run.results().get("rows", [])}
        rows.append(
            {
                "method": params.get("method", "?"),
                "seed": params.get("seed", "?"),
                "state": state,
                "clean": by_attack.get("clean", "–"),
                "worst case": by_attack.get("worst", "–"),
                "notes": ", ".join(filter(None, [params.get("changed", ""), "stale" if run.stale else ""])),
                "run directory": run.path,
            }
        )
    return pd.DataFrame(rows)

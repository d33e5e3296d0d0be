"""Tables of one run: its method, its data, its accuracies, and where they come from."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import attack_name, percent

if TYPE_CHECKING:
    import pandas as pd

FIELD = re.compile(r"^ {4}(\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)  # a dataclass field with its comment


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

    Attacks on surrogates stand in `adaptive`; the worst case counts them. Of a stochastic model the accuracies are expected ones, over its draws; what a single draw gave stands beside them.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
    """
    import pandas as pd

    columns = {"best epoch": results["rows"], "last epoch": results.get("last", {}).get("rows", [])}
    table = pd.DataFrame({column: _by_attack(rows) for column, rows in columns.items() if rows}).fillna("–")
    first = {row["attack"]: row for row in results["rows"] if "@" not in row["attack"]}
    rows = [first.get(name, {}) for name in table.index]
    if any(row.get("single", row["accuracy"]) != row["accuracy"] for row in first.values()):
        table.insert(1, "one draw", [percent(row.get("single", float("nan"))) for row in rows])
    table["images"] = [row.get("n", results["rows"][0]["n"]) for row in rows]
    table["protocol"] = [row.get("protocol", "") for row in rows]
    return table.rename(index=attack_name).rename_axis("attack")


def legacy(results: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], protocol: str = "pgd20") -> "pd.DataFrame":
    """What an invalid protocol says of a run, beside what valid ones say, each labelled.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.
        rows: of the invalid protocol, e.g. `robustlib.evaluation.Legacy.rows`.
        protocol: the valid attack to show beside clean accuracy and worst case.
    """
    import pandas as pd

    shown = [row for row in results["rows"] if row["attack"] in ("clean", protocol, "worst")]
    return pd.DataFrame(
        [
            {
                "attack": attack_name(row["attack"]),
                "accuracy": percent(row["accuracy"], row["low"], row["high"]),
                "images": row.get("n", results["n"]),
                "counts": "✓ valid" if row.get("valid", True) else "✕ invalid",
            }
            for row in [*shown, *rows]
        ]
    )


def cascade(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """What each step of AutoAttack took from those before it, one row a step.

    Args:
        rows: `results["cascade"]` of `evaluate_run`, or the rows of `robustlib.evaluation.cascade`.
    """
    import pandas as pd

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
    return {row["attack"]: percent(row["accuracy"], row["low"], row["high"]) for row in shown}


def warnings(metrics: "pd.DataFrame") -> str:
    """What training warned of, as Markdown; a sentence if there was nothing."""
    lists: Iterable[Any] = metrics.get("warnings", [])
    said = [(n, text) for n, texts in zip(metrics.get("epoch_total", []), lists, strict=False) for text in texts]
    if not said:
        return "No catastrophic or robust overfitting was detected."
    return "**Warnings**\n\n" + "\n".join(f"- {f'epoch {n}' if n else 'before training'}: {text}" for n, text in said)


def provenance(facts: Mapping[str, Any], path: object = "") -> "pd.DataFrame":
    """Where a run's numbers come from: machine, versions, code, time, and the command that repeats it."""
    import pandas as pd

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

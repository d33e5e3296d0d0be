"""What the audit of a run says: its two badges and the table of its checks."""

import re
from collections.abc import Mapping
from html import escape, unescape
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import verdict

if TYPE_CHECKING:
    import pandas as pd

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
        text = f"{name}: {verdict(badge['verdict'])}"
        said.append(f'<p><span class="badge {kind}">{text}</span> {escape(badge["text"])}</p>')
    return "\n".join(said) or f"<p>{escape(NONE.format(path=path))}</p>"


def show_badges(audit: Mapping[str, Any], path: object = "RUN") -> None:
    """Displays the badges in a notebook; see `badges`."""
    from IPython.display import display

    html = badges(audit, path)
    display({"text/html": html, "text/plain": unescape(re.sub("<[^>]+>", "", html))}, raw=True)


def checks(audit: Mapping[str, Any]) -> "pd.DataFrame":
    """The checks of an audit, in their order: verdict, what was measured, its threshold, and what that means."""
    import pandas as pd

    rows = [
        {
            "check": f"{check['number']}. {check['name']}",
            "verdict": verdict(check["verdict"]),
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


def objections(board: "pd.DataFrame") -> str:
    """What the badges of a leaderboard say against its numbers, as Markdown; that there is nothing, if so.

    Args:
        board: of `robustlib.evaluation.leaderboard`.
    """
    said: dict[str, list[str]] = {}
    for row in board.to_dict("records"):
        names = ["method", "changed"] + ["arch"] * (board["arch"].nunique() > 1)
        who = " ".join(str(row[key]) for key in names if row.get(key) not in ("", None))
        for kind in ("headline", "protocol"):
            if row.get(f"{kind}_badge") in ("amber", "red"):
                text = f"{verdict(row[f'{kind}_badge'])}, seed {row['seed']}: {escape(str(row[f'{kind}_text']), quote=False)}"
                said.setdefault(f"**{who}, {kind}**", []).append(text)
    lines = [f"- {who}: {' '.join(texts)}" for who, texts in said.items()]
    silent = sum(word not in ("pass", "amber", "red", "n/a") for word in board.get("headline_badge", [""] * len(board)))
    if silent:
        lines.append(f"- {silent} of {len(board)} runs are not audited; `robustlib audit RUN` does it.")
    return "\n".join(lines) or "All runs are audited, and no check objects to a headline or a protocol."

"""Tables of many runs: leaderboards, means over seeds, and what there is."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import ATTACKS, gravest, percent, verdict

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("clean", "worst")  # the numbers to compare stand before those of single attacks
BADGES = ("headline", "protocol")


def leaderboard(board: "pd.DataFrame") -> "pd.DataFrame":
    """The runs of a `robustlib.evaluation.leaderboard`, one a row; intervals where the board has them.

    The columns headline and protocol are the badges of the audit: of the worst case, and of the method's own protocol.
    Columns that would say the same of every run (one architecture, no notes) are left out.
    """
    import pandas as pd

    attacks = [name for name in ATTACKS if name in board and name not in FIRST and board[name].notna().any()]
    rows = [
        {
            "method": row["method"],
            "arch": row["arch"],
            **({"threat": row["threat"]} if row.get("threat") else {}),
            "seed": row["seed"],
            "changed": row.get("changed", "") or "",
            **{ATTACKS[name]: _cell(row, name) for name in FIRST},
            **{kind: verdict(row[f"{kind}_badge"]) for kind in BADGES if f"{kind}_badge" in row},
            **{ATTACKS[name]: _cell(row, name) for name in attacks},
            "minutes": f"{row['minutes']:.1f}",
            "notes": notes(row),
        }
        for row in board.to_dict("records")
    ]
    return _without_dull(pd.DataFrame(rows))


def _without_dull(table: "pd.DataFrame") -> "pd.DataFrame":
    empty = [name for name in ("changed", "notes") if name in table and not table[name].any()]
    empty += [label for label in ATTACKS.values() if label in table and (table[label] == "–").all()]
    alike = [name for name in ("arch", "threat") if name in table and table[name].nunique() == 1]
    return table.drop(columns=empty + alike)


def _cell(row: Mapping[Any, Any], name: str) -> str:
    return percent(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))


def notes(row: Mapping[Any, Any]) -> str:
    """What a reader of a leaderboard row must know: stale (its numbers would be others today), warnings."""
    said = row.get("warnings")
    warnings = [said] if isinstance(said, str) and said else list(said) if isinstance(said, list | tuple) else []
    return "; ".join((["stale"] if row.get("stale") else []) + warnings)


def over_seeds(aggregate: "pd.DataFrame", board: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """Mean ± standard deviation over seeds of each method; one seed has no deviation and says so.

    Args:
        aggregate: of `robustlib.evaluation.aggregate`.
        board: the leaderboard it was made of, for the gravest badges of each method's runs.
    """
    import pandas as pd

    rows = []
    for row in aggregate.to_dict("records"):
        numbers: dict[str, Any] = {}
        for name in (*FIRST, *ATTACKS):  # first what matters most
            label = ATTACKS[name]
            mean, std = row.get(f"{name}_mean"), row.get(f"{name}_std")
            if mean is None or mean != mean:  # not every model meets every attack
                numbers[label] = "–"
            else:
                numbers[label] = percent(mean) if std is None or std != std else f"{100 * mean:.1f} ± {100 * std:.1f} %"
            if name == "worst" and board is not None:
                numbers |= _gravest(row, board)
        who: dict[str, Any] = {
            key: row[key] for key in ("method", "arch", "changed", "attack passes", "seeds") if key in row
        }
        rows.append(who | numbers)
    return _without_dull(pd.DataFrame(rows))


def _gravest(row: Mapping[Any, Any], board: "pd.DataFrame") -> dict[str, str]:
    """The gravest badge of each kind among the runs that a row sums up."""
    shared = [key for key in ("dataset", "method", "arch", "changed", "precision", "n") if key in row and key in board]
    mine = board[(board[shared] == [row[key] for key in shared]).all(axis=1)]
    return {kind: verdict(gravest(mine[f"{kind}_badge"])) for kind in BADGES if f"{kind}_badge" in mine}


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
                "headline": verdict(run.audit().get("badges", {}).get("headline", {}).get("verdict", "")),
                "notes": ", ".join(filter(None, [params.get("changed", ""), "stale" if run.stale else ""])),
                "run directory": run.path,
            }
        )
    return pd.DataFrame(rows)


def incomplete(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The runs that a comparison does not show, or not in full, and what they lack.

    Args:
        frame: of `robustlib.evaluation.incomplete`; the preset is told where there are several.
    """
    shared = [name for name in ("preset",) if frame[name].nunique() > 1]
    return frame[["run", *shared, "missing"]].rename(columns={"missing": "what is missing"}).reset_index(drop=True)

"""The paper's protocol and the adaptive minimum side by side, for a model that can be attacked through other views of itself."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from robustlib.tables.words import attack_name, percent, show

if TYPE_CHECKING:
    import pandas as pd

DEPLOYED, MINIMUM, FAR = "the deployed logits", "adaptive minimum", "everything so far"
COSTLY = ("pgd100x5", "cw100x5", "autoattack")  # on surrogates: only of what still stood
SEARCHES = ("pgd20", "cw50", "pgd_eot", "aa_standard")  # on surrogates: in full
ALONE = (*SEARCHES, "autoattack")  # attacks with a column of their own


def adaptive(results: Mapping[str, Any]) -> "pd.DataFrame":
    """What each view of a model tells an attacker: first the deployed logits, which papers attack, last the minimum over all.

    Costly attacks on surrogates met only what nothing before them had broken; their rows stand below the views, with the share
    that was left after them on all views. Views of a stochastic model met everything in full.

    Args:
        results: of `robustlib.evaluation.evaluate_run`.

    Returns:
        A row a view and columns of text; no rows for a model without surrogates.
    """
    import pandas as pd

    rows = {row["attack"]: row for row in results["rows"]}
    searched, costly = _split(rows)
    columns = [attack_name(name) for name in ALONE if name in rows]
    table = {DEPLOYED: _cells(rows, "", ALONE)} if searched else {}
    for view in searched:
        table[view] = _cells(rows, f"@{view}", SEARCHES)
    for attack, left in costly.items():
        table[f"{attack_name(attack)} on surrogates"] = {FAR: percent(rows[left]["accuracy"])}
    if searched:
        worst = rows["worst"]
        table[MINIMUM] = {FAR: percent(worst["accuracy"], worst["low"], worst["high"])}
    frame = pd.DataFrame.from_dict(table, orient="index", columns=[*columns, FAR])
    return frame.fillna("–").rename_axis("searched on")


def adaptive_words(results: Mapping[str, Any], protocol: str = "autoattack") -> str:
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

    if words := adaptive_words(results, protocol):
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

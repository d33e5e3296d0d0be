"""What all tables share: how a number and a verdict are written, how a table is shown."""

from collections.abc import Iterable

import pandas as pd

# How a verdict of the audit is written: a sign and a word, so that colour is never all there is. The gravest first.
VERDICTS = {"red": "✕ red", "amber": "▲ amber", "": "– not audited", "pass": "✓ pass", "n/a": "– n/a"}


def verdict_label(word: object) -> str:
    """A verdict with its sign, e.g. "▲ amber"; nothing, or none that is known, is "– not audited"."""
    return VERDICTS.get(str(word), VERDICTS[""])


def worst_verdict(verdicts: Iterable[object]) -> str:
    """The gravest of several verdicts; one that is missing weighs more than one that passed."""
    known = [str(word) if str(word) in VERDICTS else "" for word in verdicts]
    return min(known, key=list(VERDICTS).index, default="")


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A fraction as "75.2 %", with its interval "75.2 % (71.3–78.8)"; "–" for a number that is not there."""
    if value is None or value != value:
        return "–"
    interval = f" ({100 * low:.1f}–{100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f} %{interval}"


def mean_percent(mean: float | None, std: float | None) -> str:
    """The mean of fractions over seeds as "75.2 ± 1.3 %"; one seed has no deviation."""
    if mean is None or mean != mean or std is None or std != std:
        return percent(mean)
    return f"{100 * mean:.1f} ± {100 * std:.1f} %"


def number(value: float, low: float, high: float) -> str:
    """A number with its interval, "0.412 (0.398–0.426)"; "–" for one that is not there."""
    return "–" if value != value else f"{value:.3f} ({low:.3f}–{high:.3f})"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, "+2.4" or "−2.4"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def show(table: pd.DataFrame) -> None:
    """Displays a table in a notebook with its texts in full (pandas would cut them at 50 characters)."""
    from IPython.display import display

    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        named = table.reset_index() if table.index.name else table
        data = {"text/html": named.to_html(index=False, border=0), "text/plain": named.to_string(index=False)}
    display(data, raw=True)

"""Figures of many runs beside each other: what robustness costs in clean accuracy and in time."""

from typing import TYPE_CHECKING, Any

from robustlib.figures.canvas import Figure, axes, legend_below, looks, needs, pc, percent, style, title_of, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

COLUMNS = ("method", "seed", "clean", "clean_low", "clean_high", "worst", "worst_low", "worst_high", "minutes")


def trade_off(leaderboard: "DataFrame") -> Figure:
    """Clean against worst-case accuracy, one dot for each run, with 95 % intervals; up and right is better.

    Args:
        leaderboard: one row a run: `method`, `clean`, `worst` (fractions), optionally `title` and the ends of the
            intervals `clean_low`, `clean_high`, `worst_low`, `worst_high`, and `minutes` of training, told in the legend.
    """
    rows = _titled(needs("trade-off", leaderboard, ["clean", "worst"]))
    with style():
        fig, (axis,) = axes(height=4.4)
        _dots(axis, rows, "clean", xerr=whiskers(rows, "clean"))
        percent(axis, "x")
        axis.set_xlabel("clean accuracy")
        axis.set_title("Accuracy and robustness of each run")
        legend_below(fig, axis)
    alt = f"Clean against worst-case accuracy of {len(rows)} runs. {_say_methods(rows, 'clean')}"
    return Figure(fig, alt, _numbers(rows))


def cost(leaderboard: "DataFrame") -> Figure:
    """What robustness cost: minutes of training against worst-case accuracy, one dot for each run.

    Args:
        leaderboard: as for `trade_off`, with `minutes` instead of `clean`.
    """
    rows = _titled(needs("cost", leaderboard, ["minutes", "worst"]))
    with style():
        fig, (axis,) = axes(height=4.4)
        _dots(axis, rows, "minutes")
        axis.set_xlabel("minutes of training")
        if rows["minutes"].min() > 0 and rows["minutes"].max() > 20 * rows["minutes"].min():
            axis.set_xscale("log")
        else:
            axis.set_xlim(left=0)
        axis.set_title("Robustness against the time it took")
        legend_below(fig, axis)
    alt = f"Training time against worst-case accuracy of {len(rows)} runs. {_say_methods(rows, 'minutes')}"
    return Figure(fig, alt, _numbers(rows))


def _titled(rows: "DataFrame") -> "DataFrame":
    return rows.assign(method=[title_of(row) for row in rows.to_dict("records")], title="", changed="")


def _numbers(rows: "DataFrame") -> "DataFrame":
    return rows[[name for name in COLUMNS if name in rows]]


def _dots(axis: "Axes", rows: "DataFrame", x: str, xerr: Any = None) -> None:
    """Scatter `x` against worst-case accuracy, a colour and marker for each method."""
    yerr = whiskers(rows, "worst")
    for title, look in looks(sorted(rows["method"].unique())).items():
        mine = (rows["method"] == title).to_numpy()
        dot: dict[str, Any] = {
            "marker": look["marker"],
            "color": look["color"],
            "ms": 8,
            "mec": "white",
            "mew": 0.6,
            "ls": "none",
        }
        for name, ends in (("xerr", xerr), ("yerr", yerr)):
            dot[name] = None if ends is None else ends[:, mine]
        label = title + (f", {_minutes(rows['minutes'][mine].mean())}" if x == "clean" and "minutes" in rows else "")
        axis.errorbar(rows[x][mine], rows["worst"][mine], label=label, elinewidth=1.1, **dot)
    percent(axis)
    axis.set_ylabel("worst-case robust accuracy")
    axis.margins(0.12)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.02))  # accuracies below zero are no place for a reader's eye


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes == minutes else "unknown time"


def _say_methods(rows: "DataFrame", x: str) -> str:
    unit = pc if x == "clean" else _minutes
    said = []
    for title, mine in rows.groupby("method"):
        runs = f"mean of {len(mine)} runs: " if len(mine) > 1 else ""
        text = (
            f"{title}: {runs}{unit(mine[x].mean())}{' clean' * (x == 'clean')}, {pc(mine['worst'].mean())} worst case"
        )
        said.append(text + (f", {_minutes(mine['minutes'].mean())}" if x == "clean" and "minutes" in mine else ""))
    return "; ".join(said) + "."

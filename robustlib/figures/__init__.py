"""The figures of the reports: one function for each, data in, `Figure(fig, alt)` out.

Nothing here knows runs, files or notebooks. Colours are colour-blind safe and never alone: every series also has
its own marker or line style.
"""

from robustlib.figures.attacks import accuracy_bars, cascade
from robustlib.figures.canvas import Figure, show, to_png
from robustlib.figures.leaderboard import cost, trade_off
from robustlib.figures.run import robustness_curves, training_curves

__all__ = [
    "Figure",
    "accuracy_bars",
    "cascade",
    "cost",
    "robustness_curves",
    "show",
    "to_png",
    "trade_off",
    "training_curves",
]

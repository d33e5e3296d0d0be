"""The figures of the reports: one function for each, data in, `Figure(fig, alt, data)` out.

Nothing here knows runs, files or notebooks. Colours are colour-blind safe and never alone: every series also has
its own marker or line style.
"""

from robustlib.figures.atlas import umap_atlas
from robustlib.figures.attacks import accuracy_bars, accuracy_dots, cascade
from robustlib.figures.canvas import Figure, show, to_png
from robustlib.figures.claims import claim_effects
from robustlib.figures.distances import accuracy_distance, distance_distributions
from robustlib.figures.examples import example_strips
from robustlib.figures.features import alignment_exclusion, pair_distances
from robustlib.figures.flow import confusion_flow
from robustlib.figures.leaderboard import cost, trade_off
from robustlib.figures.plane import metric_plane
from robustlib.figures.probes import probe_curves, sweep
from robustlib.figures.purification import purification_steps, transform_surface
from robustlib.figures.run import robustness_curves, training_curves
from robustlib.figures.seeds import feature_gap_curves, robustness_over_seeds

__all__ = [
    "Figure",
    "accuracy_bars",
    "accuracy_distance",
    "accuracy_dots",
    "alignment_exclusion",
    "cascade",
    "claim_effects",
    "confusion_flow",
    "cost",
    "distance_distributions",
    "example_strips",
    "feature_gap_curves",
    "metric_plane",
    "pair_distances",
    "probe_curves",
    "purification_steps",
    "robustness_curves",
    "robustness_over_seeds",
    "show",
    "sweep",
    "to_png",
    "trade_off",
    "training_curves",
    "transform_surface",
    "umap_atlas",
]

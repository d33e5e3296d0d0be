"""The figures of the reports: one function for each, data in, `Figure(fig, alt, data)` out.

Nothing here knows runs, files or notebooks. Colours are colour-blind safe and never alone: every series also has
its own marker or line style.
"""

from robustlib.figures.attacks import accuracy_bars, accuracy_dots, cascade, example_strips
from robustlib.figures.canvas import Figure, show, to_png
from robustlib.figures.comparisons import accuracy_distance, claim_effects, cost, distance_distributions, trade_off
from robustlib.figures.features import alignment_exclusion, confusion_flow, pair_distances
from robustlib.figures.maps import metric_plane, umap_atlas
from robustlib.figures.probes import probe_curves, purification_steps, sweep, transform_surface
from robustlib.figures.runs import feature_gap_curves, robustness_curves, robustness_over_seeds, training_curves

"""The figures of the reports: one function for each, data in, `Figure(fig, alt, data)` out.

Nothing here knows runs, files or notebooks. Colours are colour-blind safe and never alone: every series also has
its own marker or line style. `class_names` are by label; numbers if not given.
"""

from robustlib.figures.canvas import Figure, show, to_png
from robustlib.figures.comparisons import (
    accuracy_bars,
    accuracy_distance,
    accuracy_dots,
    agreement,
    cascade,
    claim_effects,
    cost,
    distance_distributions,
    trade_off,
)
from robustlib.figures.curves import (
    checkpoint_curves,
    feature_gap_curves,
    probe_curves,
    robustness_curves,
    robustness_over_seeds,
    sweep,
    training_curves,
)
from robustlib.figures.features import alignment_exclusion, metric_plane, pair_distances, umap_atlas
from robustlib.figures.images import confusion_flow, example_strips, purification_steps, transform_surface

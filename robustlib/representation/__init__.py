"""What a defence does to the feature space: gaps, alignment, exclusion, spectra, slopes, probes, and joint maps.

Measures take tables of features (N, D); `features` makes them of a model and a split; `gap_table`, `measure_runs` and
`embed_runs` do it for finished runs, on the same images and with what was made before.
"""

from robustlib.representation.copies import (
    attacked_pairs,
    consistency,
    displacement,
    forward_cost,
    gap_probe,
    image_copies,
    purification_steps,
    purified_copies,
    transform_surface,
)
from robustlib.representation.embedding import Embedding, embed, embed_path, trustworthiness
from robustlib.representation.features import Features, at_eps, features, layers
from robustlib.representation.jacobian import Plane, feature_jacobian_norm, metric_over_plane, pullback_metric
from robustlib.representation.measures import (
    alignment,
    cka,
    class_alignment,
    effective_rank,
    exclusion,
    feature_gap,
    knn_probe,
    linear_probe,
    measures,
    neural_collapse,
    principal_components,
    uniformity,
)
from robustlib.representation.runs import (
    EXAMPLES,
    embed_runs,
    gap_table,
    measure_runs,
    probe_attack,
    run_features,
    stored_measures,
)

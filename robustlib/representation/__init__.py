"""What a defence does to the feature space: gaps, alignment, exclusion, spectra, slopes, probes, and joint maps.

Measures take tables of features (N, D); `features` makes them of a model and a split; `gap_table`, `measure_runs` and
`embed_runs` do it for finished runs, on the same images and with what was made before.
"""

from robustlib.representation.embedding import Embedding, embed, embed_path, trustworthiness
from robustlib.representation.features import Features, at_eps, features, layers
from robustlib.representation.jacobian import (
    Plane,
    feature_jacobian_norm,
    local_lipschitz,
    metric_over_plane,
    pullback_metric,
)
from robustlib.representation.measures import (
    Exclusion,
    NeuralCollapse,
    Probe,
    alignment,
    cka,
    class_alignment,
    effective_rank,
    exclusion,
    feature_gap,
    knn_probe,
    linear_probe,
    neural_collapse,
    principal_components,
    uniformity,
)
from robustlib.representation.pairs import Pairs, attacked_pairs, consistency, displacement, gap_probe, image_copies
from robustlib.representation.purification import forward_cost, purification_steps, purified_copies, transform_surface
from robustlib.representation.runs import (
    EXAMPLES,
    embed_runs,
    gap_table,
    measure_runs,
    measures,
    probe_attack,
    run_features,
)

"""What a defence does to the feature space: gaps, alignment, exclusion, spectra, slopes, probes, and joint maps.

Measures take tables of features (N, D); `features` makes them of a model and a split; `gap_table`, `measure_runs` and
`embed_runs` do it for finished runs, on the same images and with what was made before.
"""

from robustlib.representation.embedding import Embedding, embed, embed_path, trustworthiness
from robustlib.representation.features import Features, at_eps, features, layer_function, layers
from robustlib.representation.measures import (
    Exclusion,
    alignment,
    class_alignment,
    consistency,
    displacement,
    exclusion,
    feature_gap,
    feature_jacobian_norm,
    image_copies,
    local_lipschitz,
    uniformity,
)
from robustlib.representation.pairs import Pairs, attacked_pairs
from robustlib.representation.probes import (
    KNNProbe,
    LinearProbe,
    gap_probe,
    knn_probe,
    linear_probe,
)
from robustlib.representation.pullback import Plane, metric_over_plane, pullback_metric
from robustlib.representation.purification import forward_cost, purification_steps, purified_copies, transform_surface
from robustlib.representation.runs import (
    EXAMPLES,
    embed_runs,
    gap_rows,
    gap_table,
    measure_runs,
    measures,
    probe_attack,
    run_features,
)
from robustlib.representation.spectrum import NeuralCollapse, cka, effective_rank, neural_collapse, principal_components

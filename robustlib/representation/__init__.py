"""What a defence does to the feature space: gaps, alignment, exclusion, spectra, slopes, probes, and joint maps.

Measures take tables of features (N, D); `features` makes them of a model and a split; `gap_table`, `measure_runs` and
`embed_runs` do it for finished runs, on the same images and with what was made before.
"""

from robustlib.representation.consistency import consistency, image_copies, moved
from robustlib.representation.embedding import Embedding, embed, embed_path, trustworthiness
from robustlib.representation.features import Features, at_eps, features
from robustlib.representation.geometry import Exclusion, alignment, class_alignment, exclusion, feature_gap, uniformity
from robustlib.representation.layers import layer_function, layers
from robustlib.representation.lipschitz import feature_jacobian_norm, local_lipschitz
from robustlib.representation.of_runs import embed_runs, gap_rows, gap_table, measure_runs, measures
from robustlib.representation.pairs import Pairs, attacked_pairs
from robustlib.representation.probes import (
    MEASURES,
    KNNProbe,
    LinearProbe,
    gap_probe,
    knn_probe,
    linear_probe,
    training_probe,
)
from robustlib.representation.pullback import Plane, metric_over_plane, pullback_metric
from robustlib.representation.purification import (
    forward_cost,
    purification_steps,
    purified_copies,
    transform_surface,
)
from robustlib.representation.spectrum import NeuralCollapse, cka, effective_rank, neural_collapse, principal_components
from robustlib.representation.stored import EXAMPLES, probe_attack, run_features, snapshots

__all__ = [
    "EXAMPLES",
    "MEASURES",
    "Embedding",
    "Exclusion",
    "Features",
    "KNNProbe",
    "LinearProbe",
    "NeuralCollapse",
    "Pairs",
    "Plane",
    "alignment",
    "at_eps",
    "attacked_pairs",
    "cka",
    "class_alignment",
    "consistency",
    "effective_rank",
    "embed",
    "embed_path",
    "embed_runs",
    "exclusion",
    "feature_gap",
    "feature_jacobian_norm",
    "features",
    "forward_cost",
    "gap_probe",
    "gap_rows",
    "gap_table",
    "image_copies",
    "knn_probe",
    "layer_function",
    "layers",
    "linear_probe",
    "local_lipschitz",
    "measure_runs",
    "measures",
    "metric_over_plane",
    "moved",
    "neural_collapse",
    "principal_components",
    "probe_attack",
    "pullback_metric",
    "purification_steps",
    "purified_copies",
    "run_features",
    "snapshots",
    "training_probe",
    "transform_surface",
    "trustworthiness",
    "uniformity",
]

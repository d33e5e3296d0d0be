"""Honest evaluation: per-example records that survive interruptions, intervals on every number, curves, runs."""

from robustlib.evaluation.distances import (
    adversarial_distances,
    bootstrap,
    compare_distances,
    distances_over_seeds,
    select_strength,
    shared_distances,
)
from robustlib.evaluation.evaluate import evaluate, robustness_curve
from robustlib.evaluation.extra import extra_attacks
from robustlib.evaluation.measurements import measure_distances, measure_unseen, search_precision
from robustlib.evaluation.metrics import accuracy, cascade_steps, summarise, t_interval, valid, wilson
from robustlib.evaluation.paired import agreement, paired_differences, withstood_by
from robustlib.evaluation.protocols import StochasticProtocol, adaptive_attacks, standard_attacks, stochastic_protocol
from robustlib.evaluation.reference import PublishedProtocol, claf_published_protocol, compare_with_reference
from robustlib.evaluation.runs import aggregate, evaluate_run, has_new_sources, incomplete, leaderboard, new_weights
from robustlib.evaluation.schedule import Progress, adapt
from robustlib.evaluation.stochastic import check_plateau, draw_statistics, measure_randomness

"""Honest evaluation: per-example records that survive interruptions, intervals on every number, curves, runs."""

from robustlib.evaluation.curves import robustness_curve
from robustlib.evaluation.distances import (
    adversarial_distances,
    bootstrap,
    choose_strengths,
    compare_distances,
    distances_over_seeds,
    measure_distances,
    shared_distances,
)
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.leaderboard import aggregate, incomplete, leaderboard
from robustlib.evaluation.metrics import accuracy, cascade, summarise, t_interval, valid, wilson
from robustlib.evaluation.protocols import Budget, adaptive_attacks, budget_of, standard_attacks
from robustlib.evaluation.published_protocol import Legacy, legacy_claf_eval
from robustlib.evaluation.reference import compare_with_reference
from robustlib.evaluation.runs import evaluate_run, has_new_twins, measure_unseen
from robustlib.evaluation.schedule import Progress, suited
from robustlib.evaluation.stochastic import check_plateau, fixed_draw, luck, measure_randomness

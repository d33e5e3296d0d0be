"""Honest evaluation: per-example records that survive interruptions, intervals on every number, curves, runs."""

from robustlib.evaluation.budgets import Budget, budget_of
from robustlib.evaluation.curves import robustness_curve
from robustlib.evaluation.distances import adversarial_distances, bootstrap, compare_distances, shared_distances
from robustlib.evaluation.evaluate import evaluate
from robustlib.evaluation.leaderboard import aggregate, incomplete, leaderboard
from robustlib.evaluation.legacy import Legacy, legacy_claf_eval
from robustlib.evaluation.numbers import accuracy, cascade, summarise, wilson
from robustlib.evaluation.randomness import fixed_draw, luck
from robustlib.evaluation.records import valid
from robustlib.evaluation.reference import compare_with_reference
from robustlib.evaluation.run_distances import measure_distances
from robustlib.evaluation.run_randomness import check_plateau, measure_randomness
from robustlib.evaluation.run_results import evaluate_run, has_new_twins
from robustlib.evaluation.run_unseen import measure_unseen
from robustlib.evaluation.steps import Progress
from robustlib.evaluation.strengths import choose_strengths, distances_over_seeds
from robustlib.evaluation.suites import adaptive_attacks, standard_attacks
from robustlib.evaluation.views import suited

__all__ = [
    "Budget",
    "Legacy",
    "Progress",
    "accuracy",
    "adaptive_attacks",
    "adversarial_distances",
    "aggregate",
    "bootstrap",
    "budget_of",
    "cascade",
    "check_plateau",
    "choose_strengths",
    "compare_distances",
    "compare_with_reference",
    "distances_over_seeds",
    "evaluate",
    "evaluate_run",
    "fixed_draw",
    "has_new_twins",
    "incomplete",
    "leaderboard",
    "legacy_claf_eval",
    "luck",
    "measure_distances",
    "measure_randomness",
    "measure_unseen",
    "robustness_curve",
    "shared_distances",
    "standard_attacks",
    "suited",
    "summarise",
    "valid",
    "wilson",
]

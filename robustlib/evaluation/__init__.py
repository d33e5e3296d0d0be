"""Honest evaluation: per-example records, intervals on every number, curves, and the standard evaluation of runs."""

from robustlib.evaluation.numbers import accuracy, robustness_curve, summarise, wilson
from robustlib.evaluation.records import evaluate, standard_attacks, valid
from robustlib.evaluation.run_results import aggregate, evaluate_run, leaderboard

__all__ = [
    "accuracy",
    "aggregate",
    "evaluate",
    "evaluate_run",
    "leaderboard",
    "robustness_curve",
    "standard_attacks",
    "summarise",
    "valid",
    "wilson",
]

"""Tables for people: numbers in, a DataFrame of text out, the same in notebooks, reports and the terminal.

Nothing here knows runs or files. Accuracies are shown with their 95 % intervals, never alone.
"""

from robustlib.tables.adaptive import adaptive, adaptive_words, show_adaptive
from robustlib.tables.audit import badges, checks, objections, show_badges
from robustlib.tables.board import incomplete, inventory, leaderboard, notes, over_seeds
from robustlib.tables.claims import claims
from robustlib.tables.distances import MINIMA, correlations, distances, distances_over_seeds, strengths
from robustlib.tables.geometry import consistency, geometry
from robustlib.tables.randomness import cost, inflation, plateau_words, randomness, unseen
from robustlib.tables.run import accuracies, cascade, hyperparameters, legacy, provenance, splits, warnings
from robustlib.tables.words import ATTACKS, VERDICTS, attack_name, gravest, percent, show, verdict

__all__ = [
    "ATTACKS",
    "MINIMA",
    "VERDICTS",
    "accuracies",
    "adaptive",
    "adaptive_words",
    "attack_name",
    "badges",
    "cascade",
    "checks",
    "claims",
    "consistency",
    "correlations",
    "cost",
    "distances",
    "distances_over_seeds",
    "geometry",
    "gravest",
    "hyperparameters",
    "incomplete",
    "inflation",
    "inventory",
    "leaderboard",
    "legacy",
    "notes",
    "objections",
    "over_seeds",
    "percent",
    "plateau_words",
    "provenance",
    "randomness",
    "show",
    "show_adaptive",
    "show_badges",
    "splits",
    "strengths",
    "unseen",
    "verdict",
    "warnings",
]

"""Tables for people: numbers in, a DataFrame of text out, the same in notebooks, reports and the terminal.

Nothing here knows runs or files. Accuracies are shown with their 95 % intervals, never alone.
"""

from robustlib.figures.labels import ATTACKS, attack_name
from robustlib.workbook.tables.comparisons import (
    MINIMA,
    claims,
    correlations,
    distances,
    distances_over_seeds,
    incomplete,
    inventory,
    leaderboard,
    notes,
    over_seeds,
    strength_grid,
)
from robustlib.workbook.tables.features import (
    consistency,
    cost,
    geometry,
    inflation,
    plateau_summary,
    random_answers,
    randomness,
    unseen,
)
from robustlib.workbook.tables.labels import VERDICTS, percent, show, verdict_label, worst_verdict
from robustlib.workbook.tables.runs import (
    accuracies,
    adaptive,
    adaptive_summary,
    autoattack_steps,
    badges,
    checks,
    hyperparameters,
    objections,
    provenance,
    published_protocol,
    show_adaptive,
    show_badges,
    splits,
    warnings,
)

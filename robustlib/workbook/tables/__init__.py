"""Tables for people: numbers in, a DataFrame of text out, the same in notebooks, reports and the terminal.

Only `inventory` knows runs. Accuracies are shown with their 95 % intervals, never alone.
"""

from robustlib.figures.canvas import ATTACKS, VERDICTS, attack_name, mean_percent, percent, verdict_label, worst_verdict
from robustlib.workbook.tables.claims import claims, claims_by_preset
from robustlib.workbook.tables.comparisons import (
    BADGES,
    MINIMA,
    consistency,
    correlations,
    cost,
    distances,
    distances_over_seeds,
    geometry,
    incomplete,
    inflation,
    inventory,
    lacks,
    leaderboard,
    objections,
    over_seeds,
    paired,
    strength_grid,
    unseen,
)
from robustlib.workbook.tables.runs import (
    accuracies,
    adaptive,
    adaptive_summary,
    as_markdown,
    autoattack_steps,
    checks,
    fold,
    hyperparameters,
    network,
    plateau_summary,
    provenance,
    published_protocol,
    random_answers,
    randomness,
    sanity,
    show,
    show_adaptive,
    show_badges,
    show_cards,
    splits,
    warnings,
)

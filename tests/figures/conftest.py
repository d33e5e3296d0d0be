"""Data of each figure by hand, and ALL of them drawn from it."""

import numpy as np
import pandas as pd

from robustlib import figures
from tests.fixtures import cascade, curve, leaderboard, metrics

ROWS = [{"attack": "clean", "accuracy": 0.986, "low": 0.97, "high": 0.995}, {"attack": "worst", "accuracy": 0.736}]
NUMBERS = np.random.default_rng(0)
PAIRS = {"clean to adversarial": [0.1, 0.2, 0.3], "same class": [0.5, 0.6, 0.9], "other class": [1.0, 1.2, np.inf]}
CLASSES = np.repeat([0, 1, 2], 20)
MAP = (NUMBERS.normal(size=(60, 2)), NUMBERS.normal(size=(60, 2)))
BEFORE, AFTER = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2, -1]
IMAGES = NUMBERS.uniform(0, 0.9, (2, 1, 8, 8))
NAMES = ["cat", "dog"]
EFFECTS = [
    ("A beats B.", 0.03, 0.02, 0.04, "supported", "supported"),
    ("A costs.", 0.03, -np.inf, np.inf, "undecided", "1 of 8 seeds"),
    ("A is new.", np.nan, np.nan, np.nan, "undecided", "no seeds"),
]
EFFECTS = pd.DataFrame(EFFECTS, columns=["claim", "effect", "low", "high", "verdict", "words"]).assign(smallest=0.01)
CLAIMS = EFFECTS.to_dict("records")

# Four seeds of A, one of B; A's seeds differ by a point from each other.
CURVES = pd.concat(
    curve().assign(method=method, seed=seed, accuracy=curve()["accuracy"] - 0.01 * seed)
    for method, seed in (("A", 0), ("A", 1), ("A", 2), ("A", 3), ("B", 0))
)

# Feature gaps of two seeds at two radii and two layers, whose names do not sort by depth.
POINTS = [(m, s, eps, layer) for m in ("a", "b") for s in (0, 1) for eps in (0.2, 0.1) for layer in ("stem", "head")]
GAPS = pd.DataFrame(POINTS, columns=["method", "seed", "eps", "layer"]).assign(cosine=0.1)
GAPS = GAPS.assign(title=GAPS["method"].str.upper(), relative_l2=GAPS["eps"] * (1 + GAPS["seed"]))

DISTANCES = {"none": [0.4, 0.2, 0.3, 0.5], "rep-spectral": [0.6, 0.5, 0.2, 0.9]}

# No penalty, and two variants at two strengths, of which the stronger costs too much accuracy in one.
STRENGTHS = [("none", 0.0, 0.97, 0.50, 0), ("rep", 0.01, 0.97, 0.58, 0), ("rep", 0.1, 0.965, 0.61, 1)]
STRENGTHS += [("ll", 0.01, 0.968, 0.55, 1), ("ll", 0.1, 0.91, 0.7, 0)]
GRID = pd.DataFrame(STRENGTHS, columns=["variant", "strength", "accuracy", "distance", "chosen"])
GRID = GRID.assign(low=GRID["distance"] - 0.02, high=GRID["distance"] + 0.03, chosen=GRID["chosen"] == 1)

# Two runs of A, one of B.
PLANE = pd.DataFrame({"method": ["A", "A", "B"], "alignment": [0.1, 0.3, 0.5], "adversarial_margin": [0.4, 0.6, 0.2]})


def probes(seeds: int = 3) -> dict[str, pd.DataFrame | list[pd.DataFrame]]:
    """A fine-tuning of five epochs after a natural stage: vAFT of several seeds without f1, AFD of one with it."""
    e = np.arange(6)
    stages = [pd.DataFrame({"stage": "natural", "epoch": e, "probe/h/relative_l2": 9.0})]
    tuned = pd.DataFrame({"stage": "tuning", "epoch": e, "probe/h/relative_l2": 0.3 + 0.02 * e})
    vaft = [pd.concat([*stages, tuned.assign(**{"probe/h/relative_l2": 0.4 + 0.1 * k})]) for k in range(seeds)]
    return {"vAFT": vaft, "AFD": pd.concat([*stages, tuned.assign(**{"probe/f1/f2": -0.1 * e})])}


PROBES = ["probe/h/relative_l2", "probe/f1/f2"]

# Two hyper-parameters of AFD, two seeds each; beta's values are not in order.
VALUES = [("alpha", 0.01), ("alpha", 0.05), ("beta", 1), ("beta", 0), ("beta", 0.25)]
SWEPT = pd.DataFrame([(*pair, s) for pair in VALUES for s in (0, 1)], columns=["parameter", "value", "seed"])
SWEPT = SWEPT.assign(method="AFD", clean=0.98, robust=0.7 + 0.02 * SWEPT["seed"] - 0.1 * SWEPT["value"])


def heat() -> pd.DataFrame:
    """Two models on a grid of 9 x 5 points; A decides at across = 0.5, B's metric is ten times A's and knows no boundary."""
    across, up = (part.ravel() for part in np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 0.5, 5)))
    table = pd.DataFrame({"across": across, "up": up, "logit 0": 1.0})
    a = table.assign(model="A", top_eigenvalue=1 + across, **{"logit 1": 0.5 + across})
    return pd.concat([a, table.assign(model="B", top_eigenvalue=10 + 10 * across, **{"logit 1": 0.0})])


POINT = pd.DataFrame({"across": [0.1], "up": [0.2], "label": [1]})

# Two images on their way through a purifier that halves what the attack did.
PURIFIED = {"image": IMAGES, "purified": IMAGES}, {"image": IMAGES + 0.04, "purified": IMAGES + 0.02}
ANSWERS = {"image": ([0, 1], [1, 0]), "purified": ([0, 1], [0, 0])}

DOTS = pd.DataFrame({"row": ["RT2", "RT2", "RT1"], "series": ["weak", "strong", "weak"], "accuracy": [0.5, 0.2, 0.4]})
DOTS = DOTS.assign(low=DOTS["accuracy"] - 0.1, high=DOTS["accuracy"] + 0.1)

# Two missing rates, three numbers of mixes.
SURFACE = pd.DataFrame({"missing": [0.0, 0.0, 0.0, 0.25, 0.25, 0.25], "mixes": [1, 4, 16] * 2})
SURFACE["apart"] = 0.2 * (1 - SURFACE["missing"])
SURFACE["changed"] = 0.1 / SURFACE["mixes"] ** 0.5 + SURFACE["missing"]

FIGURES = {  # how each is drawn, and a column of its data with a number in it: one that the alt text tells, or that was given
    "training": (lambda: figures.training_curves(metrics()), "loss", 2 / 7),
    "eps": (lambda: figures.robustness_curves({"A": curve(), "B": curve()}, threat_eps=0.2), "accuracy", 0.75),
    "steps": (lambda: figures.robustness_curves({"A": curve("steps")}, x="steps"), "steps", 100),
    "trade-off": (lambda: figures.trade_off(leaderboard()), "worst_high", 0.75),
    "cost": (lambda: figures.cost(leaderboard()), "minutes", 11.5),
    "bars": (lambda: figures.accuracy_bars(ROWS), "accuracy", 0.736),
    "cascade": (lambda: figures.cascade(cascade()), "taken", 0.22),
    "over seeds": (lambda: figures.robustness_over_seeds(CURVES, threat_eps=0.2), "accuracy", 0.735),
    "gap over eps": (lambda: figures.feature_gap_curves(GAPS.query("layer == 'head'"), "eps"), "gap", 0.15),
    "gap over depth": (lambda: figures.feature_gap_curves(GAPS.query("eps == 0.1"), "layer"), "gap", 0.15),
    "pairs": (lambda: figures.pair_distances({"A": PAIRS, "B": PAIRS}), "median", 1.1),
    "plane": (lambda: figures.alignment_exclusion(PLANE), "adversarial_margin", 0.6),
    "atlas": (lambda: figures.umap_atlas({"UMAP": MAP, "PCA": MAP}, CLASSES, note="A note."), "x", MAP[1][59, 0]),
    "flow": (lambda: figures.confusion_flow(BEFORE, AFTER, ["cat", "dog", "bird"]), "share", 0.3),
    "strips": (lambda: figures.example_strips(IMAGES, IMAGES + 0.02, [0, 1], ([0, 1], [0, 0]), NAMES), "example", 1),
    "claims": (lambda: figures.claim_effects(CLAIMS), "effect", 0.03),
    "probes": (lambda: figures.probe_curves(probes(), PROBES, {PROBES[1]: "cos(f1, f2)"}), "value", -0.5),
    "sweep": (lambda: figures.sweep(SWEPT, {"beta": 0.25}, {"robust": "PGD-20"}), "accuracy", 0.685),
    "metric": (lambda: figures.metric_plane(heat(), POINT), "top_eigenvalue", 1.5),
    "distances": (lambda: figures.distance_distributions(DISTANCES), "distance", 0.9),
    "accuracy-distance": (lambda: figures.accuracy_distance(GRID), "high", 0.64),
    "purifier": (lambda: figures.purification_steps(*PURIFIED, [0, 1], ANSWERS, NAMES), "difference", 0.02),
    "dots": (lambda: figures.accuracy_dots(DOTS, "Weak and strong"), "high", 0.6),
    "surface": (lambda: figures.transform_surface(SURFACE), "changed", 0.35),
}
ALL = {name: draw for name, (draw, _, _) in FIGURES.items()}

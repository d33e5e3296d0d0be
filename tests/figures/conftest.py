"""Made-up data of each figure, and ALL of them drawn from it."""

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

CLAIMS = [
    dict(zip(("claim", "effect", "low", "high", "verdict", "words"), row, strict=True)) | {"smallest": 0.01}
    for row in (
        ("A beats B.", 0.03, 0.02, 0.04, "supported", "supported"),
        ("A costs.", 0.03, -np.inf, np.inf, "undecided", "1 of 8 seeds"),
        ("A is new.", np.nan, np.nan, np.nan, "undecided", "no seeds"),
    )
]


def runs_curves() -> pd.DataFrame:
    """Four seeds of A, one of B; A's seeds differ by a point from each other."""
    rows = [(method, seed) for method, seeds in (("A", 4), ("B", 1)) for seed in range(seeds)]
    frames = [curve().assign(method=method, seed=seed) for method, seed in rows]
    return pd.concat([f.assign(accuracy=f["accuracy"] - 0.01 * f["seed"]) for f in frames])


def gaps() -> pd.DataFrame:
    """Feature gaps of two seeds at two radii and two layers, whose names do not sort by depth."""
    rows = [(m, s, eps, layer) for m in ("a", "b") for s in (0, 1) for eps in (0.2, 0.1) for layer in ("stem", "head")]
    table = pd.DataFrame(rows, columns=["method", "seed", "eps", "layer"])
    return table.assign(title=table["method"].str.upper(), relative_l2=table["eps"] * (1 + table["seed"]), cosine=0.1)


DISTANCES = {"none": [0.4, 0.2, 0.3, 0.5], "rep-spectral": [0.6, 0.5, 0.2, 0.9]}


def grid() -> pd.DataFrame:
    """No penalty, and two variants at two strengths, of which the stronger costs too much accuracy in one."""
    rows = [("none", 0.0, 0.97, 0.50, 0), ("rep", 0.01, 0.97, 0.58, 0), ("rep", 0.1, 0.965, 0.61, 1)]
    rows += [("ll", 0.01, 0.968, 0.55, 1), ("ll", 0.1, 0.91, 0.7, 0)]
    table = pd.DataFrame(rows, columns=["variant", "strength", "accuracy", "distance", "chosen"])
    return table.assign(low=table["distance"] - 0.02, high=table["distance"] + 0.03, chosen=table["chosen"] == 1)


def plane() -> pd.DataFrame:
    """Two runs of A, one of B."""
    rows = [("A", 0.1, 0.4), ("A", 0.3, 0.6), ("B", 0.5, 0.2)]
    return pd.DataFrame(rows, columns=["method", "alignment", "adversarial_margin"])


def probes(seeds: int = 3) -> dict[str, pd.DataFrame | list[pd.DataFrame]]:
    """A fine-tuning of five epochs after a natural stage: vAFT of several seeds without f1, AFD of one with it."""
    e = np.arange(6)
    stages = [pd.DataFrame({"stage": "natural", "epoch": e, "probe/h/relative_l2": 9.0})]
    tuned = pd.DataFrame({"stage": "tuning", "epoch": e, "probe/h/relative_l2": 0.3 + 0.02 * e})
    vaft = [pd.concat([*stages, tuned.assign(**{"probe/h/relative_l2": 0.4 + 0.1 * k})]) for k in range(seeds)]
    return {"vAFT": vaft, "AFD": pd.concat([*stages, tuned.assign(**{"probe/f1/f2": -0.1 * e})])}


def swept() -> pd.DataFrame:
    """Two hyper-parameters of AFD, two seeds each; beta's values are not in order."""
    pairs = [("alpha", 0.01), ("alpha", 0.05), ("beta", 1), ("beta", 0), ("beta", 0.25)]
    rows = [(*pair, seed) for pair in pairs for seed in (0, 1)]
    table = pd.DataFrame(rows, columns=["parameter", "value", "seed"]).assign(method="AFD", clean=0.98)
    return table.assign(robust=0.7 + 0.02 * table["seed"] - 0.1 * table["value"])


def heat() -> pd.DataFrame:
    """Two models on a grid of 9 x 5 points; A decides at across = 0.5, B's metric is ten times A's and knows no boundary."""
    across, up = (part.ravel() for part in np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 0.5, 5)))
    table = pd.DataFrame({"across": across, "up": up, "logit 0": 1.0, "logit 1": 0.0})
    tops = {"A": 1 + across, "B": 10 + 10 * across}
    models = [table.assign(model=name, top_eigenvalue=top) for name, top in tops.items()]
    models[0]["logit 1"] = 0.5 + across
    return pd.concat(models)


POINT = pd.DataFrame({"across": [0.1], "up": [0.2], "label": [1]})


def purified() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two images on their way through a purifier that halves what the attack did."""
    return {"image": IMAGES, "purified": IMAGES}, {"image": IMAGES + 0.04, "purified": IMAGES + 0.02}


SAID = {"image": ([0, 1], [1, 0]), "purified": ([0, 1], [0, 0])}

DOTS = pd.DataFrame(
    {"row": ["RT2", "RT2", "RT1"], "series": ["weak", "strong", "weak"], "accuracy": [0.5, 0.2, 0.4]}
).assign(low=lambda rows: rows["accuracy"] - 0.1, high=lambda rows: rows["accuracy"] + 0.1)


def surface() -> pd.DataFrame:
    """Two missing rates, three numbers of mixes."""
    table = pd.DataFrame([(rate, mixes) for rate in (0.0, 0.25) for mixes in (1, 4, 16)], columns=["missing", "mixes"])
    return table.assign(apart=0.2 * (1 - table["missing"]), changed=0.1 / table["mixes"] ** 0.5 + table["missing"])


ALL = {
    "training": lambda: figures.training_curves(metrics()),
    "eps": lambda: figures.robustness_curves({"A": curve(), "B": curve()}, threat_eps=0.2),
    "steps": lambda: figures.robustness_curves({"A": curve("steps")}, x="steps"),
    "trade-off": lambda: figures.trade_off(leaderboard()),
    "cost": lambda: figures.cost(leaderboard()),
    "bars": lambda: figures.accuracy_bars(ROWS),
    "cascade": lambda: figures.cascade(cascade()),
    "over seeds": lambda: figures.robustness_over_seeds(runs_curves(), threat_eps=0.2),
    "gap over eps": lambda: figures.feature_gap_curves(gaps().query("layer == 'head'"), "eps"),
    "gap over depth": lambda: figures.feature_gap_curves(gaps().query("eps == 0.1"), "layer"),
    "pairs": lambda: figures.pair_distances({"A": PAIRS, "B": PAIRS}),
    "plane": lambda: figures.alignment_exclusion(plane()),
    "atlas": lambda: figures.umap_atlas({"UMAP": MAP, "PCA": MAP}, CLASSES, note="Trustworthiness 0.98."),
    "flow": lambda: figures.confusion_flow(BEFORE, AFTER, ["cat", "dog", "bird"]),
    "strips": lambda: figures.example_strips(IMAGES, IMAGES + 0.02, [0, 1], ([0, 1], [0, 0]), ["cat", "dog"]),
    "claims": lambda: figures.claim_effects(CLAIMS),
    "probes": lambda: figures.probe_curves(
        probes(), ["probe/h/relative_l2", "probe/f1/f2"], {"probe/f1/f2": "cos(f1, f2)"}
    ),
    "sweep": lambda: figures.sweep(swept(), {"beta": 0.25}, {"robust": "PGD-20"}),
    "metric": lambda: figures.metric_plane(heat(), POINT),
    "distances": lambda: figures.distance_distributions(DISTANCES),
    "accuracy-distance": lambda: figures.accuracy_distance(grid()),
    "steps of a purifier": lambda: figures.purification_steps(*purified(), [0, 1], SAID, ["cat", "dog"]),
    "dots": lambda: figures.accuracy_dots(DOTS, "Weak and strong"),
    "surface": lambda: figures.transform_surface(surface()),
}

# Of each figure a column of its data and a number in it: one that the alt text tells, or that was given.
HOLDS = {
    "training": ("loss", 2 / 7),
    "eps": ("accuracy", 0.75),
    "steps": ("steps", 100),
    "trade-off": ("worst_high", 0.75),
    "cost": ("minutes", 11.5),
    "bars": ("accuracy", 0.736),
    "cascade": ("taken", 0.22),
    "over seeds": ("accuracy", 0.735),
    "gap over eps": ("gap", 0.15),
    "gap over depth": ("gap", 0.15),
    "pairs": ("median", 1.1),
    "plane": ("adversarial_margin", 0.6),
    "atlas": ("x", MAP[1][59, 0]),
    "flow": ("share", 0.3),
    "strips": ("example", 1),
    "claims": ("effect", 0.03),
    "probes": ("value", -0.5),
    "sweep": ("accuracy", 0.685),
    "metric": ("top_eigenvalue", 1.5),
    "distances": ("distance", 0.9),
    "accuracy-distance": ("high", 0.64),
    "steps of a purifier": ("difference", 0.02),
    "dots": ("high", 0.6),
    "surface": ("changed", 0.35),
}

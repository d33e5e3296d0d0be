"""Figures: what they show, what they say to those who cannot see them, and that they leave nothing behind."""

import io
import subprocess
import sys
from numbers import Number

import numpy as np
import pandas as pd
import pytest

from robustlib import figures
from robustlib.errors import InputError
from tests import fixtures
from tests.fixtures import cascade, curve, leaderboard, metrics

ROWS = [{"attack": "clean", "accuracy": 0.986, "low": 0.97, "high": 0.995}, {"attack": "worst", "accuracy": 0.736}]
NUMBERS = np.random.default_rng(0)
PAIRS = {"clean to adversarial": [0.1, 0.2, 0.3], "same class": [0.5, 0.6, 0.9], "other class": [1.0, 1.2, np.inf]}
CLASSES = np.repeat([0, 1, 2], 20)
MAP = (NUMBERS.normal(size=(60, 2)), NUMBERS.normal(size=(60, 2)))
BEFORE, AFTER = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2, -1]
IMAGES = NUMBERS.uniform(0, 0.9, (2, 1, 8, 8))
CLAIMS = [
    {"claim": "A beats B.", "effect": 0.03, "low": 0.02, "high": 0.04, "verdict": "supported", "words": "supported"},
    {
        "claim": "A costs.",
        "effect": 0.03,
        "low": -np.inf,
        "high": np.inf,
        "verdict": "undecided",
        "words": "1 of 8 seeds",
    },
    {
        "claim": "A is new.",
        "effect": np.nan,
        "low": np.nan,
        "high": np.nan,
        "verdict": "undecided",
        "words": "no seeds",
    },
]
CLAIMS = [row | {"smallest": 0.01} for row in CLAIMS]


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
    return pd.DataFrame(
        {"method": ["A", "A", "B"], "alignment": [0.1, 0.3, 0.5], "adversarial_margin": [0.4, 0.6, 0.2]}
    )


def probes(seeds: int = 3) -> dict[str, pd.DataFrame | list[pd.DataFrame]]:
    """A fine-tuning of five epochs after a natural stage: vAFT of several seeds without f1, AFD of one with it."""
    e = np.arange(6)
    stages = [pd.DataFrame({"stage": "natural", "epoch": e, "probe/h/relative_l2": 9.0})]
    tuned = pd.DataFrame({"stage": "tuning", "epoch": e, "probe/h/relative_l2": 0.3 + 0.02 * e})
    vaft = [pd.concat([*stages, tuned.assign(**{"probe/h/relative_l2": 0.4 + 0.1 * k})]) for k in range(seeds)]
    return {"vAFT": vaft, "AFD": pd.concat([*stages, tuned.assign(**{"probe/f1/f2": -0.1 * e})])}


def swept() -> pd.DataFrame:
    """Two hyper-parameters of AFD, two seeds each; beta's values are not in order."""
    rows = [("alpha", v, s) for v in (0.01, 0.05) for s in (0, 1)] + [
        ("beta", v, s) for v in (1, 0, 0.25) for s in (0, 1)
    ]
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


@pytest.mark.parametrize("name", ALL)
def test_every_figure_carries_its_numbers(name):
    data = ALL[name]().data
    column, number = HOLDS[name]
    assert np.isclose(data[column], number).any()
    assert data.columns.is_unique
    assert data.index.is_unique
    assert data.map(lambda cell: isinstance(cell, str | Number)).all(axis=None), "no lists, no tensors"
    again = pd.read_csv(io.StringIO(data.to_csv(index=False, float_format="%.6g")), dtype=data.dtypes.to_dict())
    same = data.reset_index(drop=True).replace("", np.nan)
    pd.testing.assert_frame_equal(again, same, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_data_speak_of_titles_and_points():
    assert set(ALL["trade-off"]().data["method"]) == {"STANDARD", "TRADES"}
    assert set(ALL["gap over eps"]().data["curve"]) == {"A (2 seeds)", "B (2 seeds)"}
    assert len(ALL["atlas"]().data) == 2 * 2 * 60, "maps, sides, images"
    assert ALL["strips"]().data.to_dict("records")[1] == {
        "example": 1,
        "label": "dog",
        "before": "dog",
        "after": "cat",
    }
    shares = ALL["pairs"]().data.groupby(["method", "pair"])["share"].sum()
    assert shares.tolist() == pytest.approx([1] * 6)
    assert "PGD accuracy fell" in ALL["training"]().data["warnings"].tolist()


@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_a_reproducible_picture_with_words(name):
    from PIL import Image

    first, second = ALL[name](), ALL[name]()
    assert len(first.alt) > 40
    assert "nan" not in first.alt
    png = figures.to_png(first, dpi=60)
    assert png == figures.to_png(second, dpi=60)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert (picture[0] == 255).all(), "figures stand on white"
    assert picture.std() > 10


def test_alt_texts_name_the_main_numbers():
    assert "98.6 %" in figures.accuracy_bars(ROWS).alt
    assert "worst case 73.6 %" in figures.accuracy_bars(ROWS).alt
    assert "75.0 % at the threat model's eps 0.2" in ALL["eps"]().alt
    assert "STANDARD: mean of 2 runs" in ALL["trade-off"]().alt
    training = figures.training_curves(metrics()).alt
    assert "6 epochs" in training
    assert "PGD accuracy fell" in training
    assert "from 1 to 0.286" in training, "the row before training has no loss"


@pytest.mark.parametrize("stochastic", [False, True])
def test_bars_have_the_names_of_all_attacks_of_the_protocol(stochastic):
    from robustlib.evaluation import standard_attacks
    from robustlib.threat import Threat

    names = list(standard_attacks(Threat("linf", 0.1), stochastic))
    drawn = figures.accuracy_bars([{"attack": name, "accuracy": 0.5} for name in names])
    assert not set(drawn.data["attack"]) & set(names)


def test_a_series_is_never_told_by_colour_alone():
    (axis,) = ALL["eps"]().fig.axes
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    assert len(axis.collections) == 2, "each curve has its band"


def test_of_views_only_the_minimum_is_drawn():
    drawn = figures.accuracy_bars(fixtures.adaptive()["rows"])
    assert drawn.data["attack"].tolist() == ["clean", "PGD-20", "CW-50", "AutoAttack", "adaptive minimum"]
    assert "adaptive minimum 43.5" in drawn.alt


def test_the_cascade_shows_what_each_step_took():
    (axis,) = ALL["cascade"]().fig.axes
    left, taken = ([bar.get_width() for bar in bars] for bars in axis.containers)
    assert left == [0.98, 0.76, 0.7, 0.7], "the surrogate's own cascade is another picture"
    assert taken == pytest.approx([0, 0.22, 0.06, 0])
    assert {bar.get_hatch() for bar in axis.containers[1]} == {"////"}, "not told by colour alone"
    assert {"−22.0", "−6.0"} <= {text.get_text() for text in axis.texts}


def test_bands_over_seeds_are_t_intervals():
    (axis,) = ALL["over seeds"]().fig.axes
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"A (4 seeds)", "B (1 seed)"}
    assert lines["A (4 seeds)"].get_ydata()[2] == pytest.approx(0.75 - 0.015)
    several, alone = (band.get_paths() for band in axis.collections)
    points = several[0].vertices
    half = np.ptp(points[np.isclose(points[:, 0], 0.2), 1]) / 2
    assert half == pytest.approx(3.182 * 0.01291 / 2, rel=1e-3), "t(0.975, 3) sd / sqrt(4)"
    assert np.ptp(alone[0].vertices[:, 1]) > 0.05, "one seed shows the interval of its own images"


def test_the_gap_grows_with_eps_and_layers_keep_their_order():
    left, right = ALL["gap over eps"]().fig.axes
    (line, _) = left.lines
    assert line.get_xdata().tolist() == [0.1, 0.2]
    assert line.get_ydata() == pytest.approx([0.15, 0.3])
    assert (left.get_title("left"), right.get_title("left")) == ("Relative L2 distance", "Cosine distance")
    axis = ALL["gap over depth"]().fig.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["stem", "head"]


def test_pair_distances_share_one_scale():
    first, second = ALL["pairs"]().fig.axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_xlim() == second.get_xlim()
    heights = [patch.get_data().values.sum() for patch in first.patches]
    assert heights == pytest.approx([1] * 6), "shares of the pairs, infinite distances left out"
    assert "other class 1.1" in ALL["pairs"]().alt


def test_the_plane_has_a_dot_for_each_run_and_a_ring_at_their_mean():
    (axis,) = ALL["plane"]().fig.axes
    dots, ring, lone = axis.lines
    assert (len(dots.get_xdata()), len(lone.get_xdata())) == (2, 1)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((0.2, 0.5))


def test_the_atlas_tells_clean_from_adversarial_by_shape():
    first, _ = ALL["atlas"]().fig.axes
    circles, crosses = first.collections[0:6:2], first.collections[1:6:2]
    assert {len(c.get_paths()[0].vertices) for c in circles} != {len(c.get_paths()[0].vertices) for c in crosses}
    assert np.concatenate([c.get_offsets() for c in circles]).tolist() == MAP[0].tolist()
    assert {text.get_text() for text in first.texts} == {"0", "1", "2"}
    arrows = first.collections[6]
    assert len(arrows.get_offsets()) == 30
    start, end = arrows.get_offsets()[0], arrows.get_offsets()[0] + (arrows.U[0], arrows.V[0])
    assert (start.tolist(), np.asarray(end)) == (MAP[0][0].tolist(), pytest.approx(MAP[1][0]))
    (place,) = {text.get_text(): text for text in first.texts if text.get_text() == "0"}.values()
    assert place.xy in [tuple(point) for point in MAP[0][CLASSES == 0].tolist()], "a name points into its class"
    many = figures.umap_atlas({"A": MAP}, np.arange(60)).fig.axes[0]
    assert not many.texts, "sixty names would hide the map"


def test_each_map_has_its_own_note():
    notes = {"UMAP": "Trustworthiness 0.98.", "PCA": "Trustworthiness 0.85, 36 % of the variance."}
    figure = figures.umap_atlas({"UMAP": MAP, "PCA": MAP}, CLASSES, note="300 images.", notes=notes)
    assert [axis.get_xlabel().replace("\n", " ") for axis in figure.fig.axes] == list(notes.values())
    assert all(note in figure.alt for note in (*notes.values(), "300 images."))
    nine = figures.umap_atlas({f"map {k}": MAP for k in range(9)}, CLASSES)
    assert nine.fig.get_figwidth() == 8
    assert len(nine.fig.axes) == 9


def test_maps_say_what_the_copies_are():
    figure = figures.umap_atlas({"A": MAP}, CLASSES, copies="augmented")
    assert figure.alt.startswith("Maps of clean and augmented features of 60 images")
    assert "A: augmented images lie" in figure.alt
    assert set(figure.data["side"]) == {"clean", "augmented"}
    (legend,) = figure.fig.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["clean image", "its augmented one"]


def test_names_of_near_classes_do_not_hide_each_other():
    near = (MAP[0] * 0.01, MAP[0] * 0.01)
    figure = figures.umap_atlas({"A": near, "B": near}, CLASSES, ["airplane", "automobile", "bird"])
    figures.to_png(figure, dpi=60)
    boxes = [text.get_window_extent() for text in figure.fig.axes[0].texts]
    spans = [(b.y0, b.y1) for b in boxes]  # the widths hold the line to the class too
    assert len(set(spans)) == 3


def test_of_many_classes_those_that_change_least_are_one():
    before = np.arange(100)
    after = np.where(before < 5, before + 1, before)
    figure = figures.confusion_flow(before, after)
    assert set(figure.data["clean answer"]) == {*map(str, range(14)), "other classes"}
    assert "5.0 % change" in figure.alt
    others = figures.confusion_flow(before, np.roll(before, 1))
    assert "100.0 % change" in others.alt, "changes among the other classes count too"


def test_runs_with_other_settings_are_other_methods():
    board = leaderboard().assign(changed=["", "", "beta=1.0, compiled", "compiled"])
    assert set(figures.trade_off(board).data["method"]) == {"STANDARD", "TRADES · beta=1.0", "TRADES"}


@pytest.mark.parametrize(("letters", "count", "columns"), [(3, 3, 3), (3, 8, 4), (18, 4, 2), (45, 8, 1)])
def test_legends_stay_within_the_figure(letters, count, columns):
    curves = {f"{k}{'m' * letters}": curve() for k in range(count)}
    figure = figures.robustness_curves(curves)
    figures.to_png(figure, dpi=60)
    (legend,) = figure.fig.legends
    assert legend._ncols == columns
    box = legend.get_window_extent()
    assert figure.fig.bbox.x0 <= box.x0 < box.x1 <= figure.fig.bbox.x1
    assert figure.fig.axes[0].bbox.height > 200 * figure.fig.dpi / 100, "the axes keep their size"


def test_the_flow_is_as_wide_as_its_share():
    figure = ALL["flow"]()
    (axis,) = figure.fig.axes
    bars = [patch.get_height() for patch in axis.patches]
    assert bars == pytest.approx([0.4, 0.3, 0.3, 0.1, 0.3, 0.3, 0.3]), "left: cat, dog, bird; right: no answer first"
    assert "30.0 % change" in figure.alt
    assert "bird to no answer 10.0 %" in figure.alt
    assert len(axis.collections) == 6


def test_wrong_answers_are_marked_by_more_than_colour():
    axes = ALL["strips"]().fig.axes
    said = [axis.get_xlabel() for axis in axes]
    assert said == ["✓ cat", "✓ dog", "", "", "✓ cat", "✕ cat"]
    shown = np.asarray(axes[2].images[0].get_array())
    assert shown == pytest.approx(np.full((8, 8), 0.7)), "0.5 + 10 times 0.02"


def test_a_large_perturbation_is_magnified_less():
    figure = figures.example_strips(IMAGES, IMAGES + 0.2, [0, 1], ([0, 1], [0, 0]))
    assert "the perturbation times 2." in figure.alt
    assert figure.fig.axes[2].images[0].get_array().max() == pytest.approx(0.9), "0.5 + 2 times 0.2 is no white"


def test_names_are_cut_before_they_hide_each_other():
    names = ["cassette player from the seventies", "dog"]
    many = np.repeat(IMAGES, 6, 0)
    figure = figures.example_strips(many, many, [0] * 12, ([0] * 12, [0] * 12), names)
    assert len(figure.data) == 8, "ten would leave no room for such names"
    assert figure.fig.axes[0].get_title().endswith("…")
    assert figure.data["label"].unique().tolist() == names[:1], "the data have it in full"
    flow = figures.confusion_flow([0, 1], [1, 0], names)
    assert any(text.get_text().endswith("…") for text in flow.fig.axes[0].texts)


def test_claims_have_a_dot_where_there_is_an_effect():
    figure = ALL["claims"]()
    (axis,) = figure.fig.axes
    assert len(axis.containers) == 2
    assert sum(container.has_xerr for container in axis.containers) == 1, "one seed has no interval"
    assert "supported (3.0, interval 2.0 to 4.0)" in figure.alt
    assert axis.containers[0][0].get_xdata() == pytest.approx([3]), "in smallest effects of interest"
    assert "(3.0 points, interval" in figures.claim_effects([CLAIMS[0] | {"unit": "points"}]).alt


def test_a_long_claim_is_told_in_full():
    long = "The defence keeps more accuracy than the other one " * 5
    (axis,) = figures.claim_effects([CLAIMS[0] | {"claim": long}]).fig.axes
    assert axis.texts[0].get_text().replace("\n", " ") == long.strip()


def test_probes_are_of_the_last_stage_and_carry_bands_over_seeds():
    figure = ALL["probes"]()
    assert set(figure.data["epoch"]) == {1, 2, 3, 4, 5}, "neither the natural stage nor the model before the last one"
    left, right = figure.fig.axes
    assert [axis.get_title("left") for axis in (left, right)] == ["h: relative L2 distance", "cos(f1, f2)"]
    assert left.get_ylim()[0] == 0 > right.get_ylim()[0]
    assert {text.get_text() for text in figure.fig.legends[0].get_texts()} == {"AFD (1 seed)", "vAFT (3 seeds)"}
    colours = [
        {line.get_color() for line in axis.get_lines() if line.get_label() == "AFD (1 seed)"} for axis in (left, right)
    ]
    assert colours[0] == colours[1], "a method looks the same in every panel"
    (line,) = (line for line in right.get_lines() if len(line.get_xdata()) == 5)
    assert {line.get_color()} == colours[1]
    rows = figure.data.query("curve == 'vAFT (3 seeds)'")
    half = 4.302653 * 0.1 / 3**0.5  # t(0.975, 2) sd / sqrt(n)
    assert np.allclose(rows["value"], 0.5)
    assert np.allclose(rows["high"] - 0.5, half)
    assert "vAFT (3 seeds) 0.5 at epoch 1, 0.5 at epoch 5. cos(f1, f2): AFD (1 seed) −0.1 at epoch 1" in figure.alt


def test_a_sweep_is_drawn_in_the_order_of_its_values():
    figure = ALL["sweep"]()
    alpha, beta = figure.fig.axes
    assert [text.get_text() for text in beta.get_xticklabels()] == ["0", "0.25", "1"]
    assert "usual" in beta.get_xlabel()
    assert "usual" not in alpha.get_xlabel()
    assert alpha.get_ylim() == beta.get_ylim(), "panels can be compared"
    assert (
        "beta: AFD, clean (2 seeds) 98.0 % at 0, 98.0 % at 1; AFD, PGD-20 (2 seeds) 71.0 % at 0, 61.0 % at 1"
        in figure.alt
    )
    assert len(figures.sweep(swept().query("seed == 0").drop(columns="seed")).data) == 10


def test_the_boundary_lies_where_the_decision_changes_and_colours_are_shared():
    dots = pd.DataFrame({"across": [0.1, 0.9], "up": [0.2, 0.3], "label": [0, 1]})
    figure = figures.metric_plane(heat(), dots, ["left", "right"])
    a, b = figure.fig.axes[:2]
    line = np.concatenate([path.vertices for path in a.collections[1].get_paths()])
    assert np.allclose(line[:, 0], 0.5, atol=1e-6)
    assert np.ptp(line[:, 1]) == pytest.approx(0.5)
    assert len(b.collections) == 1, "no boundary where one class is all there is"
    limits = [axis.collections[0].get_clim() for axis in (a, b)]
    assert limits == [(1.0, 20.0)] * 2
    markers = {line.get_label(): line.get_marker() for line in a.get_lines()}
    assert len(set(markers.values())) == 2
    assert set(markers) == {"left", "right"}
    assert "A median 1.5, at most 2; left on 55.6 %, right on 44.4 %; B median 15" in figure.alt
    assert not a.texts, "points tell which class is where"
    named = figures.metric_plane(heat(), dots[:1], ["left", "right"]).fig.axes[0].texts
    assert [(text.get_text(), text.get_position()[0] < 0.5) for text in named] == [("right", False)]


def test_a_metric_that_vanishes_has_a_picture():
    flat = heat().assign(top_eigenvalue=0.0)
    assert figures.to_png(figures.metric_plane(flat, POINT), dpi=40)


def test_dots_carry_their_intervals():
    (axis,) = ALL["trade-off"]().fig.axes
    bars = [container for container in axis.containers if container.has_xerr and container.has_yerr]
    assert len(bars) == 2
    told = {text.get_text() for text in axis.figure.legends[0].get_texts()}
    assert told == {"STANDARD, 6.5 minutes", "TRADES, 6.5 minutes"}, "what it cost stands beside what it brought"


def test_each_line_of_a_distribution_is_its_share_of_images():
    """By hand: of four images one lies within 0.2, two within 0.3."""
    data = figures.distance_distributions(DISTANCES).data
    mine = data[data["model"] == "none"].set_index("distance")["share"]
    assert mine.to_dict() == {0.2: 0.25, 0.3: 0.5, 0.4: 0.75, 0.5: 1.0}
    (axis,) = figures.distance_distributions(DISTANCES).fig.axes
    assert [text.get_text() for text in axis.figure.legends[0].get_texts()] == [
        "none, median 0.350",
        "rep-spectral, median 0.550",
    ]


def test_what_is_chosen_has_a_ring_and_what_costs_too_much_is_shaded():
    drawn = figures.accuracy_distance(grid())
    (axis,) = drawn.fig.axes
    rings = [line for line in axis.lines if line.get_markersize() == 15 and len(line.get_xdata())]
    assert sorted(float(line.get_ydata()[0]) for line in rings) == [0.55, 0.61]
    (shade,) = axis.patches
    assert shade.get_x() + shade.get_width() == pytest.approx(0.96)
    assert shade.get_x() <= 0.91
    assert {text.get_text() for text in axis.texts} == {"", "0.01", "0.1"}
    assert "none: accuracy 97.0 %, distance 0.500; rep at strength 0.1, chosen" in drawn.alt


def test_each_step_shows_both_images_and_what_lies_between_them():
    drawn = ALL["steps of a purifier"]()
    pictures = [np.asarray(axis.images[0].get_array()) for axis in drawn.fig.axes]
    assert len(pictures) == 2 * 2 * 3, "steps, images, kinds"
    assert pictures[1] == pytest.approx(IMAGES[0, 0] + 0.04)
    assert pictures[2] == pytest.approx(np.full((8, 8), 0.9)), "0.5 + 10 times 0.04"
    assert pictures[8] == pytest.approx(np.full((8, 8), 0.7)), "the same factor after the last step"
    said = [axis.get_xlabel() for axis in drawn.fig.axes]
    assert said == ["✓ cat", "✕ dog", "", "✓ dog", "✕ cat", "", "✓ cat", "✓ cat", "", "✓ dog", "✕ cat", ""]
    assert (
        "each step: image 0.040, purified 0.020. Answers: after image, cat is called cat and, attacked, dog"
        in drawn.alt
    )
    many = figures.purification_steps(
        *({k: np.repeat(v, 3, 0) for k, v in side.items()} for side in purified()), [0] * 6
    )
    assert many.data["example"].nunique() == 3


def test_dots_of_one_row_have_a_lane_each_and_their_number():
    (axis,) = ALL["dots"]().fig.axes
    weak, strong = (line for line in axis.lines if len(line.get_xdata()))
    assert weak.get_xdata().tolist() == [0.5, 0.4]
    assert strong.get_ydata()[0] > weak.get_ydata()[0]
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first row on top"
    assert weak.get_marker() != strong.get_marker()
    assert [text.get_text() for text in axis.texts] == ["50.0 %", "40.0 %", "20.0 %"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["RT2", "RT1"]
    assert "RT2: weak 50.0 %, strong 20.0 %; RT1: weak 40.0 %" in ALL["dots"]().alt
    bare = figures.accuracy_dots(DOTS.drop(columns=["low", "high"]), "A")
    assert not bare.fig.axes[0].collections


def test_the_surface_tells_grey_levels_on_one_scale():
    figure = ALL["surface"]()
    left, right, _ = figure.fig.axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, pytest.approx(255 * 0.35))
    assert [text.get_text() for text in left.texts] == ["51", "38"] * 3, "a row of cells for each number of copies"
    assert right.images[0].get_array()[2, 0] == pytest.approx(255 * 0.1 / 4)
    assert "what is left of the attack 51 at 1 copies and 0.0 % missing" in figure.alt


def test_losses_are_told_from_validation_and_bookkeeping():
    frame = metrics().rename(columns={"loss": "critic/loss"}).assign(lr=0.1, **{"probe/gap": 0.5})
    left, right = figures.training_curves(frame).fig.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["critic loss", "robust kl"]
    assert "warning" in [text.get_text() for text in right.get_legend().get_texts()]
    assert {text.get_text() for text in right.texts} == {"burn-in", "finetune"}


def test_a_heads_accuracy_stands_with_accuracies_and_legends_hide_no_curve():
    frame = metrics().assign(**{"refresh/head/loss": 1.0, "refresh/head/accuracy": 0.5})
    figure = figures.training_curves(frame)
    figures.to_png(figure, dpi=60)
    left, right = figure.fig.axes
    told = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in (left, right)]
    assert "refresh head loss" in told[0]
    assert "refresh head accuracy (training)" in told[1]
    assert not {"refresh head accuracy", "refresh head accuracy (training)"} & set(told[0])
    assert "refresh/head/accuracy" in figure.data
    for axis in (left, right):
        assert axis.get_legend().get_window_extent().y1 < axis.bbox.y0, "below the axes"
        assert axis.bbox.height > 150 * figure.fig.dpi / 100, "which keep their size"
    assert right.get_legend().get_window_extent().x0 > left.get_legend().get_window_extent().x1


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.robustness_curves({}), "at least one curve"),
        (lambda: figures.robustness_curves({"A": curve()}, x="time"), "'time'"),
        (lambda: figures.trade_off(pd.DataFrame({"clean": [0.9]})), "'worst'"),
        (lambda: figures.cost(leaderboard().assign(worst=float("nan"))), "4 given"),
        (lambda: figures.accuracy_bars([]), "'attack'"),
        (lambda: figures.cascade([]), "'component'"),
        (lambda: figures.robustness_over_seeds(curve()), "'method'"),
        (lambda: figures.feature_gap_curves(gaps(), "depth"), "x='depth'"),
        (lambda: figures.feature_gap_curves(gaps(), "eps"), "over eps needs one layer, the table has 'stem', 'head'"),
        (lambda: figures.feature_gap_curves(gaps().drop(columns="eps"), "eps"), "the column 'eps'"),
        (lambda: figures.pair_distances({}), "needs distances"),
        (lambda: figures.pair_distances({"A": {"same class": [np.nan]}}), "needs distances"),
        (lambda: figures.alignment_exclusion(plane()[["method", "alignment"]]), "'adversarial_margin'"),
        (lambda: figures.umap_atlas({}, CLASSES), "at least one map"),
        (lambda: figures.umap_atlas({"A": MAP}, CLASSES, notes={"B": ""}), "no map 'B'"),
        (lambda: figures.umap_atlas({"A": MAP}, CLASSES[:3]), "labels 3, clean 60"),
        (lambda: figures.confusion_flow([0, 1], [0]), "clean 2, adversarial 1"),
        (lambda: figures.confusion_flow([], []), "at least one"),
        (lambda: figures.example_strips(IMAGES, IMAGES[:1], [0, 1], ([0, 1], [0, 1])), "adversarial 1"),
        (lambda: figures.example_strips(IMAGES[0], IMAGES[0], [0], ([0], [0])), r"\(1, 8, 8\)"),
        (lambda: figures.claim_effects([]), "'claim'"),
        (lambda: figures.probe_curves({}, ["probe/h/cosine"]), "at least one method"),
        (lambda: figures.probe_curves(probes(), ["probe/h/cosine"]), "'probe/h/cosine'"),
        (lambda: figures.sweep(swept().drop(columns="robust")), "'robust'"),
        (lambda: figures.metric_plane(heat().drop(columns="logit 1"), POINT), "'logit 1'"),
        (lambda: figures.metric_plane(heat(), POINT[["across", "up"]]), "'label'"),
        (lambda: figures.metric_plane(heat().iloc[1:], POINT), "A has 44 rows for 9 x 5 points"),
        (lambda: figures.distance_distributions({}), "given: none"),
        (lambda: figures.distance_distributions({**DISTANCES, "c": [1.0]}), "c 1 of 1"),
        (lambda: figures.distance_distributions({"none": [0.1, np.nan]}), "none 1 of 2"),
        (lambda: figures.accuracy_distance(grid().drop(columns="chosen")), "'chosen'"),
        (lambda: figures.accuracy_distance(grid()[1:]), "a row of strength 0"),
        (lambda: figures.purification_steps({"image": IMAGES}, {}, [0, 1]), r"image \(2, 1, 8, 8\)\."),
        (lambda: figures.purification_steps({"a": IMAGES[:, 0]}, {"a": IMAGES[:, 0]}, [0, 1]), r"\(2, 8, 8\)"),
        (lambda: figures.purification_steps({}, {}, []), "every step"),
        (lambda: figures.accuracy_dots(DOTS.drop(columns="series"), "A"), "'series'"),
        (lambda: figures.transform_surface(surface()[1:]), "5 rows for 2 x 3"),
    ],
)
def test_missing_data_is_a_sentence(draw, words):
    with pytest.raises(InputError, match=words):
        draw()


def test_show_sends_a_png_with_its_alt_text(monkeypatch):
    import IPython
    import IPython.display

    sent = {}
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda data, **how: sent.update(data=data, **how))
    figure = figures.accuracy_bars(ROWS)
    assert figures.show(figure) is None
    csv = "attack,accuracy,low,high\nclean,0.986,0.97,0.995\nworst case,0.736,,\n"
    assert sent["metadata"]["image/png"] == {"alt": figure.alt, "width": 768, "csv": csv}
    assert sent["data"]["image/png"].startswith("iVBOR")


def test_show_outside_a_notebook_prints_the_words(capsys):
    figure = figures.accuracy_bars(ROWS)
    figures.show(figure)
    assert capsys.readouterr().out.strip() == figure.alt


def test_no_backend_is_chosen_and_no_figure_stays_open():
    code = (
        "import robustlib.figures as f, matplotlib, sys; assert 'matplotlib.pyplot' not in sys.modules;"
        "f.to_png(f.accuracy_bars([{'attack': 'clean', 'accuracy': .5}]), dpi=50);"
        "import matplotlib.pyplot as p; assert not p.get_fignums(); assert matplotlib.rcParams['axes.spines.top'];"
        "assert matplotlib.get_backend(auto_select=False) is None"
    )
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, cwd="/")

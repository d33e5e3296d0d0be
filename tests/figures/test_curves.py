import numpy as np
import pytest

from robustlib import figures
from tests.figures.conftest import ALL, SWEPT
from tests.fixtures import curve, metrics


def test_a_series_is_never_told_by_colour_alone():
    (axis,) = ALL["eps"]().fig.axes
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    assert len(axis.collections) == 2, "each curve has its band"
    assert "75.0 % at the threat model's eps 0.2" in ALL["eps"]().alt


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


def test_probes_are_of_the_last_stage_and_carry_bands_over_seeds():
    figure = ALL["probes"]()
    assert set(figure.data["epoch"]) == {1, 2, 3, 4, 5}, "neither the natural stage nor the model before the last one"
    left, right = figure.fig.axes
    assert [axis.get_title("left") for axis in (left, right)] == ["h: relative L2 distance", "cos(f1, f2)"]
    assert left.get_ylim()[0] == 0 > right.get_ylim()[0]
    assert {text.get_text() for text in figure.fig.legends[0].get_texts()} == {"AFD (1 seed)", "vAFT (3 seeds)"}
    lines = [line for axis in (left, right) for line in axis.get_lines() if line.get_label() == "AFD (1 seed)"]
    (drawn,) = (line for line in right.get_lines() if len(line.get_xdata()) == 5)
    assert {line.get_color() for line in lines} == {drawn.get_color()}, "a method looks the same in every panel"
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
    assert "beta: AFD, clean (2 seeds) 98.0 % at 0, 98.0 % at 1; AFD, PGD-20 (2 seeds) 71.0 % at 0, 61.0" in figure.alt
    assert len(figures.sweep(SWEPT.query("seed == 0").drop(columns="seed")).data) == 10


def test_losses_are_told_from_accuracies_and_bookkeeping_and_legends_hide_no_curve():
    frame = metrics().rename(columns={"loss": "critic/loss"}).assign(lr=0.1, **{"probe/gap": 0.5})
    figure = figures.training_curves(frame.assign(**{"refresh/head/loss": 1.0, "refresh/head/accuracy": 0.5}))
    figures.to_png(figure, dpi=60)
    left, right = figure.fig.axes
    labels = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in (left, right)]
    assert labels[0] == ["critic loss", "robust kl", "refresh head loss"]
    assert {"warning", "refresh head accuracy (training)"} <= set(labels[1])
    assert {text.get_text() for text in right.texts} == {"burn-in", "finetune"}
    assert "refresh/head/accuracy" in figure.data
    assert "PGD accuracy fell" in figure.data["warnings"].tolist()
    words = ("6 epochs", "from 1 to 0.286", "PGD accuracy fell")  # the row before training has no loss
    assert [word for word in words if word not in figure.alt] == []
    for axis in (left, right):
        assert axis.get_legend().get_window_extent().y1 < axis.bbox.y0, "below the axes"
        assert axis.bbox.height > 150 * figure.fig.dpi / 100, "which keep their size"
    assert right.get_legend().get_window_extent().x0 > left.get_legend().get_window_extent().x1


def test_a_line_leads_from_one_validated_epoch_to_the_next():
    frame = metrics()
    frame.loc[1::2, "clean_val"] = np.nan
    line = next(line for line in figures.training_curves(frame).fig.axes[1].lines if "clean" in line.get_label())
    assert line.get_xdata().tolist() == frame["epoch_total"][::2].tolist(), (
        "a gap at each other epoch would leave no line"
    )

"""What every figure promises: words, numbers, the same picture each time, and sentences for what cannot be drawn."""

import io
import subprocess
import sys
from numbers import Number

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustlib import figures
from robustlib.errors import InputError
from tests.figures import conftest as given
from tests.figures.conftest import CLASSES, DISTANCES, FIGURES, IMAGES, MAP, POINT, ROWS
from tests.fixtures import curve, leaderboard


@pytest.mark.parametrize(("draw", "column", "number"), FIGURES.values(), ids=FIGURES)
def test_every_figure_is_a_reproducible_picture_with_words_and_numbers(draw, column, number):
    figure = draw()
    assert len(figure.alt) > 40
    assert "nan" not in figure.alt
    png = figures.to_png(figure, dpi=60)
    assert png == figures.to_png(draw(), dpi=60)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    draw().fig.savefig(exact := io.BytesIO(), format="png", dpi=60, facecolor="white")
    drawn = np.asarray(Image.open(exact).convert("RGB")).astype(int)
    assert np.abs(drawn - picture).max() < 32, "fewer colours show the same"
    assert len(png) < 0.9 * len(exact.getvalue()) or any(axes.images for axes in figure.fig.axes)
    assert (picture[0] == 255).all(), "figures stand on white"
    assert picture.std() > 10
    data = figure.data
    assert np.isclose(data[column], number).any()
    assert data.columns.is_unique
    assert data.index.is_unique
    assert data.map(lambda cell: isinstance(cell, str | Number)).all(axis=None), "no lists, no tensors"
    again = pd.read_csv(io.StringIO(data.to_csv(index=False, float_format="%.6g")), dtype=data.dtypes.to_dict())
    same = data.reset_index(drop=True).replace("", np.nan)
    pd.testing.assert_frame_equal(again, same, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_dollars_in_names_are_no_formulas():
    """Titles and hyper-parameters come from the files of runs."""
    board = leaderboard().assign(title="$\\frac$", changed="a=$^$")
    drawn = [figures.trade_off(board), figures.cost(board), figures.umap_atlas({"$\\frac$": MAP}, CLASSES, note="$^$")]
    drawn.append(figures.accuracy_dots(given.DOTS.assign(row="$^$", series="$_$"), "$\\frac$"))
    for figure in drawn:
        figures.to_png(figure, dpi=30)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.robustness_curves({}), "at least one curve"),
        (lambda: figures.robustness_curves({"A": curve()}, x="time"), "'time'"),
        (lambda: figures.trade_off(pd.DataFrame({"clean": [0.9]})), "'worst'"),
        (lambda: figures.cost(leaderboard().assign(worst=float("nan"))), "4 given"),
        (lambda: figures.accuracy_bars([]), "'attack'"),
        (lambda: figures.feature_gap_curves(given.GAPS, "depth"), "axis of the feature-gap figure 'depth'"),
        (lambda: figures.feature_gap_curves(given.GAPS, "eps"), "needs one layer, the table has 'stem', 'head'"),
        (lambda: figures.feature_gap_curves(given.GAPS.drop(columns="eps"), "eps"), "the column 'eps'"),
        (lambda: figures.pair_distances({"A": {"same class": [np.nan]}}), "needs distances"),
        (lambda: figures.alignment_exclusion(given.PLANE[["method", "alignment"]]), "'adversarial_margin'"),
        (lambda: figures.umap_atlas({"A": MAP}, CLASSES, notes={"B": ""}), "no map 'B'"),
        (lambda: figures.umap_atlas({"A": MAP}, CLASSES[:3]), "labels 3, clean 60"),
        (lambda: figures.confusion_flow([0, 1], [0]), "clean 2, adversarial 1"),
        (lambda: figures.example_strips(IMAGES, IMAGES[:1], [0, 1], ([0, 1], [0, 1])), "adversarial 1"),
        (lambda: figures.example_strips(IMAGES[0], IMAGES[0], [0], ([0], [0])), r"\(1, 8, 8\)"),
        (lambda: figures.probe_curves(given.probes(), ["probe/h/cosine"]), "'probe/h/cosine'"),
        (lambda: figures.metric_plane(given.heat().drop(columns="logit 1"), POINT), "'logit 1'"),
        (lambda: figures.metric_plane(given.heat().iloc[1:], POINT), "figure of A needs .* 44 rows for 9 x 5 points"),
        (lambda: figures.distance_distributions({**DISTANCES, "c": [1.0]}), "c 1 of 1"),
        (lambda: figures.distance_distributions({"none": [0.1, np.nan]}), "none 1 of 2"),
        (lambda: figures.accuracy_distance(given.GRID[1:]), "a row of strength 0"),
        (lambda: figures.purification_steps({"image": IMAGES}, {}, [0, 1]), r"image \(2, 1, 8, 8\)\."),
        (lambda: figures.purification_steps({"a": IMAGES[:, 0]}, {"a": IMAGES[:, 0]}, [0, 1]), r"\(2, 8, 8\)"),
        (lambda: figures.transform_surface(given.SURFACE[1:]), "5 rows for 2 x 3"),
    ],
)
def test_missing_data_is_a_sentence(draw, words):
    with pytest.raises(InputError, match=words):
        draw()


def test_show_sends_a_png_with_its_alt_text(monkeypatch, capsys):
    sent = {}
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda data, **how: sent.update(data=data, **how))
    figure = figures.accuracy_bars(ROWS)
    figures.show(figure)
    assert "clean 98.6 %, worst case 73.6 %" in figure.alt
    csv = "attack,accuracy,low,high\nclean,0.986,0.97,0.995\nworst case,0.736,,\n"
    assert sent["metadata"]["image/png"] == {"alt": figure.alt, "width": 768, "csv": csv}
    assert sent["data"]["image/png"].startswith("iVBOR")
    figures.show(figure._replace(left_out=["A", "<b>"]))
    assert sent["data"]["text/html"].startswith('<details class="code"><summary>2 more variants are not drawn')
    assert "A; &lt;b&gt;" in sent["data"]["text/html"]
    monkeypatch.undo()
    figures.show(figure)
    assert capsys.readouterr().out.strip() == figure.alt, "outside a notebook the words are printed"


def test_no_backend_is_chosen_and_no_figure_stays_open():
    code = (
        "import robustlib.figures as f, matplotlib, sys; assert 'matplotlib.pyplot' not in sys.modules;"
        "f.to_png(f.accuracy_bars([{'attack': 'clean', 'accuracy': .5}]), dpi=50);"
        "import matplotlib.pyplot as p; assert not p.get_fignums(); assert matplotlib.rcParams['axes.spines.top'];"
        "assert matplotlib.get_backend(auto_select=False) is None"
    )
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, cwd="/")

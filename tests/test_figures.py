"""Figures: what they show, what they say to those who cannot see them, and that they leave nothing behind."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from robustlib import figures
from robustlib.errors import InputError
from tests.made_up import cascade, curve, leaderboard, metrics

ROWS = [{"attack": "clean", "accuracy": 0.986, "low": 0.97, "high": 0.995}, {"attack": "worst", "accuracy": 0.736}]
ALL = {
    "training": lambda: figures.training_curves(metrics()),
    "eps": lambda: figures.robustness_curves({"A": curve(), "B": curve()}, threat_eps=0.2),
    "steps": lambda: figures.robustness_curves({"A": curve("steps")}, x="steps"),
    "trade-off": lambda: figures.trade_off(leaderboard()),
    "cost": lambda: figures.cost(leaderboard()),
    "bars": lambda: figures.accuracy_bars(ROWS),
    "cascade": lambda: figures.cascade(cascade()),
}


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


def test_a_series_is_never_told_by_colour_alone():
    (axis,) = ALL["eps"]().fig.axes
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    assert len(axis.collections) == 2, "each curve has its band"


def test_the_cascade_shows_what_each_step_took():
    (axis,) = ALL["cascade"]().fig.axes
    left, taken = ([bar.get_width() for bar in bars] for bars in axis.containers)
    assert left == [0.98, 0.76, 0.7, 0.7], "the surrogate's own cascade is another picture"
    assert taken == pytest.approx([0, 0.22, 0.06, 0])
    assert {bar.get_hatch() for bar in axis.containers[1]} == {"////"}, "not told by colour alone"
    assert {"−22.0", "−6.0"} <= {text.get_text() for text in axis.texts}


def test_dots_carry_their_intervals():
    (axis,) = ALL["trade-off"]().fig.axes
    bars = [container for container in axis.containers if container.has_xerr and container.has_yerr]
    assert len(bars) == 2
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"STANDARD", "TRADES"}


def test_losses_are_told_from_validation_and_bookkeeping():
    frame = metrics().rename(columns={"loss": "critic/loss"}).assign(lr=0.1, **{"probe/gap": 0.5})
    left, right = figures.training_curves(frame).fig.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["critic loss", "robust kl"]
    assert "warning" in [text.get_text() for text in right.get_legend().get_texts()]
    assert {text.get_text() for text in right.texts} == {"burn-in", "finetune"}


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: figures.robustness_curves({}), "at least one curve"),
        (lambda: figures.robustness_curves({"A": curve()}, x="time"), "'time'"),
        (lambda: figures.trade_off(pd.DataFrame({"clean": [0.9]})), "'worst'"),
        (lambda: figures.cost(leaderboard().assign(worst=float("nan"))), "4 given"),
        (lambda: figures.accuracy_bars([]), "'attack'"),
        (lambda: figures.cascade([]), "'component'"),
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
    assert sent["metadata"]["image/png"] == {"alt": figure.alt, "width": 768}
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

"""Bars, cascades, dots and flows of one run under attack."""

import numpy as np
import pytest

from robustlib import figures
from tests import fixtures
from tests.figures.conftest import ALL, DOTS


@pytest.mark.parametrize("stochastic", [False, True])
def test_bars_have_the_names_of_all_attacks_of_the_protocol(stochastic):
    from robustlib.evaluation import standard_attacks
    from robustlib.threat import Threat

    names = list(standard_attacks(Threat("linf", 0.1), stochastic))
    drawn = figures.accuracy_bars([{"attack": name, "accuracy": 0.5} for name in names])
    assert not set(drawn.data["attack"]) & set(names)


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


def test_of_many_classes_those_that_change_least_are_one():
    before = np.arange(100)
    after = np.where(before < 5, before + 1, before)
    figure = figures.confusion_flow(before, after)
    assert set(figure.data["clean answer"]) == {*map(str, range(14)), "other classes"}
    assert "5.0 % change" in figure.alt
    others = figures.confusion_flow(before, np.roll(before, 1))
    assert "100.0 % change" in others.alt, "changes among the other classes count too"


def test_the_flow_is_as_wide_as_its_share():
    figure = ALL["flow"]()
    (axis,) = figure.fig.axes
    bars = [patch.get_height() for patch in axis.patches]
    assert bars == pytest.approx([0.4, 0.3, 0.3, 0.1, 0.3, 0.3, 0.3]), "left: cat, dog, bird; right: no answer first"
    assert "30.0 % change" in figure.alt
    assert "bird to no answer 10.0 %" in figure.alt
    assert len(axis.collections) == 6


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

import numpy as np
import pytest

from robustlib import figures
from tests.figures.conftest import ALL, IMAGES, PURIFIED


def test_of_many_classes_those_that_change_least_are_one():
    before = np.arange(100)
    figure = figures.confusion_flow(before, np.where(before < 5, before + 1, before))
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


def test_wrong_answers_are_marked_by_more_than_colour_and_changes_are_magnified_within_the_grey_scale():
    axes, data = ALL["strips"]().fig.axes, ALL["strips"]().data
    assert data.loc[1, ["example", "label", "before", "after"]].tolist() == [1, "dog", "dog", "cat"]
    assert [axis.get_xlabel() for axis in axes] == ["✓ cat", "✓ dog", "", "", "✓ cat", "✕ cat"]
    shown = np.asarray(axes[2].images[0].get_array())
    assert shown == pytest.approx(np.full((8, 8), 0.7)), "0.5 + 10 times 0.02"
    larger = figures.example_strips(IMAGES, IMAGES + 0.2, [0, 1], ([0, 1], [0, 0]))
    assert "the perturbation times 2." in larger.alt
    assert larger.fig.axes[2].images[0].get_array().max() == pytest.approx(0.9), "0.5 + 2 times 0.2 is no white"


def test_names_are_cut_before_they_hide_each_other():
    names = ["cassette player from the seventies", "dog"]
    many = np.repeat(IMAGES, 6, 0)
    figure = figures.example_strips(many, many, [0] * 12, ([0] * 12, [0] * 12), names)
    assert len(figure.data) == 8, "ten would leave no room for such names"
    assert figure.fig.axes[0].get_title().endswith("…")
    assert figure.data["label"].unique().tolist() == names[:1], "the data have it in full"
    flow = figures.confusion_flow([0, 1], [1, 0], names)
    assert any(text.get_text().endswith("…") for text in flow.fig.axes[0].texts)


def test_each_step_shows_both_images_and_what_lies_between_them():
    drawn = ALL["purifier"]()
    pictures = [np.asarray(axis.images[0].get_array()) for axis in drawn.fig.axes]
    assert len(pictures) == 2 * 2 * 3, "steps, images, kinds"
    assert pictures[1] == pytest.approx(IMAGES[0, 0] + 0.04)
    assert pictures[2] == pytest.approx(np.full((8, 8), 0.9)), "0.5 + 10 times 0.04"
    assert pictures[8] == pytest.approx(np.full((8, 8), 0.7)), "the same factor after the last step"
    answers = [axis.get_xlabel() for axis in drawn.fig.axes]
    assert answers == ["✓ cat", "✕ dog", "", "✓ dog", "✕ cat", "", "✓ cat", "✓ cat", "", "✓ dog", "✕ cat", ""]
    text = "each step: image 0.040, purified 0.020. Answers: after image, cat is called cat and, attacked, dog"
    assert text in drawn.alt
    clean, attacked = ({k: np.repeat(v, 3, 0) for k, v in side.items()} for side in PURIFIED)
    assert figures.purification_steps(clean, attacked, [0] * 6).data["example"].nunique() == 3


def test_the_surface_tells_grey_levels_on_one_scale():
    figure = ALL["surface"]()
    left, right, _ = figure.fig.axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, pytest.approx(255 * 0.35))
    assert [text.get_text() for text in left.texts] == ["51", "38"] * 3, "a row of cells for each number of copies"
    assert right.images[0].get_array()[2, 0] == pytest.approx(255 * 0.1 / 4)
    assert "what is left of the attack 51 at 1 copies and 0.0 % missing" in figure.alt

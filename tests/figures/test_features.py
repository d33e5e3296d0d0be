"""Figures of feature spaces: what they show, and that names on maps can be read."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from robustlib import figures
from tests.figures.conftest import ALL, CLASSES, MAP, POINT, heat


def test_pair_distances_share_one_scale():
    figure = ALL["pairs"]()
    first, second = figure.fig.axes
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    heights = [patch.get_data().values.sum() for patch in first.patches]
    assert heights == pytest.approx([1] * 6), "shares of the pairs, infinite distances left out"
    assert "other class 1.1" in figure.alt


def test_the_plane_has_a_dot_for_each_run_and_a_ring_at_their_mean():
    (axis,) = ALL["plane"]().fig.axes
    dots, ring, lone = axis.lines
    assert (len(dots.get_xdata()), len(lone.get_xdata())) == (2, 1)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((0.2, 0.5))


def test_the_atlas_tells_clean_from_adversarial_by_shape():
    assert len(ALL["atlas"]().data) == 2 * 2 * 60, "maps, sides, images"
    first, _ = ALL["atlas"]().fig.axes
    circles, crosses = first.collections[0:6:2], first.collections[1:6:2]
    corners = [{len(dots.get_paths()[0].vertices) for dots in side} for side in (circles, crosses)]
    assert corners[0] != corners[1]
    assert np.concatenate([c.get_offsets() for c in circles]).tolist() == MAP[0].tolist()
    assert {text.get_text() for text in first.texts} == {"0", "1", "2"}
    arrows = first.collections[6]
    assert len(arrows.get_offsets()) == 30
    start, end = arrows.get_offsets()[0], arrows.get_offsets()[0] + (arrows.U[0], arrows.V[0])
    assert (start.tolist(), np.asarray(end)) == (MAP[0][0].tolist(), pytest.approx(MAP[1][0]))
    (place,) = (text for text in first.texts if text.get_text() == "0")
    assert place.xy in [tuple(point) for point in MAP[0][CLASSES == 0].tolist()], "a name points into its class"
    assert not figures.umap_atlas({"A": MAP}, np.arange(60)).fig.axes[0].texts, "sixty names would hide the map"


def test_many_maps_have_a_note_each_and_say_what_the_copies_are():
    notes = {f"map {k}": f"Trustworthiness 0.9{k}." for k in range(9)}
    maps = dict.fromkeys(notes, MAP)
    many = figures.umap_atlas(maps, CLASSES, note="300 images.", notes=notes, copies="augmented")
    assert [axis.get_xlabel() for axis in many.fig.axes] == list(notes.values())
    assert all(note in many.alt for note in (*notes.values(), "300 images.", "map 1: augmented images lie"))
    assert many.alt.startswith("Maps of clean and augmented features of 60 images")
    assert many.fig.get_figwidth() == 8
    assert set(many.data["side"]) == {"clean", "augmented"}
    (legend,) = many.fig.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["clean image", "its augmented one"]


def test_names_of_near_classes_do_not_hide_each_other():
    near = (MAP[0] * 0.01, MAP[0] * 0.01)
    figure = figures.umap_atlas({"A": near, "B": near}, CLASSES, ["airplane", "automobile", "bird"])
    figures.to_png(figure, dpi=60)
    boxes = [text.get_window_extent() for text in figure.fig.axes[0].texts]
    assert len({(box.y0, box.y1) for box in boxes}) == 3  # the widths hold the line to the class too


@pytest.mark.parametrize("maps", [2, 3])
def test_ten_names_in_a_crowd_that_is_wider_than_high_stand_apart(maps):
    """Both axes have one scale, so the wider one decides how near the names are."""
    y, draws = np.arange(500) % 10, np.random.default_rng(3)
    points = (draws.normal(size=(10, 2)) * (3.6, 1.2))[y] + draws.normal(size=(500, 2))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    figure = figures.umap_atlas(dict.fromkeys("abc"[:maps], (points, points)), y, names, note="Ten classes.").fig
    page = FigureCanvasAgg(figure)
    page.draw()
    for axis in figure.axes:
        for text in axis.texts:
            text.update_positions(page.get_renderer())
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the lines to their classes
        assert not [pair for pair in itertools.combinations(boxes, 2) if Bbox.intersection(*pair)]
        assert all(axis.get_window_extent().x0 < box.x0 < box.x1 < axis.get_window_extent().x1 for box in boxes)


def test_the_boundary_lies_where_the_decision_changes_and_colours_are_shared():
    dots = pd.DataFrame({"across": [0.1, 0.9], "up": [0.2, 0.3], "label": [0, 1]})
    figure = figures.metric_plane(heat(), dots, ["left", "right"])
    a, b = figure.fig.axes[:2]
    line = np.concatenate([path.vertices for path in a.collections[1].get_paths()])
    assert np.allclose(line[:, 0], 0.5, atol=1e-6)
    assert np.ptp(line[:, 1]) == pytest.approx(0.5)
    assert len(b.collections) == 1, "no boundary where one class is all there is"
    assert [axis.collections[0].get_clim() for axis in (a, b)] == [(1.0, 20.0)] * 2
    assert {line.get_label() for line in a.get_lines()} == {"left", "right"}
    assert len({line.get_marker() for line in a.get_lines()}) == 2
    assert "A median 1.5, at most 2; left on 55.6 %, right on 44.4 %; B median 15" in figure.alt
    assert not a.texts, "points tell which class is where"
    named = figures.metric_plane(heat(), dots[:1], ["left", "right"]).fig.axes[0].texts
    assert [(text.get_text(), text.get_position()[0] < 0.5) for text in named] == [("right", False)]
    assert figures.to_png(figures.metric_plane(heat().assign(top_eigenvalue=0.0), POINT), dpi=40), "it may vanish"

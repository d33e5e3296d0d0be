import pandas as pd
import pytest

from robustlib import figures
from robustlib.evaluation import standard_attacks
from robustlib.figures import canvas
from robustlib.methods import load_preset
from robustlib.threat import Threat
from tests import fixtures
from tests.figures.conftest import ALL, CLAIMS, DISTANCES, DOTS, GAPS, GRID, PLANE
from tests.fixtures import curve, leaderboard


def test_bars_name_all_attacks_of_the_protocol_and_of_views_only_the_minimum_is_drawn():
    names = [name for random in (False, True) for name in standard_attacks(Threat("linf", 0.1), random)]
    drawn = figures.accuracy_bars([{"attack": name, "accuracy": 0.5} for name in names])
    assert not set(drawn.data["attack"]) & set(names)
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


def test_runs_with_other_settings_are_other_methods():
    board = leaderboard().assign(changed=["", "", "beta=1.0, compiled", "compiled"])
    assert set(figures.trade_off(board).data["method"]) == {"STANDARD", "TRADES · beta=1.0", "TRADES"}
    assert "STANDARD: mean of 2 runs" in figures.trade_off(board).alt


def several(count: int, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of so many variants: of `m`, the first ones with changes, in the order in which they are not to be drawn."""
    kinds = [("m0", f"a={k}") for k in range(count - 3)] + [("m3", ""), ("m2", ""), ("m1", "")]
    return pd.concat(rows.assign(title=m.upper(), method=m, changed=changed, seed=0) for m, changed in kinds)


@pytest.mark.parametrize(
    ("draw", "rows", "names"),
    [
        (figures.trade_off, leaderboard()[:1], "method"),
        (figures.cost, leaderboard()[:1], "method"),
        (figures.alignment_exclusion, PLANE[:1], "method"),
        (figures.robustness_over_seeds, curve(), "curve"),
        (lambda rows: figures.feature_gap_curves(rows, "eps"), GAPS[GAPS["layer"] == "stem"], "curve"),
    ],
    ids=["trade_off", "cost", "alignment", "robustness", "gaps"],
)
def test_of_many_variants_nine_are_drawn_and_the_data_have_all(draw, rows, names):
    figure = draw(several(20, rows))
    (legend,) = figure.fig.legends
    shown = [text.get_text().split(",")[0].split(" (")[0] for text in legend.get_texts()]
    assert shown == [*(f"M0 · a={k}" for k in (0, 1, 10, 11, 12, 13)), "M1", "M2", "M3"]
    assert figure.data[names].nunique() == 20
    assert sorted(figure.left_out) == sorted(f"M0 · a={k}" for k in (14, 15, 16, *range(2, 10)))
    assert figure.left_out[0] not in figure.alt
    nine = draw(several(9, rows))
    assert (len(nine.fig.legends[0].get_texts()), len(nine.left_out)) == (9, 0)


def test_of_many_methods_those_of_the_report_are_drawn_first():
    methods = ["acl", "afkd", "arrest", *reversed(canvas.FIRST)]
    rows = pd.concat([leaderboard()[:1].assign(method=name, title=name.upper(), changed="") for name in methods])
    changed = rows[:1].assign(method="standard", title="STANDARD", changed="epochs=1")
    drawn, left_out = canvas.first_variants(pd.concat([changed, rows]))
    assert set(drawn) == {"ACL", *map(str.upper, canvas.FIRST)}
    assert set(left_out) == {"AFKD", "ARREST", "STANDARD · epochs=1"}
    for preset in ("digits", "cifar10-small"):
        assert set(canvas.FIRST) == set(load_preset(preset)["report"])


def test_claims_have_a_dot_where_there_is_an_effect():
    figure = ALL["claims"]()
    (axis,) = figure.fig.axes
    assert len(axis.containers) == 2
    assert sum(container.has_xerr for container in axis.containers) == 1, "one seed has no interval"
    assert "supported (3.0, interval 2.0 to 4.0)" in figure.alt
    assert axis.containers[0][0].get_xdata() == pytest.approx([3]), "in smallest effects of interest"
    long = "The defence keeps more accuracy than the other one " * 5
    other = figures.claim_effects([CLAIMS[0] | {"unit": "points", "claim": long}])
    assert "(3.0 points, interval" in other.alt
    assert other.fig.axes[0].texts[0].get_text().replace("\n", " ") == long.strip(), "told in full"


def test_dots_carry_their_intervals():
    (axis,) = ALL["trade-off"]().fig.axes
    bars = [container for container in axis.containers if container.has_xerr and container.has_yerr]
    assert len(bars) == 2
    labels = {text.get_text() for text in axis.figure.legends[0].get_texts()}
    assert labels == {"STANDARD, 6.5 minutes", "TRADES, 6.5 minutes"}, "what it cost stands beside what it brought"


def test_each_line_of_a_distribution_is_its_share_of_images():
    """By hand: of four images one lies within 0.2, two within 0.3."""
    figure = figures.distance_distributions(DISTANCES)
    share = figure.data.query("model == 'none'").set_index("distance")["share"]
    assert share.to_dict() == {0.2: 0.25, 0.3: 0.5, 0.4: 0.75, 0.5: 1.0}
    labels = [text.get_text() for text in figure.fig.legends[0].get_texts()]
    assert labels == ["none, median 0.350", "rep-spectral, median 0.550"]


def test_what_is_chosen_has_a_ring_and_what_costs_too_much_is_shaded():
    drawn = figures.accuracy_distance(GRID)
    (axis,) = drawn.fig.axes
    rings = [line for line in axis.lines if line.get_markersize() == 15 and len(line.get_xdata())]
    assert sorted(float(line.get_ydata()[0]) for line in rings) == [0.55, 0.61]
    (shade,) = axis.patches
    assert shade.get_x() + shade.get_width() == pytest.approx(0.96)
    assert shade.get_x() <= 0.91
    assert {text.get_text() for text in axis.texts} == {"", "0.01", "0.1"}
    assert "none: accuracy 97.0 %, distance 0.500; rep at strength 0.1, chosen" in drawn.alt

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from robustlib.errors import InputError
from robustlib.rng import ExampleRNG, uniform_point
from robustlib.threat import Threat, norms

images = npst.arrays(np.float32, (3, 1, 4, 4), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
anything = npst.arrays(np.float32, (3, 1, 4, 4), elements=st.floats(-3, 3, width=32)).map(torch.from_numpy)
threats = st.builds(Threat, st.sampled_from(["linf", "l2"]), st.floats(0, 1))


@given(threats, images, anything)
@settings(max_examples=60, deadline=None)
def test_projection_lands_in_ball_and_box_and_keeps_what_is_inside(threat, x, point):
    projected = threat.project(point, x)
    assert bool((threat.distance(projected, x) <= threat.eps + 1e-6).all())
    assert bool(((projected >= 0) & (projected <= 1)).all())
    assert torch.allclose(threat.project(projected, x), projected, atol=1e-6)


@given(st.sampled_from(["linf", "l2"]), anything.filter(lambda g: bool((g.abs().flatten(1).amax(1) > 1e-3).all())))
@settings(max_examples=60, deadline=None)
def test_steepest_step_has_its_length_and_no_random_step_beats_it(norm, gradient):
    threat = Threat(norm, 0.5)
    step = threat.steepest_step(gradient, 0.1)
    other = torch.randn_like(gradient)
    other = 0.1 * other / norms(other, threat.norm)
    assert torch.allclose(norms(step, threat.norm), torch.tensor(0.1), atol=1e-5)
    assert bool(((gradient * step).flatten(1).sum(1) >= (gradient * other).flatten(1).sum(1) - 1e-5).all())


def test_l2_random_starts_fill_the_ball_uniformly():
    threat, n = Threat("l2", 0.4), 4000
    x = torch.full((n, 1, 1, 2), 0.5)
    start = uniform_point(threat, x, ExampleRNG.for_examples(0, torch.arange(n)))
    radius = threat.distance(start, x)
    assert radius.max() <= 0.4 + 1e-6
    assert abs(float((radius < 0.2).float().mean()) - 0.25) < 0.03  # half the radius holds a quarter of the disc


@pytest.mark.parametrize(
    ("norm", "eps", "says"),
    [
        ("linf", -0.1, "eps=-0.1: give a number of at least 0, in pixel units"),
        ("linf", 8, "for 8 grey levels of 255 write 8/255"),
        ("l2", 101.0, "pixel units"),
        ("linf", float("nan"), "eps=nan: give a finite number"),
        ("linf", "8/255", r"Threat eps='8/255': .* without quotes, e\.g\. 8/255"),
        ("l1", 0.1, "Unknown Threat norm 'l1'.*linf"),
    ],
)
def test_what_is_no_ball_is_a_sentence(norm, eps, says):
    with pytest.raises(InputError, match=says):
        Threat(norm, eps)

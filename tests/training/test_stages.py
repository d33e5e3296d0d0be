"""The vocabulary of a training: schedules and optimisers."""

import pytest
import torch

from robustlib.training import OptimizerSpec, cosine, one_cycle, piecewise, step


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (cosine(10, 0.1), {0: 1.0, 5: 0.55, 10: 0.1, 12: 0.1}),
        (step((4, 6), 0.1), {3.9: 1.0, 4: 0.1, 6.5: 0.01}),
        (one_cycle(10, 0.4), {0: 0.0, 2: 0.5, 4: 1.0, 7: 0.5, 10: 0.0}),
        (piecewise([(0, 1), (2, 1), (2, 0.5), (4, 0)]), {1: 1.0, 2: 0.5, 3: 0.25, 9: 0.0}),
    ],
)
def test_schedules(schedule, points):
    assert [schedule(epoch) for epoch in points] == pytest.approx(list(points.values()))


def test_optimisers_can_be_built_more_than_once():
    spec = OptimizerSpec(torch.nn.Linear(2, 2).parameters(), 0.1)
    assert len(spec.build().param_groups[0]["params"]) == len(spec.build().param_groups[0]["params"]) == 2

"""Compiled training: few graphs that serve every step, none for validation, the same numbers; used where it is faster."""

import copy
import time
from functools import partial

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from robustlib.training import fit, loop
from robustlib.training.compilation import speed_up
from tests.training_fixtures import broken_off, built, first_batch, same_state, tiny, train

COMPILE = torch.compile
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Backend:
    """Stands in for the compiler, which takes a minute; counts its graphs and how often they run."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0
        self.seconds = 0.0  # that each run waits

    def __call__(self, graph, inputs):
        self.graphs += 1
        compiled = aot_eager(graph, inputs)

        def run(*arguments):
            self.runs += 1
            time.sleep(self.seconds)
            return compiled(*arguments)

        return run


@pytest.fixture
def backend(monkeypatch):
    backend = Backend()
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=backend))
    torch.compiler.reset()
    counters.clear()
    yield backend
    torch.compiler.reset()


# Graphs: of the attack and of the training pass. TRADES' attack first asks for the clean prediction without gradients, which is a graph
# of its own: asked with gradients, the attack's would serve, but hold the activations of a batch for nothing. Runs: in a step.
@pytest.mark.parametrize(
    ("name", "settings", "graphs", "runs"),
    [
        ("pgd_at", {}, 2, 2 + 1),
        ("fgsm_rs", {"attack_steps": 1}, 2, 1 + 1),
        ("trades", {}, 3, 1 + 2 + 3),
        ("ancra", {}, 2, 2 * 2 + 3),
    ],
)
def test_whole_batches_run_in_few_graphs_and_nothing_else(
    tmp_path, few, backend, monkeypatch, name, settings, graphs, runs
):
    monkeypatch.setattr(loop, "speed_up", lambda *_: 2.0)
    found, step = [], loop.Training._step
    monkeypatch.setattr(loop.Training, "_step", lambda *a: (step(*a), found.append((backend.graphs, backend.runs)))[0])
    method = tiny(name, epochs=2, train_examples=150, **settings)
    run = train(method, few, tmp_path / "compiled", compile=True)
    whole = [1, 2, 2, 3, 4, 4]  # batches of 64, 64 and 22 images
    assert found == [(graphs, runs * steps) for steps in whole], "nothing is compiled after the first step"
    assert backend.runs == 4 * runs, "neither validation nor the check of a model"
    assert not counters["graph_break"]
    assert run.provenance()["compile_speed_up"] == 2.0
    plain = train(method, few, tmp_path / "plain")
    assert run.path.name != plain.path.name
    assert same_state(run.model("last"), plain.model("last"), atol=1e-4)


def test_on_a_cpu_nothing_is_compiled_where_that_is_slower_and_a_resumed_training_keeps_to_it(
    tmp_path, few, backend, monkeypatch, capsys
):
    trials = iter([0.5])
    monkeypatch.setattr(loop, "speed_up", lambda *_: next(trials))
    method = tiny("standard", epochs=2)
    broken_off(method, few, tmp_path, monkeypatch, 2, compile=True)
    run = fit(method, few, root=tmp_path, device="cpu", threads=1, compile=True)
    assert (backend.graphs, run.provenance()["compile_speed_up"]) == (0, 0.5)
    assert "not compiled, which here is 0.50 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_trial_times_attacks_and_passes_of_a_copy(digits, backend, precision):
    model = built(tiny("pgd_at"), digits)
    before, backend.seconds = copy.deepcopy(model.state_dict()), 0.02
    assert speed_up(model, first_batch(digits).x, digits.threat, precision) < 0.9
    assert backend.runs == 4 * (10 + 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

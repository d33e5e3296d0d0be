"""A network from elsewhere is a run like any other; its code is executed where somebody here named it, and nowhere else."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlib.audit import audit_run
from robustlib.data import Dataset, load_dataset
from robustlib.data.arrays import slug
from robustlib.errors import InputError
from robustlib.evaluation import evaluate_run, incomplete, leaderboard
from robustlib.representation import gap_table, layers, probe_attack
from robustlib.runs import Run, UserCode, find_runs
from robustlib.runs.external import epoch_in
from robustlib.threat import Threat

FACTORY = """
import os
from torch import nn
from neighbour import CLASSES

if os.environ.get("MARKER"):
    open(os.environ["MARKER"], "a").close()


def build(width=8, classes=CLASSES):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))


NET = build()
NUMBER = 3


def needs(depth):
    return build(depth)


def fails():
    raise KeyError("no")
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that builds a network, with a neighbour that it imports; in a home of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("robustlib.runs.user_code._TRUSTED", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("CLASSES = 10\n")
    (tmp_path / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return "nets.py:build"


def weights(path: Path, width: int = 8) -> Path:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    torch.save({"state_dict": net.state_dict()}, path)
    return path


def test_it_is_evaluated_audited_listed_and_read_back(factory, digits, tmp_path):
    run = Run.from_model(factory, digits, weights=weights(tmp_path / "w.pt"), name="Our Ünet", root=tmp_path / "runs")
    assert run.path.parent == tmp_path / "runs" / "digits" / "our-unet"
    assert (run.finished, run.external, run.name) == (True, True, "Our Ünet · build")
    model, x = run.model(), digits.test.images[:3].float() / 255
    state = torch.load(tmp_path / "w.pt", weights_only=True)["state_dict"]
    torch.testing.assert_close(
        model(x),
        x.flatten(1).matmul(state["1.weight"].T).add(state["1.bias"]).relu() @ state["3.weight"].T + state["3.bias"],
    )
    results = evaluate_run(run, digits, n=16)
    assert (results["checkpoint"], results["last"]) == ("given", {})
    assert len(run.records()["index"].unique()) == 16
    checks = {check["number"]: check for check in audit_run(run, digits, n=16)["checks"]}
    assert checks[15]["verdict"] == "n/a"
    assert "trained elsewhere" in checks[15]["meaning"]
    assert find_runs(tmp_path / "runs") == [run]
    (row,) = leaderboard([run]).to_dict("records")
    assert (row["title"], row["external"], row["arch"]) == ("Our Ünet", True, "build")
    assert incomplete([run]).empty
    again = Run.from_model(factory, digits, weights=tmp_path / "w.pt", name="Our Ünet", root=tmp_path / "runs")
    assert (again, again.results()) == (run, results), "the same network is the same run, and keeps its numbers"
    other = Run.from_model(factory, digits, name="Our Ünet", root=tmp_path / "runs")
    assert other != run, "other weights are another run"
    assert other == Run.from_model(factory, digits, name="Our Ünet", root=tmp_path / "runs"), "without weights too"
    assert other.params()["about"]["said"] == ["No weights were given: it is as its factory makes it."]
    command = "robustlib benchmark .*nets.py:build --dataset digits --weights .*w.pt --name 'Our Ünet' --threat linf:0.2 --examples 16"
    assert re.fullmatch(command, run.provenance()["command"])
    renewed = Run.from_model(
        factory, digits, weights=tmp_path / "w.pt", name="Our Ünet", root=tmp_path / "runs", rerun=True
    )
    assert renewed == run
    assert not run.results(), "nothing that was measured is left"


def test_an_object_is_a_run_of_this_process_and_stays_as_it_was(digits, tmp_path, monkeypatch):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).double().train()
    run = Run.from_model(net, digits, root=tmp_path, threat=Threat("l2", 5.0))
    assert net.training
    assert next(net.parameters()).dtype == torch.float64
    assert run.params()["threat"] == {"norm": "l2", "eps": 5.0}
    assert evaluate_run(run, digits, n=8)["threat"] == "L2 5"
    monkeypatch.setattr("robustlib.runs.external._given", {})
    with pytest.raises(InputError, match="came as an object in Python, which only that process has"):
        run.model()


def test_surrogates_and_randomness_of_the_network_itself_are_attacked(digits, tmp_path):
    class Noisy(nn.Module):
        stochastic = True

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def surrogates(self) -> dict[str, nn.Module]:
            return {"mean": nn.Sequential(nn.Flatten(), self.fc)}

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) + torch.randn(len(x), 10)

    run = Run.from_model(Noisy(), digits, root=tmp_path)
    assert run.model().stochastic
    assert list(run.model().surrogates()) == ["mean"]
    assert not Run.from_model(Noisy(), digits, root=tmp_path, stochastic=False).model().stochastic


def test_feature_gaps_at_every_layer_that_a_run_lists(digits, tmp_path):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return self.inner(x), None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.fc = Block(), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(x.flatten(1))[0])

    run = Run.from_model(Net(), digits, root=tmp_path)
    assert run.params()["about"]["layers"] == ["block.inner", "fc"]
    names = layers(run.model())
    assert gap_table([run], digits, probe_attack(digits.threat), layers=names, n=4)["layer"].tolist() == list(names)


def test_what_one_of_our_methods_is_called_is_not_taken(factory, digits, tmp_path):
    run = Run.from_model(factory, digits, name="trades", root=tmp_path / "runs")
    assert run.params()["method"] == "trades-external"


def test_a_strangers_code_is_not_executed_until_somebody_here_names_it(factory, digits, tmp_path, monkeypatch):
    run = Run.from_model(factory, digits, root=tmp_path / "runs")
    evaluate_run(run, digits, n=8)
    monkeypatch.setattr("robustlib.runs.user_code._TRUSTED", set())
    shutil.rmtree(tmp_path / "state")
    marker = tmp_path / "marker"
    monkeypatch.setenv("MARKER", str(marker))
    with pytest.raises(
        InputError, match=r"names code, .*nets\.py:build, that nobody has named on this machine.*--trust-code"
    ):
        run.model()
    assert len(leaderboard([run])) == 1
    assert incomplete([run])["missing"].tolist() == [f"not audited: robustlib audit {run.argument}"]
    assert not marker.exists()
    monkeypatch.setattr(
        "robustlib.runs.user_code._module", UserCode.load.__globals__["_module"].__wrapped__
    )  # no cache
    run.trust()
    assert run.model()
    assert marker.exists()


def test_kept_code_goes_on_where_its_file_is_gone_and_altered_code_is_refused(factory, digits, tmp_path):
    run = Run.from_model(factory, digits, root=tmp_path / "runs")
    os.remove("nets.py")
    assert run.model()
    kept = run.path / "factory.py"
    kept.write_text(kept.read_text() + "\n# altered")
    with pytest.raises(InputError, match="is not the one that was used"):
        run.model()


@pytest.mark.parametrize(
    ("spec", "settings", "said"),
    [
        ("gone.py:build", {}, "There is no file gone.py"),
        ("nets.py", {}, "'nets.py' names no code: write file.py:name"),
        ("nets.py:biuld", {}, r"has no 'biuld'\. Did you mean 'build'\?"),
        ("nets.py:NUMBER", {}, "is 3: name a module, or a function or class that makes one"),
        ("nets.py:needs", {}, r"missing a required argument: 'depth'.*--model-args '\{\"depth\": 28\}'"),
        ("nets.py:build", {"arguments": {"depth": 1}}, "unexpected keyword argument 'depth'"),
        ("nets.py:NET", {"arguments": {"depth": 1}}, "takes no arguments: leave --model-args out"),
        ("nets.py:fails", {}, "fails .KeyError: 'no'"),
        ("nets.py:build", {"arguments": {"classes": 7}}, "tells 7 classes apart, the data set has 10"),
        ("nets.py:build", {"weights": "gone.pt"}, "There is no file gone.pt"),
        ("nets.py:build", {"weights": "narrow.pt"}, r"1.weight is \(4, 64\) there and \(8, 64\) in the network"),
        (
            "nets.py:build",
            {"weights": "pickle.pt"},
            r"pickled object, not tensors alone: .* whole = torch\.load.*state_dict",
        ),
        ("nets.py:build", {"weights": "older.pt"}, r"holds a pickled object, not tensors alone"),
        *(
            (
                "nets.py:build",
                {"weights": f"{name}.pt"},
                rf"^{name}\.pt is no file of weights, or is damaged: give what torch",
            )
            for name in ("empty", "three", "half", "text")
        ),
        ("nets.py:build", {"weights": "junk.safetensors"}, "no readable safetensors file"),
        ("torchvision:resnet19", {}, "torchvision knows no model 'resnet19'"),
        ("torchvision:resnet18", {"arguments": {"weights": "DEFAULT"}}, "takes 'weights' from files or the network"),
        (
            "torchvision:fcn_resnet50",
            {"arguments": {"weights_backbone": "DEFAULT"}},
            "takes 'weights_backbone' from files",
        ),
        ("torchvision:resnet18", {}, "cannot take images of 1 x 8 x 8"),
        ("no_such_module:Net", {}, "no_such_module cannot be imported .ModuleNotFoundError"),
        ("syntax.py:build", {}, "cannot be imported .SyntaxError"),
    ],
)
def test_what_cannot_be_built_is_a_sentence(factory, digits, tmp_path, spec, settings, said):
    weights(tmp_path / "narrow.pt", 4)
    torch.save(nn.Linear(1, 1), tmp_path / "pickle.pt")
    torch.save(nn.Linear(1, 1), tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "narrow.pt").read_bytes()
    for name, content in (
        ("empty", b""),
        ("three", b"abc"),
        ("half", whole[: len(whole) // 2]),
        ("text", b"cweights\n"),
    ):
        (tmp_path / f"{name}.pt").write_bytes(content)
    (tmp_path / "junk.safetensors").write_text("junk")
    (tmp_path / "syntax.py").write_text("def build(:")
    with pytest.raises(InputError, match=said):
        Run.from_model(spec, digits, root=tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()


def test_safetensors_and_modules_of_installed_packages(digits, tmp_path):
    from safetensors.torch import save_file

    from tests.conftest import Linear

    own = Linear(10, (1, 8, 8))
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    arguments = {"classes": 10, "shape": [1, 8, 8]}
    run = Run.from_model(
        "tests.conftest:Linear", digits, weights=tmp_path / "w.safetensors", arguments=arguments, root=tmp_path
    )
    x = digits.test.images[:3].float() / 255
    torch.testing.assert_close(run.model()(x), own(x))
    assert json.loads((run.path / "params.json").read_text())["external"]["arguments"] == arguments
    assert run.params()["title"] == "w"


def test_names_as_paths_and_epochs_in_them():
    assert [slug(name) for name in ("Our WRN-28 (β=6)", "..//..", "ä.b")] == ["our-wrn-28-6", "", "a-b"]
    names = ("epoch-012.pt", "ckpt_ep7.pth", "e3-final.pt", "model_100.pt", "wrn28_10_epoch=5.pt", "last.pt")
    assert [epoch_in(f"runs2/{name}") for name in names] == [12, 7, 3, 100, 5, None]

"""Methods of users: named by file or package, told apart by their text, and read without their code."""

import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from robustlib.audit.audit import protocol_badge
from robustlib.errors import InputError
from robustlib.methods import METHODS, make_method
from robustlib.runs import Run, find_runs
from robustlib.training.fit import run_params
from robustlib.workbook import experiments, tables
from robustlib.workbook.claims import variant_of
from tests.training_fixtures import broken_off, same_runs, train

OWN = """from dataclasses import dataclass

import torch.nn.functional as F

from robustlib.methods import AdversarialMethod
from robustlib.training import Loss


@dataclass(frozen=True, kw_only=True)
class MixedAT(AdversarialMethod):
    name = "mixed_at"
    share: float = 0.5  # of the clean loss

    def stages(self, dataset, model):
        def loss(batch, attacked):
            clean, robust = (F.cross_entropy(model(x), batch.y) for x in (batch.x, attacked))
            return Loss(self.share * clean + (1 - self.share) * robust)

        return self.adversarial_stage(model, self.inner_attack(dataset), loss)


@dataclass(frozen=True, kw_only=True)
class Likewise(MixedAT):
    pass
"""
TINY = {"epochs": 2, "train_examples": 130, "attack_steps": 2, "arch": "mlp_8"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust is remembered below the test's directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def written(folder: Path, text: str = OWN) -> str:
    """A file in a folder that holds this text; how a user names its class."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "my_defence.py").write_text(text)
    return f"{folder / 'my_defence.py'}:MixedAT"


def test_it_has_the_presets_common_values_its_own_defaults_and_what_a_page_needs(tmp_path, monkeypatch):
    method, ours = make_method(spec := written(tmp_path), "digits", share=0.3), make_method("pgd_at", "digits")
    assert (method.lr, method.schedule, method.attack_steps) == (ours.lr, ours.schedule, ours.attack_steps)
    assert (method.share, make_method(spec, "digits").share, method.changes(method.arch)) == (0.3, 0.5, {"share": 0.3})
    assert (method.title, method.about, method.notebook) == ("MixedAT", "**MixedAT.**", "baselines")
    assert tables.hyperparameters(method).loc["share"].to_list() == ["0.3", "0.5", "of the clean loss"]
    assert method.command("digits", method.arch, 0, "32-true").startswith(f"robustlib run {spec} --preset digits")
    monkeypatch.chdir(tmp_path)
    assert make_method("my_defence.py:MixedAT", "digits").command("digits", "mlp", 0, "32-true").split()[2] == spec
    assert make_method("robustlib.methods:TRADES", "digits") == make_method("trades", "digits")
    assert make_method("trades").code is None


def test_what_is_derived_from_a_method_of_ours_is_stale_with_it(tmp_path):
    text = OWN.replace("AdversarialMethod", "TRADES")
    assert make_method(written(tmp_path, text)).numerics == ("methods/mixed_at", "methods/trades")
    assert make_method(written(tmp_path)).title == "MixedAT"
    assert make_method("mart").numerics == ("methods/mart",)


def test_a_run_keeps_the_text_and_another_text_is_another_run(tmp_path, few):
    run = train(make_method(written(tmp_path / "a"), "digits", **TINY), few, tmp_path / "runs")
    code = run.params()["code"]
    assert (code["place"], code["name"]) == (str(tmp_path / "a" / "my_defence.py"), "MixedAT")
    assert (run.path / "method.py").read_text() == OWN
    assert run.changed.endswith(f"code {code['digest'][:8]}"), "versions of one name are never averaged as seeds"

    moved = make_method(written(tmp_path / "b"), "digits", **TINY)
    assert train(moved, few, tmp_path / "runs").path == run.path
    assert make_method("pgd_at", "digits", **TINY).command("digits", "mlp_8", 0, "32-true").split()[2] == "pgd_at"
    changed = make_method(written(tmp_path / "a", OWN + "# a comment\n"), "digits", **TINY)
    alike = make_method(f"{tmp_path / 'b' / 'my_defence.py'}:Likewise", "digits", **TINY)
    params = [run_params(method, few, "mlp_8", 0, "32-true") for method in (moved, changed, alike)]
    assert [Run.of(one, tmp_path / "runs").path == run.path for one in params] == [True, False, False]
    run.clear()
    assert not (run.path / "method.py").exists()


def test_the_text_that_counts_is_the_one_that_was_executed(tmp_path):
    method = make_method(written(tmp_path), "digits")
    (tmp_path / "my_defence.py").write_text("")
    assert method.code.text == OWN


def test_a_base_in_another_file_counts(tmp_path):
    written(tmp_path)
    head = "from dataclasses import dataclass\nfrom my_defence import MixedAT\n"
    (tmp_path / "child.py").write_text(
        f"{head}@dataclass(frozen=True, kw_only=True)\nclass Child(MixedAT):\n    pass\n"
    )
    code = make_method(f"{tmp_path / 'child.py'}:Child").code
    assert (code.name, code.text) == ("Child", f"{(tmp_path / 'child.py').read_text()}\n{OWN}")


def test_an_interrupted_run_is_resumed_by_the_same_text_alone(tmp_path, few, monkeypatch):
    spec, root = written(tmp_path), tmp_path / "runs"
    left = broken_off(make_method(spec, "digits", **TINY), few, root, monkeypatch, 2)
    assert (left.path / "method.py").read_text() == OWN
    written(tmp_path, OWN.replace("self.share * clean + ", ""))
    other = train(make_method(spec, "digits", **TINY), few, root)
    assert (other.path != left.path, left.status()["state"]) == (True, "interrupted")
    written(tmp_path)
    resumed = train(make_method(spec, "digits", **TINY), few, root)
    assert resumed.path == left.path
    assert same_runs(resumed, train(make_method(spec, "digits", **TINY), few, tmp_path / "whole"))


def test_runs_are_read_without_the_code(tmp_path, few):
    text = OWN.replace('name = "mixed_at"', 'name, protocol = "mixed_at", "pgd20"')
    method = make_method(written(tmp_path, text), "digits", **TINY)
    run = train(method, few, tmp_path / "runs")
    os.remove(tmp_path / "my_defence.py")
    assert run.model() is not None
    (board,) = tables.inventory(find_runs(tmp_path / "runs")).to_dict("records")
    assert (board["method"], board["state"]) == ("mixed_at", "done")
    table = pd.DataFrame({"method": ["mixed_at"], "changed": [run.changed]})
    assert experiments.with_passes(table, [run])["attack passes"].to_list() == [method.attack_passes] == [4]
    rows = [{"attack": name, "accuracy": a} for name, a in (("pgd20", 0.6), ("autoattack", 0.4), ("worst", 0.4))]
    assert protocol_badge(run.params(), {"rows": rows})["overstates"] == pytest.approx(20)
    assert variant_of(run).startswith("mixed_at arch=mlp_8")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("MixedAT", OWN.replace('name = "mixed_at"', ""), "MixedAT has no name: write one of a-z, 0-9 and _"),
        ("MixedAT", OWN.replace("mixed_at", "../x"), r"MixedAT has the name '\.\./x': write one of a-z"),
        ("MixedAT", OWN.replace("mixed_at", "trades"), "MixedAT has the name 'trades', which robustlib uses itself"),
        ("MixedAT", OWN.replace("mixed_at", "common"), "MixedAT has the name 'common', which robustlib uses itself"),
        ("MixedAT", OWN.replace("@dataclass(frozen=True, kw_only=True)", ""), "MixedAT is no dataclass: write @data"),
        ("MixedAT", OWN.replace("(frozen=True, kw_only=True)", ""), "cannot be imported .*non-frozen"),
        ("MixedAT", OWN.replace("share: float = 0.5", "share: float"), "MixedAT has no default for share: give each"),
        ("MixedAT", OWN.replace("(AdversarialMethod)", ""), "MixedAT is <class .*give a class derived from"),
        ("F", OWN, "F is <module 'torch.*give a class derived from robustlib.methods.Method"),
        ("MixAT", OWN, r"has no 'MixAT'\. Did you mean 'MixedAT'\?"),
        ("", OWN, "names no code: write file.py:name"),
    ],
)
def test_what_is_no_method_is_a_sentence(tmp_path, name, text, said):
    written(tmp_path, text)
    with pytest.raises(InputError, match=said):
        make_method(f"{tmp_path / 'my_defence.py'}:{name}", "digits")


def test_unknown_files_names_and_hyperparameters_are_sentences(tmp_path):
    for name, said in (("nowhere.py:MixedAT", "There is no file"), ("my_defence.py", "names no code")):
        with pytest.raises(InputError, match=said):
            make_method(name, "digits")
    with pytest.raises(InputError, match=r"Unknown hyper-parameter of mixed_at 'shares'\. Did you mean 'share'\?"):
        make_method(written(tmp_path), "digits", shares=0.3)


def test_a_class_typed_in_a_cell_keeps_that_cell_and_one_whose_text_is_lost_is_refused(monkeypatch):
    shell = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", shell)
    head = "from dataclasses import dataclass\nfrom robustlib.methods import PGDAT\n"
    text = f'{head}@dataclass(frozen=True, kw_only=True)\nclass Short(PGDAT):\n    name, lr = "short", 0.1\n'
    exec(compile(text, "<stdin>", "exec"), vars(shell))
    with pytest.raises(InputError, match="Short was typed where its text is lost: write it in a file or in a notebook"):
        shell.Short.from_preset("digits")
    shell.In = ["", text, "Short", "class Shorter: ..."]
    code = shell.Short.from_preset("digits").code
    assert (code.place, code.name, code.text) == ("notebook", "Short", text)
    assert shell.Short.from_preset("digits").command("digits", "mlp", 0, "32-true") == ""
    assert tables.hyperparameters(shell.Short.from_preset("digits")).loc["lr", "meaning"] == "peak learning rate"


def test_installed_packages_have_methods_by_name(tmp_path, monkeypatch):
    written(tmp_path / "far_defences", OWN.replace("mixed_at", "far_at"))
    (tmp_path / "far_defences" / "__init__.py").write_text("")
    about = tmp_path / "far-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.0\n")
    place = "far_defences.my_defence"
    lines = [f"far_at = {place}:MixedAT", f"near_at = {place}:MixedAT", "broken = far_defences.gone:X"]
    (about / "entry_points.txt").write_text("\n".join(["[robustlib.methods]", *lines, f"pgd_at = {place}:MixedAT"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    method = make_method("far_at", "digits", share=0.3)
    assert (method.name, method.share, method.code.spec) == ("far_at", 0.3, f"{place}:MixedAT")
    assert method.code.text == OWN.replace("mixed_at", "far_at")
    assert type(make_method("pgd_at")) is METHODS["pgd_at"], "no package takes the place of a method of ours"
    for name, said in (
        ("broken", r"entry point 'broken' .* of far in robustlib.methods cannot be loaded \(ModuleNotFoundError"),
        ("near_at", "The installed method 'near_at' calls itself 'far_at'"),
        ("far_ad", r"Unknown method 'far_ad'\. Did you mean 'far_at'\? Known: .*far_at.*trades"),
    ):
        with pytest.raises(InputError, match=said):
            make_method(name)


def test_a_study_names_it_like_a_command(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    claim = "{name: share, text: It holds., source: none, measure: worst, variant: mixed_at share=0.3, than: mixed_at}"
    methods = "{'my_defence.py:MixedAT': {share: [0.3, 0.5]}, pgd_at: }"
    Path("study.yaml").write_text(f"methods: {methods}\nclaims: [{claim}]\nseeds: 0-1")
    study = experiments.read_study("study.yaml")
    jobs = experiments.plan(study.variants, study.seeds, experiments.Options())
    named = [(job.run.path.parent.name, job.task.parameters["method"]) for job in jobs]
    assert named == [("mixed_at", f"{tmp_path / 'my_defence.py'}:MixedAT")] * 4 + [("pgd_at", "pgd_at")] * 2
    assert [job.name for job in jobs[::2]] == [
        "mixed_at · share=0.3 · seed 0",
        "mixed_at · share=0.5 · seed 0",
        "pgd_at · seed 0",
    ]


def test_a_method_of_a_file_is_found_again_by_another_process(tmp_path, monkeypatch):
    method = make_method(written(tmp_path / "code"), **TINY, share=0.25)
    sent = pickle.dumps(method)
    monkeypatch.delitem(sys.modules, type(method).__module__)  # as there
    found = pickle.loads(sent)
    assert found.hyperparameters() == method.hyperparameters()
    assert type(found).__name__ == "MixedAT"

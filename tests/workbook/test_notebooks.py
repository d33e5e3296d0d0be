"""The notebooks: thin and inspectable; and they run (test_installed.py executes one in a kernel)."""

import ast
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch

from robustlib.attacks import FAB, MinimumNorm, Threat
from robustlib.audit import audit_run
from robustlib.data import Dataset, Split, load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import StochasticProtocol, evaluate_run, measure_distances
from robustlib.methods import METHODS, load_preset, make_method
from robustlib.models import Classifier
from robustlib.representation import metric_over_plane
from robustlib.runs import Run, find_runs, read_json, write_json
from robustlib.training import fit
from robustlib.training.fit import run_params
from robustlib.workbook.parameters import check_cells, choose_method
from robustlib.workbook.task import Task, check, inspect
from tests import ROOT
from tests.fixtures import audit
from tests.notebook import perform

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(notebook: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_clean(notebook: Path) -> None:
    """Its first cell alone imports; its parameters are flat literals with help, which papermill finds; prose leads."""
    (cell,) = [cell for cell in cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    names = []
    for line, node in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(node, ast.AnnAssign)
        assert isinstance(node.annotation, ast.Name)  # no unions
        assert type(ast.literal_eval(node.value)).__name__ in (node.annotation.id, "NoneType")  # None: the preset's
        assert re.search(r"  # [^=]+$", line), line
        names.append(node.target.id)
    assert list(inspect(notebook)) == names
    assert len(names) <= 22
    first, *rest = (ast.parse(cell.source) for cell in cells(notebook))
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in first.body)
    assert re.search(r"parameters\.(choose_method|check_parameters)\(", "".join(c.source for c in cells(notebook)[2:4]))
    written = () if notebook.stem == "own_method" else (ast.ClassDef, ast.FunctionDef)  # there a loss is written
    banned = (ast.Import, ast.ImportFrom, ast.For, ast.While, *written)
    assert not [node for tree in rest for node in ast.walk(tree) if isinstance(node, banned)]
    raw = nbformat.read(notebook, as_version=4)
    assert len(raw.cells) <= 25
    assert max(len(one.source.splitlines()) for one in cells(notebook) if one.source != cell.source) <= 12
    assert len(raw.cells[0].source.split()) <= 220, "theory stands behind the results"
    assert raw.metadata.kernelspec.name == "python3"
    assert not re.search(r"plt\.|matplotlib|[\"' ]/(home|root|tmp|work|Users|mnt)/", notebook.read_text())
    titles = [cell for cell in cells(notebook, "markdown") if re.search(r"^# ", cell.source, re.MULTILINE)]
    assert titles == raw.cells[:1]


@pytest.mark.parametrize(
    "notebook", [file for file in NOTEBOOKS if "test_examples" in inspect(file)], ids=lambda path: path.stem
)
@pytest.mark.parametrize("value", [-5, "many", 0.5])
def test_a_count_of_test_images_that_is_none_is_refused_before_the_training(notebook: Path, value: Any) -> None:
    first, parameters, *rest = (cell.source for cell in cells(notebook))
    names: dict[str, Any] = {}
    exec(first, names)
    exec(parameters, names)
    names |= {"test_examples": value, "fit": None}
    with pytest.raises(InputError, match=f"test_examples={value!r}: give a whole number of at least 0"):
        exec("\n".join(rest), names)
    assert "run" not in names


def text(executed: Path) -> str:
    outputs = [output for cell in cells(executed) for output in cell.outputs]
    data = [{"text": output.get("text", ""), **output.get("data", {})} for output in outputs]
    return "\n".join(part.get(kind, "") for part in data for kind in ("text", "text/markdown", "text/plain"))


def pictures(executed: Path) -> list[dict[str, Any]]:
    """What is known of each picture of an executed notebook: its alternative text and its numbers."""
    outputs = [output for cell in cells(executed) for output in cell.outputs]
    return [output.metadata["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def assert_shows(shown: str, *signs: str) -> None:
    assert not [sign for sign in signs if sign not in shown]


def page_of(task: Task) -> tuple[str, int]:
    """All that a notebook says, performed here, its figures' alternative texts included; and how many figures it shows."""
    perform(task)
    images = pictures(task.output)
    return text(task.output) + "".join(image["alt"] for image in images), len(images)


def test_a_parameter_that_a_notebook_does_not_have_stops_it_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", FOLDER / "ancra.ipynb", tmp_path / "out.ipynb"]
    command += ["-p", "epoch", "2", "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1
    assert "InputError: Unknown parameter of this notebook 'epoch'. Did you mean 'epochs'?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"], "nothing was trained"


def test_papermill_executes_a_notebook_with_its_parameters(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "papermill", FOLDER / "compare.ipynb", tmp_path / "out.ipynb", "--no-progress-bar"]
    command += ["-p", "runs", tmp_path / "none", "-p", "preset", "cifar10-short"]
    subprocess.run(command, check=True, timeout=300)
    assert_shows(text(tmp_path / "out.ipynb"), "robustlib run --preset cifar10-short")


def test_injected_parameters_are_those_that_were_declared() -> None:
    declared, own = "beta: float = None  # a weight\noverrides: list = []", "# Parameters\nbeta = 3.0\n"
    check_cells([declared, "%matplotlib inline", own, "# Parameters of mine\nepoch = 1 + 1"])
    with pytest.raises(InputError, match=r"'bta'\. Did you mean 'beta'.*overrides: ..name=value"):
        check_cells([declared, own.replace("beta", "bta")])
    with pytest.raises(InputError, match=r"Known: runs\.$"):
        check_cells([declared, own, "runs: str = 'runs'", own])


def test_parameters_that_are_not_given_are_the_presets() -> None:
    asked = {"epochs": None, "eps": 0.1}
    assert check(Task(FOLDER / "ancra.ipynb", asked, Path("out.ipynb"))).parameters == asked
    with pytest.raises(InputError, match="'epochs'='two': give a whole number"):
        check(Task(FOLDER / "ancra.ipynb", {"epochs": "two"}, Path("out.ipynb")))
    unchanged = choose_method("trades", "digits", [], epochs=None, eps=None)
    assert unchanged == make_method("trades", "digits")
    changed = choose_method("trades", "digits", ["beta=3.0"], epochs=2, eps="8/255")
    assert changed == make_method("trades", "digits", beta=3.0, epochs=2, eps=8 / 255)
    with pytest.raises(InputError, match="'beta' is set as a parameter and in overrides"):
        choose_method("trades", "digits", ["beta=3.0"], beta=0)


@pytest.fixture
def brief(few: Dataset, brief_protocol: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short attacks, few validation images and no UMAP: that they are shown counts here, not how good they are."""
    monkeypatch.setattr(
        "robustlib.data.load_dataset", lambda name, **how: few if name == "digits" else load_dataset(name, **how)
    )
    tiny = StochasticProtocol(images=8, pgd_eot=(4, 8), autoattack=(4, 8), stadv=(4, 8), queries=40, votes=2, curve=8)
    monkeypatch.setattr("robustlib.evaluation.measurements.stochastic_protocol", lambda preset: tiny)
    monkeypatch.setattr("robustlib.workbook.sections.EXAMPLES", 40)
    for name in ("DRAWS", "EOT"):
        monkeypatch.setattr(sys.modules["robustlib.audit.audit"], name, 2)
    monkeypatch.setattr("robustlib.representation.embedding._umap", lambda u, start, _: start.copy())
    monkeypatch.setattr("robustlib.representation.metric_over_plane", partial(metric_over_plane, steps=9))


LATENT = "pretrain_epochs=1 disentangle=false classify=latent"
ACL = ("is one of Linf; this run's", "UMAP: adversarial images lie", "Attack passes for each image: 4.", "0 of the 33")
ANCRA = ("head 1", "bpda gate 0.1", "adaptive minimum", "overstated by", "transferred", "ancra-ablation")
AFD = ("afd-ablation", "afd-sweep", "encoder", "f1: relative L2 distance", "what the study found")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("method", "changes", "signs", "figures"),
    [
        ("ancra", "", ANCRA, 12),
        ("afd", "pretrain_epochs=1", AFD, 13),
        pytest.param("afd", LATENT, ("h: relative L2 distance",), 10, marks=pytest.mark.slow),
        ("acl", "head_epochs=1 norm=l2 eps=0.6", ACL, 10),
    ],
)
def test_a_method_of_its_own_notebook(tmp_path: Path, method: str, changes: str, signs: tuple, figures: int) -> None:
    overrides = ["epochs=1", "train_examples=200", "attack_steps=2", *changes.split()]
    parameters = {"method": method, "overrides": overrides, "runs": tmp_path / "runs", "test_examples": 10}
    shown, drawn = page_of(Task(FOLDER / f"{METHODS[method].notebook}.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == figures
    assert_shows(shown, *signs)


def stored_run(root: Path, dataset: Dataset, name: str, seed: int = 0, worst: float = 0.6, **changes: Any) -> Run:
    """A finished run of a variant of the preset digits with made-up results, never trained: no weights, no metrics."""
    method = make_method(name, "digits", **changes)
    run = Run.of(params := run_params(method, dataset, method.arch, seed, "32-true"), root)
    rows = [{"attack": attack, "accuracy": a, "low": a, "high": a} for attack, a in (("clean", 0.9), ("worst", worst))]
    results = {"threat": str(method.threat(dataset)), "rows": rows, "last": {"rows": rows}, "curve": []}
    results |= {"n": 500, "checkpoint": "best"}
    for file, content in {"params": params, "status": {"state": "done"}, "results": results}.items():
        write_json(run.path / f"{file}.json", content)
    return run


def store_distances(run: Run, distance: float) -> None:
    """Stores distances of four test images, the last one wrong; FAB's are shorter by a tenth."""
    columns = {"index": [1, 2, 3, 4], "correct": [True, True, True, False], "split": "test"}
    far = {"Tangent": distance, "FAB": 0.9 * distance}
    measured = {name: {**columns, "attack": f"{name}()", "distance": [x] * 3 + [0.0]} for name, x in far.items()}
    write_json(run.path / "distances.json", measured)


@pytest.mark.usefixtures("brief")
def test_the_notebook_of_claf_beside_its_studies(tmp_path: Path, few: Dataset) -> None:
    for refresh, level in (("never", 0.5), ("reinit", 0.75)):
        run = stored_run(tmp_path / "runs", few, "claf", worst=level, refresh=refresh)
        probes = {f"probe/head_{end}/{kind}": level for end in ("start", "end") for kind in ("clean", "attacked")}
        rows = [{"stage": "adversarial", "epoch": e, "epoch_total": e, "warnings": [], **probes} for e in (1, 2)]
        (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for seed, worst in ((0, 0.3), (1, 0.5)):
        stored_run(tmp_path / "runs", few, "pgd_at", seed, worst, epochs=25, augment="weak")
    stored_run(tmp_path / "runs", few, "claf", final="alf")
    overrides = ["train_examples=200", "attack_steps=2", "epochs=2", "aug_epochs=1", "head_epochs=1"]
    parameters = {"method": "claf", "overrides": overrides, "runs": tmp_path / "runs", "test_examples": 10}
    shown, drawn = page_of(Task(FOLDER / "claf.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 11
    signs = ("✕ invalid", "Invalid: the attack clamps", "UMAP: adversarial images lie", "what the study found")
    studies = (f"3 of the {n} runs of the study **claf-{name}**" for n, name in ((33, "ablation"), (60, "comparison")))
    assert_shows(shown, *signs, *studies)
    for level, refresh in ((0.5, "never"), (0.75, "reinit")):
        assert f"CLAF · refresh={refresh} (1 seed) {level:g} at epoch 1" in shown
        assert re.search(rf"claf +refresh={refresh} +\d+ +1 +90\.0 % +{100 * level:.1f} %", shown)
    assert re.search(r"pgd_at +epochs=25, augment=weak +250 +2 +90\.0 ± 0\.0 % +40\.0 ± 14\.1 %", shown)
    assert re.search(r"claf +final=alf +450 +1 ", shown)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_the_notebook_of_the_spectral_family_on_data_of_which_there_is_no_study(tmp_path: Path, few: Dataset) -> None:
    for seed, study in ((0, {"strength": 0.0}), (1, {"arch": "small_cnn"})):
        store_distances(stored_run(tmp_path / "runs", few, "rep_spectral", seed, **study), 0.5)
    overrides = ["epochs=3", "train_examples=200"]
    parameters = {"overrides": overrides, "runs": tmp_path / "runs", "test_examples": 8, "dataset": "digits-0-4"}
    shown, drawn = page_of(Task(FOLDER / "rep_spectral.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 12
    assert_shows(shown, "σ of head", "Quartiles", "FAB (white box)", "worst case", "what the study found")
    (run,) = find_runs(tmp_path / "runs", dataset="digits-0-4")
    assert run.distances()["n"] == 8
    assert run.distances("val") == {}, "of a recipe of its own: no part of the grid"
    assert (tmp_path / "runs" / "toys" / run.path.name).is_dir()  # of its own: two pages train at once with --jobs 2
    parameters = {"runs": tmp_path / "runs", "dataset": "digits-0-4"}
    shown, drawn = page_of(Task(FOLDER / "rep_spectral_study.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 0
    why = "are of digits, not of this page's data set, digits-0-4"
    studies = [f"The runs of the study **spectral-{name}** {why}" for name in ("grid", "cnn", "transfer")]
    assert_shows(shown, *studies, "Fewer than three runs", "No seed has measured")


def at_inverse_slope(model: Classifier, split: Split, attack: MinimumNorm, **_: Any) -> pd.DataFrame:
    """In place of an attack: distances that go with the inverse of sigma_max^2 of the one hidden layer, a tenth less by FAB."""
    sigma = float(torch.linalg.matrix_norm(model.get_submodule("encoder.layers.0").weight.detach(), 2))
    distance = (0.9 if isinstance(attack, FAB) else 1.0) / sigma**2 * (1 + torch.arange(len(split)) / 100)
    frame = {"index": split.indices, "label": split.labels, "distance": distance}
    return pd.DataFrame({name: column.numpy() for name, column in frame.items()}).assign(correct=True, queries=1)


@pytest.fixture
def family(tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a grid of three trained and measured runs, a CNN of two strengths and two seeds, and two transfers.

    Attacks that measure, and audits, are replaced: what the page makes of runs counts here.
    """
    monkeypatch.setattr("robustlib.workbook.sections.audit_run", lambda *_, **__: audit())
    monkeypatch.setattr("robustlib.evaluation.measurements.adversarial_distances", at_inverse_slope)
    for method in ("rep_spectral", "ll_spectral"):
        monkeypatch.setitem(load_preset("digits")[method], "epochs", 3)
    root = tmp_path / "runs"
    variants = (("rep_spectral", {"strength": 0.0}), ("rep_spectral", {"strength": 0.03}), ("ll_spectral", {}))
    for name, changes in variants:
        run = fit(make_method(name, "digits", **changes), few, root=root, device="cpu", progress=False)
        measure_distances({"it": run}, few, n=8)
        measure_distances({"it": run}, few, FAB(Threat("l2", 0.5)), n=8)
        measure_distances({"it": run}, few, n=8, split="val")
        made = stored_run(root, few, name, **changes)
        assert made.path == run.path
    for seed in (0, 1):
        for strength, distance in ((0.001, 0.5), (0.0, 0.3)):
            cnn = stored_run(root, few, "rep_spectral", seed, arch="small_cnn", strength=strength)
            store_distances(cnn, distance + seed / 100)
    for name, distance in (("barlow_spectral", 0.7), ("bss", 0.4)):
        store_distances(stored_run(root, few, name), distance)
    return root


@pytest.mark.usefixtures("brief")
def test_the_notebook_of_the_spectral_family_beside_its_studies(tmp_path: Path, family: Path) -> None:
    parameters = {"runs": family, "test_examples": 8}
    shown, drawn = page_of(Task(FOLDER / "rep_spectral.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 12
    assert re.search(r"this run +100\.0 %", shown), "its own distances on validation images"
    shown, drawn = page_of(Task(FOLDER / "rep_spectral_study.ipynb", {"runs": family}, tmp_path / "out.ipynb"))
    assert drawn == 2
    assert_shows(shown, "3 of the 39 runs of the study **spectral-grid**", "4 of the 12 runs", "2 of the 39 runs")
    rows = (
        r"none +0 +1 +100\.0 % +\d",
        r"Rep-spectral +0\.03 +1 +100\.0 % .*✓ chosen, the only one of the grid",
        r"over the representation's layers +−1\.00 +3 +3 +8\n",
        r"rep_spectral +arch=small_cnn, strength=0\.001 +2 +90\.0 ± 0\.0 %",
        r"Rep-spectral · arch=small_cnn, strength=0\.001 +2 +0\.505 \(0\.441–0\.569\) +0\.455 \(0\.397–0\.512\) +3\n",
        r"Rep-spectral · arch=small_cnn, strength=0\.0 +2 +0\.305 ",
        r"Barlow Twins, spectral +1 +0\.700 \(0\.700–0\.700\) +0\.630 ",
        r"BSS +1 +0\.400 ",
    )
    for row in rows:
        assert re.search(row, shown), row
    own = next(run for run in find_runs(family, method="rep_spectral") if not run.changes())
    assert own.distances("val")["n"] == 8


@pytest.mark.usefixtures("brief")
def test_the_notebook_of_atop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_L1_SHARE", "MAX_L1_SHARE_RT3", "MAX_HIDDEN_SHARE"):  # a purifier that hardly learnt
        monkeypatch.setattr(f"robustlib.methods.atop.{limit}", 100.0)
    short = ["epochs=1", "warm_up=0", "classifier_epochs=1", "purifier_epochs=1", "repeats=1", "validate_every=9"]
    overrides = [*short, "train_examples=100", "width=4", "arch=mlp_8"]
    parameters = {"overrides": overrides, "runs": tmp_path / "runs", "test_examples": 8}
    shown, drawn = page_of(Task(FOLDER / "atop.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 12
    words = (
        "through 5 steps of the purifier",
        "what is left of the attack",
        "attacked, purified",
        "eot=8",
        "worst case",
    )
    assert_shows(shown, *words)
    (run,) = find_runs(tmp_path / "runs", method="atop")
    shown, drawn = page_of(Task(FOLDER / "atop_study.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 3
    assert_shows(shown, "worst of 10 draws", "fixed by seed", "unseen: StAdv", "atop-ablation", "ms an image")
    *_, unseen = read_json(run.path / "unseen.json").values()
    assert run.results()["n"] == run.audit()["n"] == unseen["n"] == 8
    assert read_json(run.path / "randomness.json")["draws"] == 10


@pytest.mark.usefixtures("brief")
def test_the_notebook_of_a_method_of_ones_own(tmp_path: Path) -> None:
    """Its cell is kept with the run; with another text the same call trains another one, and PGD-AT not again."""
    book = nbformat.read(FOLDER / "own_method.ipynb", as_version=4)
    assert len(book.cells) <= 12
    (cell,) = [cell for cell in book.cells if "class MixedAT" in cell.source]
    parameters = {"epochs": 1, "train_examples": 130, "test_examples": 10, "runs": tmp_path / "runs"}
    shown, drawn = page_of(Task(FOLDER / "own_method.ipynb", parameters, tmp_path / "out.ipynb"))
    assert drawn == 2
    assert_shows(shown, "mixed_at", "pgd_at", "worst case", "Mixed training · epochs=1, train_examples=130, share=0.3")
    mine, other = find_runs(tmp_path / "runs")
    assert (mine.params()["code"]["place"], mine.provenance()["command"]) == ("notebook", "")
    assert (mine.path / "method.py").read_text().strip() == cell.source
    assert "code" not in other.params()

    cell.source = cell.source.replace("clean + ", "clean ** 2 + ")
    book.cells = book.cells[:8]  # up to the training
    nbformat.write(book, tmp_path / "changed.ipynb")
    page_of(Task(tmp_path / "changed.ipynb", parameters, tmp_path / "out.ipynb"))
    again = find_runs(tmp_path / "runs")
    assert len(again) == 3
    assert {mine.path, other.path} < {run.path for run in again}


@pytest.mark.usefixtures("brief")
def test_the_comparison(few: Dataset, tmp_path: Path) -> None:
    changes = {"arch": "mlp_512", "epochs": 4, "train_examples": 512, "attack_steps": 2}
    run = fit(make_method("trades", "digits", **changes), few, root=tmp_path / "runs", device="cpu", progress=False)
    evaluate_run(run, few, n=12)
    audit_run(run, few, n=12)

    def compare(**parameters: object) -> tuple[str, int]:
        return page_of(
            Task(FOLDER / "compare.ipynb", {"runs": tmp_path / "runs", **parameters}, tmp_path / "out.ipynb")
        )

    shown, drawn = compare()
    signs = ("1 runs", "trades", "worst case", "AutoAttack", "headline", "protocol", "what the study found")
    assert_shows(shown, *signs, "TRADES · arch=mlp_512, epochs=4, train_examples=512, attack_steps=2")
    assert "not audited" not in shown
    tagged = [c for c in cells(tmp_path / "out.ipynb") if "index" in c.metadata.get("tags", [])]
    assert drawn >= sum("image/png" in o.get("data", {}) for c in tagged for o in c.outputs) >= 5
    assert {path.name for path in run.path.iterdir()} >= {"features", "embeddings"}
    shown, drawn = compare(look_inside=False)
    assert drawn == 4, "the rest is compared, and what the run keeps of its feature space"
    assert "Not shown: fewer than two of these runs" in shown
    assert shown.count("Not shown: features are not computed here") == 2
    assert "Runs on digits are left out" in compare(dataset="mnist")[0]
    assert "robustlib run --preset cifar10-short" in compare(preset="cifar10-short", runs=tmp_path / "none")[0]

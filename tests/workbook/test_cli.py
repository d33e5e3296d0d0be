"""The command line: plans, runs, reports; and says what is wrong in a sentence, with exit code 2."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from robustlib.data import Dataset, load_dataset, load_images
from robustlib.errors import InputError
from robustlib.evaluation import accuracy, leaderboard
from robustlib.methods import make_method
from robustlib.runs import Run, UserCode, digest, find_runs, read_json, write_atomic, write_json
from robustlib.threat import Threat
from robustlib.training.fit import run_params
from robustlib.workbook import cli
from robustlib.workbook.cli import main
from robustlib.workbook.experiments import compare_runs, parse_seeds, read_study, study_names, variant_name, with_passes
from robustlib.workbook.task import Task
from tests import ROOT
from tests.conftest import made_up
from tests.methods.test_own_method import OWN
from tests.training_fixtures import altered
from tests.workbook import finished_run, wait_for

COMMANDS = [
    *("run", "study", "benchmark", "compare", "report", "evaluate", "audit", "list"),
    *("status", "cancel", "notebooks", "lab"),
]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Calls the command line in an empty directory; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTLIB_DATA", raising=False)
    monkeypatch.setattr(cli.out, "width", 250)  # no line breaks inside what is searched

    def outcome(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return int(stop.value.code or 0), *capsys.readouterr()

    return outcome


@pytest.fixture
def short_notebooks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout whose baselines.ipynb ends after the evaluation, and whose comparison has parameters only; maps are empty."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "notebooks").mkdir()
    for name in ("baselines", "compare"):
        book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        last = next(k for k, cell in enumerate(book.cells) if re.search(r"sections.judge\(|look_inside:", cell.source))
        book.cells = book.cells[0 if name == "baselines" else last : last + 1]
        nbformat.write(book, checkout / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr("robustlib.__file__", str(checkout / "robustlib" / "__init__.py"))
    monkeypatch.setattr("robustlib.workbook.report.write_atlas", lambda target, *_, **__: write_atomic(target, "a map"))


KINDS = ("InputError", "MemoryError")


def only_asked(patch: pytest.MonkeyPatch, statuses: list[dict[str, str]] | None = None) -> list[Task]:
    """The tasks that commands would execute from now on, and that end as told; nothing is published."""
    asked: list[Task] = []

    def run_all(tasks: list[Task], *_: object, **__: object) -> list[dict[str, str]]:
        asked.extend(tasks)
        return (statuses or [{"state": "done"}] * len(tasks))[: len(tasks)]

    patch.setattr("robustlib.workbook.engines.run_all", run_all)
    patch.setattr("robustlib.workbook.experiments.publish", lambda *_: (Path("index.html"), []))
    return asked


# ---- help


HELP = """
import sys, robustlib.workbook.cli as cli
for words in (["--help"], *([name, "--help"] for name in sys.argv[1:])):
    try:
        cli.main(words)
    except SystemExit:
        pass
print(sorted(sys.modules))
"""


def test_help_is_light_and_fits_100_columns() -> None:
    environment = os.environ | {"COLUMNS": "100"}
    answer = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], env=environment, capture_output=True, text=True)
    shown, modules = answer.stdout.rsplit("\n[", 1)
    assert not [heavy for heavy in ("torch", "pandas", "papermill", "numpy") if f"'{heavy}'" in modules]
    assert max(map(len, shown.splitlines())) <= 100
    assert not answer.stderr
    assert all(f"│ {name} " in shown and f"Usage: robustlib {name} " in shown for name in COMMANDS)
    assert "methods: [trades]" in shown, "brackets are no markup"


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("benchmark torchvision:resnet18", "Say on which images to judge it: --dataset NAME"),
        ("benchmark a:b --dataset digits --images here", "--dataset digits and --images here are both given: give one"),
        ("benchmark torchvision:resnet18 --images gone", "'gone' is neither a folder of images nor"),
        ("benchmark torchvision:resnet18 --dataset digits", "cannot take images of 1 x 8 x 8"),
        ("benchmark nets.py:build --dataset digits", "There is no file nets.py"),
        ("benchmark a:b --dataset digits --weights *.pt", "No file matches '*.pt'"),
        ("benchmark a:b --dataset digits --model-args [1]", "model_args='[1]' is no JSON object"),
        ("benchmark a:b --dataset digits --threat 8/255", "threat='8/255' is no threat: write linf:8/255"),
        ("benchmark a:b --dataset digits --threat l1:3", "Unknown norm 'l1'"),
        ("benchmark a:b --dataset digits --mean 0.5,x", "mean='0.5,x': write one number a channel"),
        ("compare runs/a", "1 run cannot be compared"),
        ("compare runs/a runs/b", "runs/a holds no run: give evaluated runs"),
        ("run tradez", "Unknown method 'tradez'. Did you mean 'trades'?"),
        ("run --preset digit", "Unknown preset 'digit'. Did you mean 'digits'?"),
        ("run trades --set bta=1", "Unknown hyper-parameter of trades 'bta'. Did you mean 'beta'?"),
        ("run trades --set beta", "'beta' sets nothing: write name=value"),
        ("run trades --set beta=much", "beta='much': give a number of at least 0"),
        ("run trades --set eps=-0.1", "eps=-0.1"),
        ("run trades --set eps=8", "8/255"),
        ("run trades --set attack_steps=0", "attack_steps=0"),
        ("run --seeds 1.5", "Seeds '1.5' are no whole numbers"),
        ("run --seeds 0-1000000000", "Seeds '0-1000000000' ask for 1000000001 trainings: give at most 5000"),
        (f"run --seeds {2**63}", "below 2**63"),
        (f"run --seeds {'9' * 5000}", "are no whole numbers"),
        ("run trades pgd_at --seeds 0-2999", "ask for 6000 trainings: give at most 5000"),
        ("run trades --set beta=1e400", "beta=inf: give a finite number"),
        ("run trades --set lr=1e308", "lr=1e+308: give a number of at least 0 and at most 3.4e+38"),
        ("run trades --set milestones=[3,'a']", "milestones[1]='a'"),
        ("run trades --set beta=1 --set beta=2", "'beta' is set twice"),
        ("run trades --set preset=digits", "give it as --preset"),
        ("run trades --set name=x", "Unknown hyper-parameter of trades 'name'"),
        ("run --dataset digits-0-1000000000", "Unknown dataset 'digits-0-1000000000'"),
        (f"run --dataset digits-{'0' * 300}-4", "Unknown dataset 'digits-000"),
        ("run --preset cifar10-short --data-root ~nobody-here", "'~nobody-here' is not a directory"),
        *(
            (f"{words} {'a' * 256}", "is no path: give one")
            for words in ("run --runs", "list --runs", "evaluate", "audit")
        ),
        (f"report --reports {'a/' * 2000}", "is no path: give one"),
        (f"run --dry-run --data-root {'a' * 256}", "is no path: give one"),
        ("run --dry-run --jobs 0", "jobs=0: give a whole number of at least 1"),
        ("run --dry-run --jobs 1001", "at most 1000"),
        ("run --dry-run --engine rays", "Unknown engine 'rays'"),
        ("run --timeout nan", "timeout=nan: give a finite number above 0, or leave it out"),
        ("run --dry-run --timeout inf", "timeout=inf"),
        ("run --timeout -1", "timeout=-1.0"),
        (f"run --examples {2**63}", "examples=9223372036854775808: give a whole number"),
        ("study /dev/zero", "/dev/zero is no regular file"),
        ("study .", ". is no regular file"),
        (f"study {'a' * 256}", "File name too long"),
        ("run --device gpu", "Unknown device 'gpu'"),
        ("run --device cuda:99", "this machine has no such device"),
        ("run --jobs 0", "at least 1"),
        ("run --engine rays", "Unknown engine 'rays'. Did you mean 'ray'?"),
        ("run --preset cifar10-short", "No data root for 'cifar10'"),
        ("run --preset cifar10-short --data-root nowhere", "'nowhere' is not a directory"),
        ("run --preset cifar10-short --data-root .", "cifar10"),
        ("run --examples -1", "examples"),
        ("run --sed 1", "No such option: --sed"),
        ("study digit-claims", "Cannot read the study digit-claims"),
        ("study nowhere.yaml", "or digits-claims"),
        ("study digits-claims --seeds 1,9", "Unknown seed of digits-claims '9'"),
        ("evaluate nowhere", "nowhere holds no run"),
        ("evaluate nowhere --suite refrence", "Unknown suite 'refrence'. Did you mean 'reference'?"),
        ("report", "There are no finished runs in runs"),
        ("rum", "Did you mean 'run'"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(call, tmp_path: Path, arguments: str, sentence: str) -> None:
    code, out, err = call(*arguments.split())
    assert code == 2
    assert sentence in err
    assert not out
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_paths_are_no_markup_and_a_poor_terminal_gets_what_it_can_show(tmp_path: Path, encoding: str) -> None:
    finished_run(tmp_path / "[red]:x:", "trades x=\x1b[2J\u202e[b]→")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "250"}
    twice = "import sys\nfrom contextlib import suppress\nfrom robustlib.workbook.cli import main\n"
    twice += "for runs in sys.argv[1:]:\n    with suppress(SystemExit):\n        main(['list', '--runs', runs])"
    command = [sys.executable, "-c", twice, "[/x]→", "[red]:x:"]  # one process, which imports for seconds
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert (answer.returncode, answer.stderr) == (0, b"")
    none, listed = answer.stdout.decode(encoding).split("\n", 1)
    arrow, nothing = ("→", "\ufffd") if encoding == "utf-8" else ("\\u2192", "\\ufffd")
    assert none.startswith(f"There are no runs in [/x]{arrow} yet")
    assert f"{nothing}[2J{nothing}[b]{arrow}" in listed
    assert "[red]:x:/digits/trades/" in listed


def test_an_unwritable_place_and_what_a_notebook_refuses_are_bad_input(call, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic("reports", "a file, not a directory")
    code, _, err = call("run", "standard")
    assert (code, "Cannot write to reports/digits" in err) == (2, True)
    Path("reports").unlink()
    statuses = [{"state": "failed", "exception": name, "reason": f"{name}: a truncated file"} for name in KINDS]
    only_asked(monkeypatch, statuses)
    for seeds, code in (("0", 2), ("0-1", 1)):
        exit_code, _, err = call("run", "standard", "--seeds", seeds)
        assert (exit_code, "standard · seed 0 failed: a truncated file\n" in err) == (code, True)


def test_seeds() -> None:
    for text, seeds in {"0": [0], "0-2": [0, 1, 2], "0,3,5": [0, 3, 5], "4, 1-2,4": [4, 1, 2]}.items():
        assert parse_seeds(text) == seeds
    assert parse_seeds(str(2**63 - 1)) == [2**63 - 1]
    for text in ("", "-1", "2-1", "1-", "a", "1.5", "0;1", str(2**64 - 1), "0-" + "9" * 5000):
        with pytest.raises(InputError, match="write 0-2 or 0,3,5"):
            parse_seeds(text)


# ---- studies


def test_a_study_is_a_grid_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "methods: {pgd_at: , trades: {beta: [1, 6]}}\nparameters: {epochs: [1, 2], milestones: [[3, 5]]}\nseeds: 1-2"
    )
    study = read_study(file)
    assert (study.preset, study.seeds, study.examples, study.claims) == ("digits", [1, 2], 0, [])
    variants = [("pgd_at", {"epochs": epochs}) for epochs in (1, 2)]
    variants += [("trades", {"epochs": epochs, "beta": beta}) for epochs in (1, 2) for beta in (1, 6)]
    assert study.variants == [(name, {**changes, "milestones": [3, 5]}) for name, changes in variants]
    file.write_text("methods: {pgd_at: {eps: 8/255, lr: 1e-3, augment: none}}")
    assert read_study(file).variants == [("pgd_at", {"eps": 8 / 255, "lr": 1e-3, "augment": None})], "as with --set"
    file.write_text("methods: {trades: [{}, {beta: [1, 3]}, {epochs: 2, beta: 1}], pgd_at: }\nparameters: {lr: 0.1}")
    variants = [("trades", {}), ("trades", {"beta": 1}), ("trades", {"beta": 3}), ("trades", {"epochs": 2, "beta": 1})]
    assert read_study(file).variants == [(name, {"lr": 0.1, **own}) for name, own in [*variants, ("pgd_at", {})]]


def test_of_a_study_some_seeds_may_be_asked_for(call) -> None:
    code, out, _ = call("study", "spectral-network", "--seeds", "1-2", "--dry-run")
    number = len(read_study("spectral-network").variants)
    assert (code, *(out.count(f"· seed {seed}") for seed in range(3))) == (0, 0, number, number)


def test_claims_of_some_seeds_are_judged_by_all_that_are_there(call, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = {"name": "x", "text": "A.", "source": "B", "measure": "worst", "variant": "trades", "than": "pgd_at"}
    (tmp_path / "study.yaml").write_text(
        json.dumps({"methods": ["trades", "pgd_at"], "seeds": "0-2", "claims": [claim]})
    )
    asked, judged = only_asked(monkeypatch), list[Any]()
    table = "robustlib.workbook.console.claims_table"
    monkeypatch.setattr(table, lambda claims, runs, seeds: judged.append((len(runs), seeds)) or "table")
    call("study", "study.yaml", "--seeds", "1")
    assert [task.parameters["seed"] for task in asked] == [1, 1]
    assert judged == [(6, [0, 1, 2])]


@pytest.mark.parametrize("name", study_names())
def test_built_in_studies_can_be_planned(call, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, "cifar10", (3, 32, 32), 10)
    code, out, _ = call("study", name, "--dry-run")
    study = read_study(name)
    variants = {variant_name(variant, study.preset) for variant in study.variants}
    assert (code, out.count("· seed")) == (0, len(variants) * len(study.seeds))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("method: [trades]", "Did you mean 'methods'?"),
        ("seeds: [a]", "Seeds 'a'"),
        ("seeds: [[0, 1]]", "Seeds '[0, 1]'"),
        ("seeds: 2020-02-02", "are no whole numbers"),
        (f"seeds: 0x{'f' * 5000}", "are no whole numbers"),
        ("methods: [trades]\nseeds: 0-2500\nparameters: {beta: [1, 2]}", "ask for 5002 trainings"),
        ("preset: [digits]", "preset=['digits']: give a text"),
        ("methods: [[trades]]", "write methods as a list"),
        ("methods: []", "write methods as a list"),
        ("methods: {trades: [], pgd_at: }", "write methods as a list"),
        ("methods: {1: }", "write methods as a list"),
        ("methods: 2020-02-02", "write methods as a list"),
        ("parameters: {eps: []}", "eps=[] makes no training: give a value, or leave it out"),
        ("parameters: {1: 2}", "1 is no name of a hyper-parameter"),
        ("parameters: {yes: 2}", "True is no name of a hyper-parameter"),
        ("parameters: {2020-02-02: 2}", "is no name of a hyper-parameter"),
        ("parameters: {preset: digits}", "A preset is no hyper-parameter"),
        ("methods: [trades]\nparameters: {beta: 2020-02-02}", "beta=datetime.date(2020, 2, 2): give a number"),
        ("methods: [trades]\nparameters: {milestones: [[1, [2]]]}", "milestones[1]=[2]: give a number"),
        ("methods: [trades]\nparameters: {beta: .inf}", "beta=inf: give a finite number"),
        ("parameters: {lr: 1}\nparameters: {lr: 2}", "'parameters' is given twice"),
        ("parameters: {beta: 2020-02-30}", "is no YAML: day is out of range"),
        (
            "parameters: {" + ", ".join(f"{k}: [{'1,' * 10}]" for k in "abcdefghi") + "}",
            "asks for 8000000000 trainings",
        ),
        ("methods: &a [*a]", "more than 10000 values"),
        ("a: &a [1]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in pairwise("abcdefgh")), "more than 10000"),
        ("- 1\n" * 300_000, "more than 1000000 bytes"),
        ("[" * 9999, "is no YAML: maximum recursion depth"),
        (f"claims: [{{name: 0x{'f' * 5000}}}]", "the claim <int> has no 'text'"),
        (
            f"claims: [{{name: 0x{'f' * 5000}, text: t, source: s, measure: clean, variant: mart, than: trades}}]",
            "the claim <int>: Claim name=<int>: give a text",
        ),
        ("parameters: [beta]", "write methods as a list"),
        (
            "- trades",
            "should hold keys such as preset, methods, parameters, seeds, examples, unseen, claims: `robustlib study --help`",
        ),
        ("examples: many", "examples='many'"),
        ("examples: -5", "examples=-5: give a whole number of at least 0"),
        ("claims: [trades]", "write claims as a list of mappings"),
        ("{", "is no YAML"),
        ("methods: [trades]\nparameters: {bta: 1}", "Did you mean 'beta'?"),
    ],
)
def test_bad_studies(call, tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "study.yaml").write_text(content)
    code, _, err = call("study", "study.yaml")
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "runs").exists()


def test_dry_run_makes_nothing(call, tmp_path: Path) -> None:
    code, out, _ = call("run", "trades", "pgd_at", "--seeds", "0-2", "--set", "epochs=3", "--dry-run")
    assert (code, out.count("epochs=3")) == (0, 6)
    assert out.count("train") >= 6
    assert not list(tmp_path.iterdir())
    assert "standard · seed 0" in call("run", "--dry-run")[1]
    code, _, err = call("run", "rep_spectral", "pgd_at", "--set", "arch=mlp_8", "--set", "lr=0.3", "--dry-run")
    assert (code, err.count("Warning: ")) == (0, 2)
    assert "rep_spectral: batch_size=64" in err
    assert "strength=0.1" in err
    assert "lr" not in err


@pytest.mark.usefixtures("short_notebooks")
def test_study_report_list_evaluate(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = "parameters: {arch: mlp_8, epochs: 1, train_examples: 256, lr: [0.1, 1.0e+20]}"
    (tmp_path / "study.yaml").write_text(f"methods: [standard]\n{parameters}")
    command = ["study", "study.yaml", "--examples", "12", "--jobs", "2"]
    code, out, err = call(*command)
    # one of the two variants diverges: its sentence is printed, the other one goes on and is reported
    assert code == 1
    assert "lr=1e+20 · seed 0 failed: FloatingPointError: The loss became NaN" in err
    assert "Traceback" not in err
    assert all(words in out for words in ("Report: reports/index.html", "worst case"))
    (run,) = find_runs("runs")
    page = Path(f"reports/digits/standard-{run.path.name}.html")
    index = Path("reports/index.html").read_text()
    assert page.exists()
    assert all(f"digits/{name}" in index for name in (page.name, "compare.html", "atlas.html"))

    # the same call again would execute the failed one only
    code, out, _ = call(*command, "--dry-run")
    assert "nothing: finished" in out
    with monkeypatch.context() as patch:
        asked = only_asked(patch)
        assert call(*command)[0] == 0
    (again,) = asked
    assert again.output.name != page.with_suffix(".ipynb").name

    listed = call("list")[1]
    assert all(state in listed for state in ("done", "failed"))
    assert "12 test images" in call("evaluate", run.path)[1]
    page.unlink()
    monkeypatch.setattr("robustlib.workbook.experiments.jobs.execute", lambda _: {"state": "done"})
    assert call("report")[0] == 0
    assert page.exists()

    params = run.path / "params.json"
    params.write_text(params.read_text()[:40])
    code, _, err = call("evaluate", run.path)
    assert code == 2
    assert "is not readable JSON" in err


@pytest.mark.usefixtures("short_notebooks")
def test_a_method_of_ones_own_and_strangers_code(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    own = tmp_path / "my_defence.py"
    own.write_text(OWN)
    changes = [f"--set={change}" for change in ("arch=mlp_8", "epochs=1", "train_examples=130")]
    command = ["run", "my_defence.py:MixedAT", *changes, "--examples", 12]
    code, out, err = call(*command)
    assert code == 0, err
    assert "Report: reports/index.html" in out
    (run,) = find_runs("runs", method="mixed_at")
    page = Path(f"reports/digits/mixed_at-{run.path.name}.html")
    assert "of the clean loss" in page.read_text(), "the comment on its field"
    assert all(f"digits/{name}" in Path("reports/index.html").read_text() for name in (page.name, "compare.html"))
    repeat = shlex.split(run.provenance()["command"])
    assert (repeat[:3], repeat[-2:]) == (["robustlib", "run", f"{own}:MixedAT"], ["--examples", "12"])
    assert "nothing: finished" in call(*command, "--dry-run")[1]
    own.write_text(OWN + "# another text\n")
    out = call(*command, "--dry-run")[1]
    assert ("nothing: finished" in out, run.path.name in out) == (False, False)
    own.unlink()
    assert "12 test images" in call("evaluate", run.path)[1]

    # a run of somebody else: what it names would write a file
    text = "open('executed', 'w').close()\n" + OWN
    for place in (tmp_path / "evil.py", run.path / "method.py"):
        place.write_text(text)
    facts = {"place": str(tmp_path / "evil.py"), "name": "MixedAT", "digest": digest(text)}
    strange = [altered(run, code=facts, seed=1), altered(run, method="evil.py:MixedAT", seed=2)]
    assert {run.path for run in strange} < {run.path for run in find_runs("runs")}
    assert call("list")[1].count("evil.py:MixedAT") >= 1
    monkeypatch.setattr("robustlib.workbook.experiments.jobs.execute", lambda _: {"state": "done"})
    assert call("report")[0] == 0
    shown = compare_runs("runs", "digits").shown
    assert len(with_passes(leaderboard(shown), shown)) == 3
    with pytest.raises(InputError, match="that nobody has named on this machine: read it, then give --trust-code"):
        UserCode.kept(facts, (strange[0].path / "method.py").read_text()).load()
    assert not (tmp_path / "executed").exists()
    assert call("run", "evil.py:MixedAT", "--dry-run")[0] == 0
    assert (tmp_path / "executed").exists(), "who names it trusts it"


def test_runs_of_own_images_are_evaluated_on_these_alone(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(run: Run, dataset: Dataset, **_: object) -> None:
        raise InputError(f"{len(dataset.test)} images of {dataset.name} at {dataset.threat}.")

    monkeypatch.setattr("robustlib.evaluation.evaluate_run", evaluate)
    for k in range(40):
        file = tmp_path / "own" / f"class {k % 2}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 * (k % 2) + k).save(file)
    params = run_params(make_method("standard"), load_images("own", threat=Threat("l2", 0.5)), "mlp", 0, "32-true")
    run = Run.of(params, "runs")
    write_json(run.path / "params.json", params)
    said = f"Error: 8 images of {params['dataset']} at L2 0.5.\n"
    assert call("evaluate", run.path) == (2, "", said)
    os.rename("own", "moved")
    code, _, err = call("evaluate", run.path)
    assert (code, "say where they are with --data-root" in err) == (2, True)
    assert call("evaluate", run.path, "--data-root", "moved") == (2, "", said)
    Image.new("L", (8, 8), 200).save("moved/class 0/0.png")
    code, _, err = call("evaluate", run.path, "--data-root", "moved")
    assert (code, "those of this run were own-8px-" in err) == (2, True)


def test_ctrl_c_stops_all_and_the_same_call_resumes(call, tmp_path: Path) -> None:
    options = ["run", "standard", "--set", "epochs=5000", "--examples", "32"]
    command = [sys.executable, "-m", "robustlib.workbook.cli", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def training() -> bool:
        assert process.poll() is None, process.communicate()
        return any(len(run.metrics()) > 3 for run in find_runs("runs", finished=False))

    wait_for(training)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: process.poll() is not None)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "The same command goes on" in err
    assert "Traceback" not in err
    (status,) = Path("reports/digits").glob("*.status.json")
    assert read_json(status)["state"] == "interrupted"
    (run,) = find_runs("runs", finished=False)
    assert run.status()["state"] == "interrupted"
    assert "resume" in call(*options, "--dry-run")[1]


def _batch(folder: Path) -> list[Task]:
    """Tasks that a command of another process queued; the first one trains at epoch 6 of 8."""
    made = [Task(Path(), {}, folder / f"{name}.ipynb", {"name": name, "epochs": 8}) for name in ("a", "b", "c")]
    for task in made:
        task.about["run"] = str(folder / task.about["name"])
        task.enqueue()
    rows = [{"epoch_total": k, "seconds": 30.0 * (k > 0)} for k in range(7)]
    rows[4] |= {"clean_val": 0.9, "robust_val": 0.512}
    write_atomic(folder / "a" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    made[2].record(state="failed", reason="ValueError: no")
    return made


def test_status_and_cancel_from_another_terminal(call, tmp_path: Path) -> None:
    code, _, err = call("status")
    assert (code, "There are no trainings in reports" in err) == (2, True)
    first, second, _ = _batch(tmp_path / "reports" / "digits")
    lock = first.hold()
    assert lock is not None
    with lock:
        first.record(state="running", started="2020-01-01T00:00:00+00:00")
        second.record(pid=2**22 + 1)  # of nobody
        code, out, _ = call("status")
        rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
        assert "running" in rows["a"]
        assert "epoch 6/8 · clean 90.0% · robust 51.2%" in rows["a"]
        assert rows["a"].split()[-1] == "1:00"
        assert "interrupted" in rows["b"]
        assert "The command that queued it is gone" in rows["b"]
        assert "ValueError: no" in rows["c"]
        assert (code, "0 of 3 done." in out) == (0, True)
        for words, sentence in (([], "Say which trainings to cancel, or --all. Under way: a."), (["z"], "named 'z'")):
            code, _, err = call("cancel", *words)
            assert (code, sentence in err) == (2, True)
        assert not first.cancel_path.exists()
        assert "Asked to stop, which takes seconds: a." in call("cancel", "a")[1]
        assert first.cancel_path.exists()
        assert not second.cancel_path.exists()


def test_on_another_engine_the_planned_run_is_what_is_trained_there(call, tmp_path: Path, monkeypatch) -> None:
    asked, kinds = only_asked(monkeypatch), iter(["cuda", "cpu", "cpu"])
    monkeypatch.setattr("robustlib.workbook.engines.device_type", lambda *_, **__: next(kinds))
    for kind, precision in (("cuda", "bf16-mixed"), ("cpu", "32-true")):
        assert call("run", "standard", "--engine", "ray")[0] == 0
        task = asked.pop()
        assert (task.parameters["device"], task.parameters["precision"]) == (kind, precision)
        assert task.parameters["runs"] == str(tmp_path / "runs")
        run = Run(Path(task.about["run"]))
        params = run_params(make_method("standard", "digits"), load_dataset("digits"), "small_cnn", 0, precision)
        assert run.path == Run.of(params, tmp_path / "runs").path
        assert task.output.name == f"standard-{run.path.name}.ipynb"
    assert call("run", "standard")[0] == 0
    assert (asked[0].parameters["precision"], asked[0].parameters["runs"]) == ("auto", "runs")


def test_lab_opens_the_notebooks_with_kernels_here(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, words: seen.extend(words))
    assert call("lab", "--", "--port", "9999")[0] == 0
    assert f"--MappingKernelManager.root_dir={tmp_path}" in seen
    assert seen[-2:] == ["--port", "9999"]


def test_explore_opens_lab_on_two_runs(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs, seen = [], list[str]()
    for seed in range(3):
        params = {"method": "trades", "dataset": "digits", "arch": "small_cnn", "seed": seed}
        runs.append(Run.of(params, tmp_path / "some runs"))
        write_json(runs[-1].path / "params.json", params)
        runs[-1].write("status.json", {"state": "done"})
    monkeypatch.setattr("os.execv", lambda _, words: seen.extend(words))
    assert call("explore", str(runs[0].path), str(runs[1].path))[0] == 0
    (folder,) = [Path(word.partition("=")[2]) for word in seen if "ServerApp.root_dir" in word]
    assert Path(seen[-1]) == folder / "explore.ipynb"
    cells = nbformat.read(seen[-1], 4).cells
    (injected,) = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
    given: dict[str, str] = {}
    exec(injected, given)
    assert [given[name] for name in ("first", "beside", "runs", "dataset")] == [
        *(str(run.path) for run in runs[:2]),
        str(tmp_path / "some runs"),
        "digits",
    ]
    assert call("explore", *(str(run.path) for run in runs))[0] == 2
    code, _, err = call("explore", "gone/a/b/c")
    assert (code, "gone/a/b/c holds no finished run" in err) == (2, True)


def test_the_index_stands_when_the_first_run_is_done_and_lists_those_that_are_not(call, tmp_path, monkeypatch) -> None:
    index, seen = tmp_path / "reports" / "index.html", list[str]()

    def run_all(tasks: list[Task], jobs: int, on_change: Any, **_: object) -> list[dict[str, str]]:
        states = ["running", "running", "queued"]
        for ended, state in enumerate((None, "done", "failed", "done")):
            if state:
                states[ended - 1] = state
            if state == "done":
                _pretend_run(tasks[ended - 1])
            on_change([{"state": state, "started": "2026-01-01T00:00:00+00:00"} for state in states])
            seen.append(index.read_text() if index.exists() else "")
            index.unlink(missing_ok=True)  # so that one that is there was just written
        return [{"state": "done", "reason": ""}] * 3

    monkeypatch.setattr("robustlib.workbook.engines.run_all", run_all)
    monkeypatch.setattr("robustlib.workbook.experiments.jobs._compare", lambda *_: [])
    monkeypatch.setattr("robustlib.workbook.cli.SELDOM", 0)
    assert call("run", "standard", "trades", "pgd_at")[0] == 0
    assert index.exists()
    waiting = [re.findall(r'<th scope="row">(\w+) · seed 0</th><td>digits</td><td>(\w+)</td>', page) for page in seen]
    assert waiting == [[], [("trades", "running"), ("pgd_at", "queued")], [("pgd_at", "queued")], []]
    pages = [re.findall(r'href="digits/(\w+?)-small_cnn', page) for page in seen]
    assert [set(found) for found in pages] == [set(), {"standard"}, {"standard"}, set()]
    monkeypatch.setattr("robustlib.workbook.cli.SELDOM", 1e6)
    assert call("run", "standard", "trades", "pgd_at", "--rerun")[0] == 0
    assert [bool(page) for page in seen[5:]] == [True, False, False], "the first at once, the others not in a row"
    monkeypatch.setattr("robustlib.workbook.experiments.jobs.leaderboard", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # of the report at the end alone: until then trainings go on
        main(["run", "standard", "trades", "pgd_at", "--rerun"])
    assert len(seen) == 12


def test_of_many_runs_some_are_listed(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        finished_run(tmp_path / "runs", "trades", seed)
    assert "by path" not in call("list")[1]
    monkeypatch.setattr("robustlib.workbook.on_runs.LISTED", 2)
    some, every = (call("list", *more)[1] for more in ((), ("--all",)))
    assert "The first 2 of 3 runs, by path; robustlib list --all shows the others." in some
    assert [text.count("trades") for text in (some, every)] == [4, 6], "a method and a directory each"


def _pretend_run(task: Task) -> None:
    """A finished, evaluated run and its executed notebook."""
    page = nbformat.v4.new_notebook()
    write_atomic(task.output, nbformat.writes(page))
    write_json(task.status_path, {"state": "done"})
    rows = [{"attack": name, **accuracy(3, 4)} for name in ("clean", "worst")]
    results = {"n": 4, "threat": "Linf 0.2", "checkpoint": "best", "rows": rows, "numerics": {}}
    method = make_method(task.parameters["method"], "digits")
    params = run_params(method, load_dataset("digits"), method.arch, 0, "32-true")
    run = Run.of(params, task.parameters["runs"])
    for name, content in {"params": params, "results": results, "status": {"state": "done"}}.items():
        write_json(run.path / f"{name}.json", content)

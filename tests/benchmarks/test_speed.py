"""The speed benchmarks do what they count, and the plain loops they compare with differentiate our losses."""

from functools import partial
from types import SimpleNamespace

import cifar_smoke
import first_report
import plain_loops
import pytest
import report_speed
import torch
from side_by_side import FOLDER, KEPT, cifar_model, passes_per_image, write_report
from training_speed import COUNTS, LOOPS
from training_steps import our_step

from robustlib.attacks import PGD, Threat
from robustlib.losses import mart_loss, trades_loss
from robustlib.methods import METHODS, AdversarialMethod, make_method
from robustlib.models import build_model
from robustlib.workbook.experiments import Options, plan, preset_methods
from tests import ROOT

small = partial(cifar_model, "small_cnn")


def test_every_adversarial_method_has_its_step_counted():
    adversarial = {name for name, kind in METHODS.items() if issubclass(kind, AdversarialMethod)}
    # AToP's passes are its purifier's, no classifier's: purifier_speed.py times it.
    assert (adversarial - {"atop"}) | set(LOOPS) <= set(COUNTS)


@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
def test_every_stage_of_a_smoke_run_lasts_an_epoch(dataset, digits):
    def stages(method):
        return method.stages(digits, build_model("small_cnn", digits, **method.model_options()))

    preset = cifar_smoke.PRESETS[dataset]
    for name in METHODS:
        short = stages(make_method(name, preset, **cifar_smoke.lengths(name, preset)))
        assert [stage.name for stage in short] == [stage.name for stage in stages(make_method(name, preset))], name
        assert {stage.epochs for stage in short} == {1}, name


def test_the_report_speed_benchmark_can_plan_its_runs(tmp_path):
    variants = [(name, report_speed.lengths(name, "digits") | report_speed.TINY) for name in preset_methods("digits")]
    jobs = plan(variants, [0], Options(runs=tmp_path / "runs", reports=tmp_path / "reports"))
    assert [job.name.split(" ")[0] for job in jobs] == preset_methods("digits")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """What is counted and compared does not depend on the network: a small one in place of ResNet-18."""
    for module in ("plain_loops", "training_steps"):
        monkeypatch.setattr(f"{module}.cifar_model", lambda arch, device, **options: small(device, **options))


def test_passes_of_any_library_are_counted_alike():
    model, x, y = small(torch.device("cpu")), torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64)
    ours = passes_per_image(lambda net: PGD(Threat("linf", 0.1), 3)(net, x, y), model, 8)
    assert ours == 2 * 3 + 1 / 8, "and a look at one image"

    def plain(net):
        moved = x.clone().requires_grad_(True)
        torch.autograd.grad(net(moved).sum(), moved)
        with torch.no_grad():
            net(x[:4])

    assert passes_per_image(plain, model, 8) == 2.5


FORWARDS = {"trades": 2, "afkd": 1, "arrest": 2, "afd": 1}  # passes without a backward one, which count half


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "n_fgsm", "vaft", "afkd", "arrest", "afd", "ancra"])
def test_a_step_goes_backwards_as_often_as_it_is_counted(name, monkeypatch):
    backward, conv2d = [], torch.nn.functional.conv2d

    def tapped(z, w, *args, **options):
        answer = conv2d(z, w, *args, **options)
        if w.shape[1] == 3 and answer.requires_grad:  # the first layer, or a copy of it
            answer.register_hook(lambda _: backward.append(1))
        return answer

    step = our_step(name, "fp32", 2, torch.device("cpu"))
    monkeypatch.setattr("torch.nn.functional.conv2d", tapped)
    step()
    assert len(backward) + 0.5 * FORWARDS.get(name, 0) == COUNTS[name][0]


@pytest.mark.parametrize("name", ["trades", "mart", "afd", "ancra"])
def test_the_plain_loops_differentiate_the_losses_of_the_methods(name, monkeypatch):
    losses: list[float] = []
    images: list[torch.Tensor] = []
    backward, climb = torch.Tensor.backward, plain_loops._climb
    monkeypatch.setattr(plain_loops, "STEPS", 1)
    monkeypatch.setattr(plain_loops, "EPS", 0.3)  # so far that every part of a loss weighs
    monkeypatch.setattr(plain_loops, "_climb", lambda *a: images.append(climb(*a)) or images[-1])
    monkeypatch.setattr(torch.Tensor, "backward", lambda z, *a, **k: losses.append(z.item()) or backward(z, *a, **k))
    x, y = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    plain_loops.LOOPS[name](x, y)()
    method = make_method(name)
    model, teacher = (small(x.device, **method.model_options()) for _ in range(2))
    model.train()
    if name == "ancra":
        other = torch.stack([torch.nonzero(y != label)[0, 0] for label in y])
        pair = images[0], y[other]
        ours = [method.loss(model, SimpleNamespace(x=x, y=y), images[1], pair).total]
    elif name == "afd":
        parts = method.losses(model, SimpleNamespace(x=x, y=y), images[0], teacher.latent(x).detach())
        ours = [parts["confused"].total, parts["model"].total]
    else:
        loss, beta = {"trades": (trades_loss, 6.0), "mart": (mart_loss, 5.0)}[name]
        ours = [loss(model(x), model(images[0]), y, beta)[0]]
    assert losses == pytest.approx([value.item() for value in ours], rel=1e-4)


def test_the_first_report_is_counted_by_method_and_part():
    cells = [
        {"pid": 7, "cell": "import robustlib", "begin": 2.0, "cpu": 1.0},
        {"pid": 7, "cell": '# Parameters\nmethod = "ancra"\n', "begin": 3.0, "cpu": 0.0},
        {"pid": 7, "cell": "run = fit(recipe, ds)", "begin": 3.0, "cpu": 40.0},
        {"pid": 7, "cell": "results, audited = sections.judge(run, ds)", "begin": 43.0, "cpu": 30.0},
        {"pid": 8, "cell": "compared = compare_runs()", "begin": 5.0, "cpu": 4.0},
    ]
    ancra, compared, outside, every = first_report.by_part(cells, 100.0)
    assert [ancra[name] for name in first_report.COLUMNS] == ["40", "30", "1", "2"]
    assert (ancra["notebook"], compared["notebook"], compared["sum"]) == ("ancra", "comparison", "9")
    assert (outside["sum"], every["training"], every["sum"]) == ("18", "40", "100")


def test_what_was_added_to_a_page_by_hand_stays_when_it_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    page, by_hand = tmp_path / "first_report.md", f"\n{KEPT}\n\n## Earlier\n\nAt 79752a4: 1660.\n"

    def written(table):
        write_report("first_report.md", "A report", "a command", torch.device("cpu"), [table], {"it is fast": True})
        return page.read_text()

    plain = written("| 1 |\n")
    assert plain.endswith("- holds: it is fast\n"), "a new page has nothing to keep"
    assert written("| 1 |\n") == plain
    page.write_text(plain + by_hand)
    again = [written("| 2 |\n") for _ in range(2)]
    assert again == [plain.replace("| 1 |", "| 2 |") + by_hand] * 2
    written("| 1 |\n")
    monkeypatch.setenv(FOLDER, str(tmp_path / "elsewhere"))
    written("| 3 |\n")
    assert page.read_text() == plain + by_hand, "nor is it carried to another folder"
    assert KEPT not in (tmp_path / "elsewhere" / "first_report.md").read_text()


@pytest.mark.parametrize("page", ["first_report.md", "foreign_networks.md"])
def test_pages_with_parts_added_by_hand_keep_them(page):
    """The verdicts, with which a script's own part ends, stand right above the marker."""
    own, marker, below = (ROOT / "benchmarks" / page).read_text().partition(KEPT)
    assert marker
    assert own.strip().splitlines()[-1].startswith(("- holds: ", "- **does not hold**: "))
    assert "added by hand" in below

"""One training over two processes: the step that one process takes, ranks that stay equal, resuming, and evaluations shared."""

import sys
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from robustlib.attacks import PGD, AutoAttack
from robustlib.data import load_dataset
from robustlib.errors import InputError
from robustlib.evaluation import evaluate
from robustlib.methods import make_method
from robustlib.runs import Run, write_json
from robustlib.training import fit
from robustlib.training.devices import Team, launch
from robustlib.training.loop import Training
from tests.training_fixtures import same_runs, staged, step_context, tiny

fitting = sys.modules[fit.__module__]
STEPS = {  # steps that are to be those of one process: the settings of a method, its architecture
    "no BatchNorm": ("pgd_at", {"arch": "mlp_8"}),
    "BatchNorm, AWP, checkpointing": ("trades", {"awp_gamma": 0.01}),
    "BatchNorm in the attack": ("fgsm_rs", {}),
    "a mean that decides": ("arrest", {"arch": "mlp_8", "angle": 25.8}),  # between those of the two shares
    "mined negatives": ("ancra", {"negatives": "hard", "mining_from": 0}),
    **{f"contrasts, {name}": (name, {}) for name in ("supcon", "simclr", "rocl", "acl", "claf")},
    "correlations": ("barlow_spectral", {"arch": "mlp_8"}),
    "singular values": ("bss", {"arch": "mlp_8", "burn_in": 0.0, "strength": 1.0}),
    "directions": ("cross_lipschitz", {"arch": "mlp_8", "burn_in": 0.0}),
    "power iteration": ("ll_spectral", {"arch": "mlp_8", "operator": "power", "burn_in": 0.0}),
    "draws of a model": ("atop", {"attack_through": "pipeline", "arch": "mlp_8"}),
}
LATER = {"claf": -2, "arrest": -1, "atop": -1, "bss": -1}  # the stage; of others it is the first


@cache
def few():
    digits = load_dataset("digits")
    return replace(digits, val=digits.val.sample(20))


def step(team, name, settings):
    """What a step of plain gradient descent on 31 images takes from the weights, and BatchNorm's statistics after it."""
    data, known = few(), make_method(name).hyperparameters()
    method = tiny(name, **{key: value for key, value in ({"attack_steps": 1} | settings).items() if key in known})
    if name == "fgsm_rs":
        method = make_method(name, "digits", **settings)
    model, stages = staged(method, data)
    stage = stages[LATER.get(name, 0)]
    if stage.begin:
        stage.begin()
    if name == "arrest":  # features have left the teacher's
        torch.manual_seed(1)
        with torch.no_grad():
            for weights in filter(lambda p: p.numel() > 1, model.parameters()):
                weights.add_(0.3 * weights.std() * torch.randn_like(weights))
    modules = {"model": model, **stage.modules}
    team.prepare(modules.values())
    before = torch.cat([p.detach().flatten() for m in modules.values() for p in m.parameters()])
    optimisers = {k: torch.optim.SGD([*spec.params], 1.0) for k, spec in stage.optimisers.items()}
    loop = SimpleNamespace(optimisers=optimisers, modules=modules, team=team, average=None)
    vars(loop).update(device=torch.device("cpu"), precision="32-true")
    part, generator = stage.passes[-1], torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    batch = next(data.train.batches(31, shuffle=True, augment=part.augment, generator=generator))
    with team.share(batch) as own:
        Training._step(loop, part, own, step_context())
    moved = before - torch.cat([p.detach().flatten() for m in modules.values() for p in m.parameters()])
    return moved, torch.cat([b.flatten().float() for m in modules.values() for b in m.buffers()])


def steps(team):
    torch.set_num_threads(1)
    found = {what: step(team, *asked) for what, asked in STEPS.items()}
    found["local"] = step(replace(team, batchnorm="local"), "pgd_at", {"awp_gamma": 0.01})
    for what, mine in found.items():
        for others in team.exchanged(mine):
            assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True)), f"ranks differ: {what}"
    return found


METHOD = {"epochs": 4, "ema": 0.9, "awp_gamma": 0.01, "arch": "mlp_8", "train_examples": 61, "batch_size": 20}


def in_each_process(place, team, device):
    """All steps; then a training that breaks off after two of four epochs, and goes on."""
    found, epoch, begun = steps(team), Training._epoch, []

    def breaking_off(self, *args):
        begun.append(args)
        if len(begun) == 3:
            raise KeyboardInterrupt
        epoch(self, *args)

    Training._epoch = breaking_off
    train = partial(
        fitting._train, Run(place), tiny("pgd_at", **METHOD), few(), "mlp_8", 0, "32-true", 1, False, False, None
    )
    with pytest.raises(KeyboardInterrupt):
        train(team, device)
    team.wait()  # for the files of the first one
    assert len(Run(place).metrics()) == 3
    train(team, device)
    return {what: [part.numpy() for part in parts] for what, parts in found.items()}  # a tensor ends with its process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training over two processes, from `fit`."""
    return fit(
        tiny("pgd_at", **METHOD), few(), root=tmp_path_factory.mktemp("whole"), devices=2, threads=1, device="cpu"
    )


@pytest.fixture(scope="module")
def shared(whole, tmp_path_factory):
    """What two processes did, and the run that they made in pieces."""
    place = tmp_path_factory.mktemp("pieces").joinpath(*whole.path.parts[-3:])
    write_json(place / "params.json", whole.params())
    return launch("cpu", Team(0, 2), partial(in_each_process, place)), Run(place)


@pytest.mark.parametrize("what", STEPS)
def test_two_processes_take_the_step_of_one(shared, what):
    (moved, statistics), (own, theirs) = map(torch.from_numpy, shared[0][what]), step(Team(), *STEPS[what])
    assert own.abs().max() > 1e-4
    assert (moved - own).abs().max() < 1e-5 * max(1.0, float(own.abs().max()))
    assert torch.allclose(statistics, theirs, atol=1e-5)


def test_local_statistics_are_another_choice(shared):
    """All ranks are equal all the same, which `steps` asserts."""
    own, _ = step(Team(), "pgd_at", {"awp_gamma": 0.01})
    assert (torch.from_numpy(shared[0]["local"][0]) - own).abs().max() > 1e-3


def test_two_and_two_epochs_are_four(whole, shared):
    assert whole.finished
    assert same_runs(whole, shared[1])
    assert whole.changed.endswith("2 devices, batchnorm=sync")
    alone = fit(
        tiny("pgd_at", **METHOD), few(), root=whole.path.parents[3] / "alone", threads=1, device="cpu", progress=False
    )
    assert alone.path.name != whole.path.name
    ends = [run.metrics()[["loss", "clean_val", "robust_val"]].iloc[-1].to_numpy() for run in (alone, whole)]
    assert abs(ends[0] - ends[1]).max() < 0.1


def test_a_training_goes_on_with_as_many_devices_only(whole):
    train = partial(
        fitting._train, whole, tiny("pgd_at", **METHOD), few(), "mlp_8", 0, "32-true", 1, False, False, None
    )
    with pytest.raises(InputError, match="begun on 2 devices and would give other numbers on 1"):
        train(Team(), torch.device("cpu"))


def test_evaluations_over_two_processes_have_the_same_records(whole, tmp_path):
    model, split, told = whole.model(), few().test.sample(50), []
    attacks = {
        "pgd": PGD(few().threat, 5, early_stop=True),
        "autoattack": AutoAttack(few().threat, steps=4, queries=10),
    }
    alone = evaluate(model, split, attacks, batch_size=8)
    both = evaluate(model, split, attacks, batch_size=8, devices=2, state=tmp_path / "s", progress=told.append)
    assert alone.equals(both)
    assert told[-1].done == told[-1].total
    assert len([*(tmp_path / "s").glob("part-*.parquet")]) > 7
    with pytest.raises(InputError, match="cannot be sent"):
        evaluate(model, split, {"pgd": lambda model, x, y, rng=None: x}, devices=2)


REFUSED = (
    ({"devices": 0}, "devices=0"),
    ({"devices": 8}, "a batch of 10 leaves less than two images for each"),
    ({"devices": 2, "compile": True}, "devices=2 with compile"),
    ({"devices": 2, "batchnorm": "synced"}, "Did you mean 'sync'"),
)


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_devices_cannot_share_is_refused_before_anything_starts(digits, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        fit(tiny("pgd_at", batch_size=10), digits, root=tmp_path, device="cpu", **options)
    assert not [*tmp_path.iterdir()]

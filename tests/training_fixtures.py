"""What tests of methods share: fresh models, a place in a training, small trainings, and one that breaks off."""

import copy
import json
import re
import shutil

import pytest
import torch

from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.runs import Run, write_json
from robustlib.training import StepContext, fit
from robustlib.training.loop import Training

TINY = {
    **{"epochs": 2, "train_examples": 130, "batch_size": 64, "attack_steps": 2, "pretrain_epochs": 1},
    **{"head_epochs": 1, "tuning_epochs": 1, "final_steps": 2, "aug_epochs": 1, "refresh_passes": 1},
    **{"classifier_epochs": 1, "purifier_epochs": 1, "repeats": 1, "width": 4, "embed_dim": 8, "warm_up": 1},
    **{"burn_in": 0.5, "strength": 0.05, "readout_iterations": 20_000, "validate_every": 1},
}


def tiny(name, **settings):
    """A method of the digits whose trainings take seconds."""
    known = make_method(name).hyperparameters()
    return make_method(name, "digits", **{k: v for k, v in TINY.items() if k in known} | settings)


def built(method, dataset, seed=0):
    """The method's model, of the same weights for a seed, in train mode."""
    torch.manual_seed(seed)
    return build_model(method.arch, dataset, **method.model_options()).train()


def staged(method, dataset, seed=0):
    """The method's model, as `built` gives it, and the stages of its training."""
    model = built(method, dataset, seed)
    return model, method.stages(dataset, model)


def altered(run, root=None, **params):
    """A copy of a run with other parameters, at the place that these give it, below `root` or its own root; its files say so."""
    facts = run.params() | params
    other = Run.of(facts, root or run.path.parents[2])
    shutil.copytree(run.path, other.path)
    for file in other.path.glob("*.json"):
        content = json.loads(file.read_text())
        write_json(file, content | ({"run": other.place} if "run" in content else {}))
    write_json(other.path / "params.json", facts)
    return other


def step_context(epoch=0, step=0, progress=0.0):
    """A place in a training, always with the same random numbers."""
    return StepContext(epoch, step, progress, torch.Generator().manual_seed(5), "32-true")


def first_batch(dataset, size=16, augment="none"):
    """The first training images, as they are or under a view; each call draws the same views."""
    return next(dataset.train.batches(size, augment=augment, generator=torch.Generator().manual_seed(7)))


def same_state(one, other, atol=0.0):
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.allclose(v.float(), theirs[k].float(), rtol=0, atol=atol) for k, v in mine.items())


def same_runs(one, other):
    """Whether two runs have the same weights, and the same metrics but for the time they took (and bf16, where it is said to be slow)."""
    metrics = [run.metrics().drop(columns="seconds").to_json() for run in (one, other)]
    metrics = [re.sub(r"take [\d.]+ times", "", text) for text in metrics]
    return metrics[0] == metrics[1] and all(same_state(one.model(w), other.model(w)) for w in ("best", "last"))


def updated(stage, batch, context=None):
    """The losses of one update of a stage's last pass by optimiser, without a step between them."""
    return dict(stage.passes[-1].updates(batch, context or step_context()))


def changed(model, stage, part, batch):
    """The names of the modules whose parameters, and of those whose buffers, one update by a pass of a stage changes."""
    before = copy.deepcopy(model.state_dict())
    model.train()
    for key, loss in part.updates(batch, step_context()):
        model.zero_grad()
        loss.total.backward()
        stage.optimisers[key].build().step()
    names = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    weights = {name for name, _ in model.named_parameters()}
    return tuple({name.split(".")[0] for name in some} for some in (names & weights, names - weights))


def train(method, dataset, root, **options):
    """A finished run below `root`; AToP's purifiers need not learn: what small trainings see teaches them nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("MAX_L1_SHARE", "MAX_L1_SHARE_RT3", "MAX_HIDDEN_SHARE"):
            patch.setattr(f"robustlib.methods.atop.{limit}", 100.0)
        return fit(method, dataset, root=root, device="cpu", threads=1, progress=False, **options)


def interrupt(monkeypatch, owner, name, at):
    """Breaks off at the `at`-th call of `owner.name`; returns the list that counts its calls."""
    real, calls = getattr(owner, name), []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, name, interrupted)
    return calls


def broken_off(method, dataset, root, monkeypatch, stop, **options):
    """Trains until the `stop`-th epoch begins; returns what is left of the run."""
    with monkeypatch.context() as patch:
        interrupt(patch, Training, "_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(method, dataset, root, **options)
    return run_below(root)


def run_below(root):
    (params,) = root.rglob("params.json")
    return Run(params.parent)

"""What others publish: the authors' AutoAttack as a second opinion, CLAF's protocol restated, and what is wrong with it."""

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from robustlib.errors import InputError
from robustlib.evaluation import (
    accuracy,
    claf_published_protocol,
    compare_with_reference,
    evaluate_run,
    measure_unseen,
    withstood_by,
)
from robustlib.evaluation.metrics import robust_correct
from robustlib.evaluation.reference import PublishedProtocol
from robustlib.models import build_model
from robustlib.workbook import tables


def test_the_authors_package_is_a_second_opinion(digits, train, monkeypatch):
    run = train(examples=200)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(InputError, match=r"keeps no answer to each image .*: call `robustlib evaluate"):
        compare_with_reference(run, digits, n=20)
    evaluate_run(run, digits, n=20)
    with pytest.raises(InputError, match="no AutoAttack on all 21 images"):
        compare_with_reference(run, digits, n=21)
    with pytest.raises(InputError, match=r"pip install 'robustlib\[reference\]'"):
        compare_with_reference(run, digits, n=20)

    class Authors:
        """Leaves the first five images as they are, and the ball for the sixth; the others become black."""

        def __init__(self, model, **options):
            assert {name: options[name] for name in ("norm", "eps", "seed")} == {"norm": "Linf", "eps": 0.2, "seed": 0}
            self.fab = self.apgd_targeted = SimpleNamespace(n_target_classes=9)
            self.attacks_to_run = ["apgd-ce"]

        def run_standard_evaluation(self, x, y, batch_size):
            return torch.cat([x[:5], x[5:] * 0]), y

    monkeypatch.setitem(sys.modules, "pyautoattack", SimpleNamespace(AutoAttack=Authors))
    compared = compare_with_reference(run, digits, n=20)
    records = run.records()
    right = robust_correct(records[records.attack == "clean"]).to_numpy()
    assert compared.theirs["correct"] == right[:5].sum(), "an image outside the ball is no robustness"
    ours = records[records.attack == "autoattack"].groupby("index").last()
    ours = (ours.prediction == ours.label).reindex(digits.test.sample(20).indices.tolist())
    theirs = (np.arange(20) < 5) & right
    assert compared.only_ours == list(ours.index[theirs & ~ours])
    assert compared.only_theirs == list(ours.index[~theirs & ours])
    assert compared.difference == pytest.approx(5 * (len(compared.only_theirs) - len(compared.only_ours)))
    (run.path / "records.parquet").unlink()  # as in an archive
    evaluate_run(run, digits, n=20)
    for ask in (
        lambda: compare_with_reference(run, digits, n=20),
        lambda: measure_unseen({"one": run}, digits, n=20, device="cpu"),
        lambda: withstood_by({"one": run}),
    ):
        with pytest.raises(InputError, match=r"keeps no answer .*: delete its results\.json.* `robustlib evaluate"):
            ask()
    (run.path / "last.safetensors").rename(run.path / "elsewhere")
    with pytest.raises(InputError, match=r"keeps no answer .*: the command in its provenance\.json makes it again"):
        withstood_by({"one": run})
    (run.path / "elsewhere").rename(run.path / "last.safetensors")
    (run.path / "results.json").unlink()
    evaluate_run(run, digits, n=20)
    pd.testing.assert_frame_equal(run.records(), records)


def test_clafs_protocol_is_pgd_on_normalised_images_clamped_there(digits, train):
    model, few = train(epochs=4, examples=1000).model().train(), digits.test.sample(80)
    before = copy.deepcopy(model.state_dict())
    reported = claf_published_protocol(model, few, eps=0.2, step_size=0.05)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()

    def logits(z):
        return model.head(model.encoder(z))  # behind the normalisation

    z = (few.images / 255 - digits.mean[0]) / digits.std[0]
    noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    at = (z - 0.2 + 0.4 * noise).clamp(0, 1)
    for _ in range(10):
        at = at.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(logits(at), few.labels, reduction="sum"), at)
        step = torch.maximum(torch.minimum(at + 0.05 * g.sign(), z + 0.2), z - 0.2)
        at = step.clamp(0, 1).detach()
    right = [(logits(images).argmax(1) == few.labels).float().mean().item() for images in (at, z.clamp(0, 1))]
    assert (reported.accuracy, reported.clamped) == (pytest.approx(right[0], abs=1.5 / 80), pytest.approx(right[1]))
    moved = ((at - z).abs().flatten(1).amax(1) * digits.std[0]).mean().item()
    assert (reported.moved, reported.n) == (pytest.approx(moved, rel=1e-3), 80)
    published = claf_published_protocol(model, few)
    assert published == claf_published_protocol(model, few)
    assert (published.budget, "Invalid" in published.said) == (pytest.approx(8 / 255 * digits.std[0]), True)
    assert published.budget < 8 / 255 < published.moved, "the attack has a smaller radius, the clamp a far larger one"
    alone = claf_published_protocol(model, few, eps=0.0)
    assert (alone.accuracy, alone.budget) == (alone.clamped, 0.0), "a radius of zero is the clamp alone"


def test_its_table_labels_it_invalid():
    rows = PublishedProtocol(0.6, 0.7, 0.01, 0.3, 80).rows
    assert (rows[0]["correct"], rows[0]["n"], rows[0]["valid"], rows[1]["accuracy"]) == (48, 80, False, 0.7)
    assert rows[0]["low"] < 0.6 < rows[0]["high"]
    counts = {"clean": 45, "pgd20": 20, "cw50": 19, "worst": 18}
    valid = [{"attack": name, **accuracy(k, 50)} for name, k in counts.items()]
    table = tables.published_protocol({"n": 50, "rows": valid}, rows)
    shown = ["clean", "PGD-20", "worst case", "published protocol", "its clamp alone, without an attack"]
    assert list(table["attack"]) == shown
    assert list(table["counts"]) == ["✓ valid"] * 3 + ["✕ invalid"] * 2
    assert list(table["images"]) == [50] * 3 + [80] * 2
    assert table["accuracy"][3].startswith("60.0 % (")


@pytest.mark.parametrize(
    ("name", "value"), [("eps", -1.0), ("eps", np.nan), ("eps", np.inf), ("step_size", 0.0), ("step_size", np.inf)]
)
def test_bad_settings_are_sentences(digits, name, value):
    with pytest.raises(InputError, match=f"{name}={value!r}.*give a radius of at least 0"):
        claf_published_protocol(build_model("mlp", digits), digits.test.sample(4), **{name: value})

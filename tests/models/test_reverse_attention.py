"""Reverse attention: its logits against plain loops, its masks, its surrogates, and what it refuses."""

import pytest
import torch
from torch import nn

from robustlib.attacks.base import SurrogateModel, validation_view
from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.errors import InputError
from robustlib.models import ARCHITECTURES, ReverseAttention, build_model
from robustlib.models.backbones import PreActResNet
from robustlib.representation.features import activations
from tests.conftest import spec

SMALL = ["small_cnn", "resnet18", "preact"]


def attentive(arch="small_cnn", shape=(3, 16, 16)):
    """A model whose BatchNorm statistics, weights and predictions are not the initial ones; "preact" is a thin one."""
    if arch == "preact":
        model = ReverseAttention(PreActResNet(shape, (8, 8, 12, 16, 24), blocks=3), spec(shape))
    else:
        model = build_model(arch, spec(shape), reverse_attention=True)
    for _ in range(3):
        model(torch.rand(16, *shape))
    nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


def last_maps(model, x):
    """The blocks of the last stage with what precedes them, as a function map -> map and what follows each: by hand."""
    e, x = model.encoder, (x - model.mean) / model.std
    if type(e).__name__ == "SmallCNN":
        return e.stage2(e.stage1(x)), [e.stage3], lambda z: z
    if type(e).__name__ == "ResNet":
        return e.layer3(e.layer2(e.layer1(e.relu(e.bn1(e.conv1(x)))))), list(e.layer4), lambda z: z
    before = e.layer4[0](e.layer3(e.layer2(e.layer1(e.stem(x)))))  # of three blocks the last two are gated
    return before, list(e.layer4)[1:], lambda z: torch.relu(e.bn(z))


def by_loops(model, x, labels=None):
    """Section 2.1 of the paper's page, image by image and channel by channel: logits, auxiliary logits, features."""
    h, blocks, finish = last_maps(model, x)
    weight, bias, auxiliary, features = model.head.weight, model.head.bias, [], []
    for block in blocks:
        z = finish(block(h))
        pooled = [image.mean((1, 2)) for image in z]
        p = torch.stack([torch.stack([(weight[c] * g).sum() + bias[c] for c in range(10)]) for g in pooled])
        chosen = p.argmax(1) if labels is None else labels
        h = torch.stack([torch.stack([weight[j, k] * c for k, c in enumerate(z[n])]) for n, j in enumerate(chosen)])
        auxiliary.append(p)
        features.append(h.mean((2, 3)))
    return features[-1] @ weight.t() + bias, auxiliary, features


@pytest.mark.parametrize("mask", ["true", "predicted"])
@pytest.mark.parametrize("arch", SMALL)
def test_logits_equal_the_papers_loops(arch, mask):
    model, x = attentive(arch), torch.rand(3, 3, 16, 16)
    labels = torch.tensor([1, 7, 7]) if mask == "true" else None
    with torch.no_grad():
        seen, (logits, auxiliary, features) = model.attend(x, labels), by_loops(model, x, labels)
    assert len(seen.auxiliary) == model.gates == (1 if arch == "small_cnn" else 2)
    answers = (seen.logits, *seen.after, *seen.auxiliary, *map(model.head, seen.before))
    for answer, wanted in zip(answers, (logits, *features, *auxiliary, *auxiliary), strict=True):
        assert torch.allclose(answer, wanted, rtol=1e-4, atol=1e-4)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    assert torch.equal(model.attend(x, labels).logits, seen.logits), "the mask is no side effect of the mode"
    if arch == "preact":
        tracked = model.encoder.bn.num_batches_tracked, model.encoder.layer4[2].bn1.num_batches_tracked
        assert tracked == (3 * 2, 3), "in the passes in train mode before, the shared BatchNorm saw both gated blocks"


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if not arch.startswith("mlp")])
def test_every_convolutional_architecture_takes_gates_and_keeps_its_weights(arch):
    with torch.device("meta"):
        plain, model = (build_model(arch, spec((1, 8, 8)), reverse_attention=on) for on in (False, True))
        seen = model.attend(torch.empty(2, 1, 8, 8))
    gates = 1 if arch in ("small_cnn", "resnet8_w48") else 2
    assert [tuple(p.shape) for p in (seen.logits, *seen.auxiliary)] == [(2, 10)] * (gates + 1)
    assert [tuple(g.shape) for g in (*seen.before, *seen.after)] == [(2, model.head.in_features)] * 2 * gates
    assert [(n, p.shape) for n, p in plain.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]


def test_weights_take_gradients_through_the_mask_and_features_feed_the_head():
    model, x = attentive("preact"), torch.rand(4, 3, 16, 16)
    assert torch.allclose(model.head(model.features(x)), model(x), atol=1e-5)
    seen = activations(model, x, ("features", "logits"))
    assert torch.equal(seen["features"], model.features(x)), "as deployed"
    assert torch.equal(seen["logits"], model(x))
    logits = model.attend(x, torch.full((4,), 3)).logits
    (gradient,) = torch.autograd.grad(logits[:, 5].sum(), model.head.weight)
    slopes = gradient.abs().amax(1)
    assert slopes[[3, 5]].min() > 1e-4, "row 3 only stands in the mask of logit 5"
    assert slopes[7] == 0


def test_surrogates_are_named_views_of_the_same_weights():
    one, two = attentive(), attentive("preact")
    soft = [f"{kind} gate {t}" for kind in ("soft", "bpda") for t in ("0.1", "0.3", "1")]
    assert list(one.surrogates()) == ["head 1", "joint", *soft]
    gates = [f"gate {label}" for label in range(10)]
    heads = ["head 1", "head 2", "mean of heads", "soft head 0.3"]
    assert list(two.surrogates()) == [*heads, "joint", *soft, *gates]
    views = two.surrogates()
    assert {name: v.target for name, v in views.items() if hasattr(v, "target")} == {f"gate {c}": c for c in range(10)}
    assert {name: v.objective for name, v in views.items() if hasattr(v, "objective")} == {"joint": "nll"}
    weights = {id(p) for p in two.parameters()}
    for view in views.values():
        assert {id(p) for p in view.parameters()} == weights
        assert view(torch.rand(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_bpda_gate_feels_the_soft_mask(temperature):
    """d p'_c / d g = W_c W_j + sum_l W[c,l] g_l d m_l / d g, with d m_l / d g = sum_a q_a W[a,l] (W_a - sum_b q_b W_b) / T."""
    model, x, maps = attentive("small_cnn"), torch.rand(5, 3, 16, 16), []
    model.encoder.stage3.register_forward_hook(lambda module, args, out: maps.append(out))
    for c in (0, 6):
        maps.clear()
        logits = model.bpda_gate(x, temperature)
        ours = torch.autograd.grad(logits[:, c].sum(), maps[0])[0].sum((2, 3)).detach()
        weight, g = model.head.weight.detach(), maps[0].detach().mean((2, 3))
        for image in range(5):
            p = weight @ g[image] + model.head.bias.detach()
            q, j = (p / temperature).softmax(0), int(p.argmax())
            slope = torch.einsum("a,al,ak->lk", q, weight, weight - q @ weight) / temperature
            theirs = weight[c] * weight[j] + (weight[c] * g[image]) @ slope
            assert torch.allclose(ours[image], theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", ["small_cnn", "preact"])
def test_a_quick_attack_looks_at_the_last_auxiliary_head_behind_soft_gates(arch):
    model, x = attentive(arch), torch.rand(4, 3, 16, 16)
    quick = validation_view(model)
    assert isinstance(quick, SurrogateModel)
    assert quick.deployed is model
    soft = model.gated(x, lambda logits: (logits / 0.3).softmax(1) @ model.head.weight)
    assert torch.equal(quick(x), soft.auxiliary[-1])
    if model.gates > 1:  # it feels the gate before the last head, which the hard one hides
        assert not torch.allclose(quick(x), model.attend(x).auxiliary[-1])
        assert torch.equal(model.surrogates()["soft head 0.3"](x), quick(x))
    plain = build_model("mlp", spec())
    assert validation_view(plain) is plain


def test_each_surrogate_equals_its_formula():
    model, x = attentive("preact"), torch.rand(4, 3, 16, 16)
    views, seen = {k: v.eval() for k, v in model.surrogates().items()}, model.attend(x)
    p1, p2 = seen.auxiliary
    rows, y = model.head.weight, torch.tensor([0, 4, 4, 9])
    warm = model.gated(x, lambda p: torch.stack([sum(q[c] * rows[c] for c in range(10)) for q in p.softmax(1)]))
    wanted = {"head 1": p1, "head 2": p2, "mean of heads": (p1 + p2) / 2, "soft gate 1": warm.logits}
    wanted |= {f"gate {c}": model.attend(x, torch.full((4,), c)).auxiliary[-1] for c in (0, 9)}
    for name, logits in wanted.items():
        assert torch.allclose(views[name](x), logits, rtol=1e-4, atol=1e-4), name
    ce = [nn.functional.cross_entropy(p, y) for p in (seen.logits, p1, p2)]
    assert torch.isclose(-views["joint"](x)[range(4), y].mean(), ce[0] + 2 * (ce[1] + ce[2]) / 2, rtol=1e-5)


@pytest.mark.parametrize("arch", SMALL)
def test_every_surrogate_has_gradients_and_a_folded_twin(arch):
    model, kinds = attentive(arch), set()
    x, y = torch.rand(2, 3, 16, 16), torch.arange(2)
    for name, view in {"": model, **model.surrogates()}.items():
        kind = name.rstrip("0123456789.")
        if kind in kinds or (arch == "resnet18" and kind not in ("", "soft gate ")):  # one of a kind is enough
            continue
        kinds.add(kind)
        assert torch.equal(view(x), model(x)) or not name.startswith("bpda"), "it answers as deployed"
        x_in = x.clone().requires_grad_(True)
        nn.functional.cross_entropy(view(x_in), y).backward()
        assert bool((x_in.grad.flatten(1).norm(dim=1) > 0).all()), name
        twin = fold_batchnorm(view.eval(), x, "32-true")
        assert twin is not None, name
        with torch.no_grad():
            assert torch.allclose(twin(x), view(x), rtol=1e-3, atol=1e-3), name


def test_all_surrogates_share_one_folded_network_and_follow_its_weights(monkeypatch):
    model, x = attentive("small_cnn").eval(), torch.rand(2, 3, 16, 16)
    built, build = [], fold_batchnorm.__globals__["_build"]
    monkeypatch.setitem(fold_batchnorm.__globals__, "_build", lambda *args: built.append(args) or build(*args))
    for _ in range(2):  # a later attack asks for views anew
        views = model.surrogates()
        twins = {name: fold_batchnorm(view, x, "32-true") for name, view in views.items()}
        assert len({id(twin.model) for twin in twins.values()}) == 1
        assert twins["joint"].objective == "nll"
        assert all(
            getattr(twins[name], "target", None) == getattr(view, "target", None) for name, view in views.items()
        )
        with torch.no_grad():
            for name, view in views.items():
                assert torch.allclose(twins[name](x), view(x), rtol=1e-3, atol=1e-3), name
            model.head.bias += 1
    assert len(built) == 1, "of a hundred classes a hundred copies would not fit"


@pytest.mark.parametrize(
    ("shape", "labels", "says"),
    [
        ((4, 1, 8, 8), [1, 2, 3], r"Gates need labels int64 \(4,\), got torch.int64 \(3,\)"),
        ((1, 1, 8, 8), [1.0], r"got torch\.float32"),
        ((4, 3, 8, 8), None, r"images of 1 channel\(s\)"),
    ],
)
def test_what_it_cannot_use_is_refused(shape, labels, says):
    with pytest.raises(InputError, match=says):
        attentive(shape=(1, 8, 8)).attend(torch.rand(shape), None if labels is None else torch.tensor(labels))

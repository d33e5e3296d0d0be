"""Reverse attention: its logits against plain loops, its masks, its surrogates, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from robustlib.attacks import PGD, ExampleRNG
from robustlib.attacks.base import SurrogateModel, validation_view
from robustlib.attacks.fold_batchnorm import fold_batchnorm
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, summarise
from robustlib.losses import trades_loss
from robustlib.models import ARCHITECTURES, Classifier, build_model
from robustlib.models.backbones import GatedStage
from robustlib.models.reverse_attention import TEMPERATURES, BPDAGate
from robustlib.representation.features import activations, layers
from robustlib.runs import save_weights
from robustlib.runs.files import load_weights
from tests.conftest import spec

GATED = [arch for arch in ARCHITECTURES if not arch.startswith("mlp")]
SMALL = ["small_cnn", "resnet18", "preact_resnet18"]


def attentive(arch="small_cnn", shape=(3, 16, 16), classes=10, seed=0):
    """A model whose BatchNorm statistics, weights and predictions are not the initial ones."""
    torch.manual_seed(seed)
    model = build_model(arch, spec(shape, classes), reverse_attention=True)
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
    return e.layer3(e.layer2(e.layer1(e.stem(x)))), list(e.layer4), lambda z: torch.relu(e.bn(z))


def restated(model, x, labels=None):
    """Section 2.1 of the paper's page, image by image and channel by channel."""
    h, blocks, finish = last_maps(model, x)
    weight, bias, aux = model.head.weight, model.head.bias, []
    for block in blocks:
        z = finish(block(h))
        pooled = [image.mean((1, 2)) for image in z]
        p = torch.stack([torch.stack([(weight[c] * g).sum() + bias[c] for c in range(10)]) for g in pooled])
        chosen = p.argmax(1) if labels is None else labels
        weighted = [[weight[j, k] * z[n, k] for k in range(z.shape[1])] for n, j in enumerate(chosen)]
        h = torch.stack([torch.stack(channels) for channels in weighted])
        aux.append(p)
    return h.mean((2, 3)) @ weight.t() + bias, aux, h.mean((2, 3))


@pytest.mark.parametrize("mask", ["true", "predicted"])
@pytest.mark.parametrize("arch", SMALL)
def test_logits_equal_the_papers_loops(arch, mask):
    model, x = attentive(arch), torch.rand(3, 3, 16, 16)
    labels = torch.tensor([1, 7, 7]) if mask == "true" else None
    with torch.no_grad():
        seen = model.attend(x, labels)
        logits, auxiliary, features = restated(model, x, labels)
    assert torch.allclose(seen.logits, logits, rtol=1e-4, atol=1e-4)
    assert len(seen.auxiliary) == len(auxiliary) == model.gates == (1 if arch == "small_cnn" else 2)
    for ours, theirs in zip(seen.auxiliary, auxiliary, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.allclose(seen.after[-1], features, rtol=1e-4, atol=1e-4)
    for p, g in zip(seen.auxiliary, seen.before, strict=True):
        assert torch.allclose(p, model.head(g), atol=1e-5)


def test_a_wide_resnet_gates_its_last_two_blocks():
    with torch.device("meta"):
        model = build_model("wrn28_10", spec(), reverse_attention=True)
        seen = model.attend(torch.empty(2, 3, 32, 32))
    assert [tuple(p.shape) for p in seen.auxiliary] == [(2, 10)] * 2
    assert [tuple(g.shape) for g in (*seen.before, *seen.after)] == [(2, 640)] * 4
    order = []
    stage = GatedStage(*(nn.Identity() for _ in range(4)))
    for number, block in enumerate(stage):
        block.register_forward_hook(lambda module, args, out, number=number: order.append(number))
    assert torch.equal(stage(torch.ones(1)), torch.ones(1))
    order.clear()
    assert float(stage(torch.ones(1), lambda z: order.append("gate") or z * 3)) == 9
    assert order == [0, 1, 2, "gate", 3, "gate"]


def test_the_shared_batchnorm_sees_both_gated_blocks():
    model = build_model("preact_resnet18", spec((3, 16, 16)), reverse_attention=True).train()
    model(torch.rand(4, 3, 16, 16))
    assert model.encoder.bn.num_batches_tracked == 2
    assert model.encoder.layer4[1].bn1.num_batches_tracked == 1


@pytest.mark.parametrize("arch", GATED)
def test_every_convolutional_architecture_takes_gates_and_keeps_its_weights(arch):
    with torch.device("meta"):
        plain, model = (build_model(arch, spec((1, 8, 8)), reverse_attention=on) for on in (False, True))
        assert model(torch.empty(2, 1, 8, 8)).shape == (2, 10)
    assert type(plain) is Classifier
    assert [(n, p.shape) for n, p in plain.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]


# Not of preact: BatchNorm and ReLU come between the blocks as well.
@pytest.mark.parametrize("arch", ["small_cnn", "resnet18"])
def test_gates_that_do_nothing_are_the_plain_classifier(arch):
    model, x = attentive(arch), torch.rand(4, 3, 16, 16)
    plain = build_model(arch, spec((3, 16, 16)))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "gated_blocks"})
    plain.eval()
    seen = model.gated(x, lambda logits: logits.new_ones(len(logits), model.head.in_features))
    assert torch.allclose(seen.logits, plain(x), rtol=1e-4, atol=1e-4)
    assert torch.allclose(seen.auxiliary[-1], seen.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", SMALL)
def test_the_mask_is_an_argument_and_no_side_effect_of_the_mode(arch):
    model, x = attentive(arch), torch.rand(4, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(model(x), model.attend(x).logits)
    if model.gates == 1:
        assert torch.equal(model.attend(x, model.attend(x).auxiliary[0].argmax(1)).logits, model(x))
    assert not torch.allclose(model(x), model.attend(x, labels).logits)
    deployed = model(x)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    assert torch.equal(model(x), deployed)
    assert model.training


def test_weights_take_gradients_through_the_mask_and_features_feed_the_head():
    model, x, y = attentive("resnet18"), torch.rand(4, 3, 16, 16), torch.tensor([3, 3, 3, 3])
    features = model.features(x)
    assert torch.allclose(model.head(features), model(x), atol=1e-5)
    seen = model.attend(x, y)
    weight = model.head.weight
    (gradient,) = torch.autograd.grad(seen.logits[:, 5].sum(), weight)
    assert gradient[3].abs().max() > 1e-4, "row 3 only stands in the mask of logit 5"
    assert gradient[5].abs().max() > 1e-4
    assert gradient[7].abs().max() == 0


def test_a_confirmed_guess_is_a_sum_of_squares():
    """p'_j = sum_k W[j,k]^2 g_k + b_j, the analysis of the self-confirming head."""
    model, x = attentive("small_cnn"), torch.rand(16, 3, 16, 16)
    seen = model.attend(x)
    j = seen.auxiliary[-1].argmax(1)
    expected = (model.head.weight[j] ** 2 * seen.before[-1]).sum(1) + model.head.bias[j]
    assert torch.allclose(seen.logits.gather(1, j[:, None])[:, 0], expected, rtol=1e-4, atol=1e-4)


# --- surrogates


def test_surrogates_are_named_views_of_the_same_weights():
    with torch.device("meta"):
        one, two = (build_model(arch, spec(), reverse_attention=True) for arch in ("small_cnn", "resnet18"))
    soft = [f"{kind} gate {t}" for kind in ("soft", "bpda") for t in ("0.1", "0.3", "1")]
    assert list(one.surrogates()) == ["head 1", "joint", *soft]
    gates = [f"gate {label}" for label in range(10)]
    heads = ["head 1", "head 2", "mean of heads", "soft head 0.3"]
    assert list(two.surrogates()) == [*heads, "joint", *soft, *gates]
    views = two.surrogates()
    assert {name: v.target for name, v in views.items() if hasattr(v, "target")} == {f"gate {c}": c for c in range(10)}
    assert {name: v.objective for name, v in views.items() if hasattr(v, "objective")} == {"joint": "nll"}
    mine = {id(p) for p in two.parameters()}
    for view in views.values():
        assert {id(p) for p in view.parameters()} == mine
        assert view(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("arch", SMALL)
def test_a_bpda_gate_answers_as_deployed(arch):
    model, x = attentive(arch), torch.rand(4, 3, 16, 16)
    for temperature in TEMPERATURES:
        assert torch.equal(BPDAGate(model, temperature)(x), model(x))


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_bpda_gate_feels_the_soft_mask(temperature):
    """dp'_c/dg_k = W[c,k] W[j,k] + sum_l W[c,l] g_l dm_l/dg_k, with dm_l/dg_k = sum_a q_a W[a,l] (W[a,k] - sum_b q_b W[b,k]) / T."""
    model, x, maps = attentive("small_cnn"), torch.rand(5, 3, 16, 16), []
    model.encoder.stage3.register_forward_hook(lambda module, args, out: maps.append(out))
    view = BPDAGate(model, temperature)
    for c in (0, 6):
        maps.clear()
        logits = view(x)
        ours = torch.autograd.grad(logits[:, c].sum(), maps[0])[0].sum((2, 3)).detach()
        weight, g = model.head.weight.detach(), maps[0].detach().mean((2, 3))
        for image in range(5):
            p = weight @ g[image] + model.head.bias.detach()
            q, j = (p / temperature).softmax(0), int(p.argmax())
            slope = torch.einsum("a,al,ak->lk", q, weight, weight - q @ weight) / temperature
            theirs = weight[c] * weight[j] + (weight[c] * g[image]) @ slope
            assert torch.allclose(ours[image], theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", SMALL)
def test_a_quick_attack_looks_at_the_last_auxiliary_head_behind_soft_gates(arch):
    model, x = attentive(arch), torch.rand(4, 3, 16, 16)
    quick = validation_view(model)
    assert isinstance(quick, SurrogateModel)
    assert quick.target is model
    weight = model.head.weight
    soft = model.gated(x, lambda logits: (logits / 0.3).softmax(1) @ weight)
    assert torch.equal(quick(x), soft.auxiliary[-1])
    if model.gates > 1:  # it feels the gate before the last head, which the hard one hides
        assert not torch.allclose(quick(x), model.attend(x).auxiliary[-1])
        assert torch.equal(model.surrogates()["soft head 0.3"](x), quick(x))
    plain, bare = build_model(arch, spec((3, 16, 16))), nn.Flatten()
    assert plain.attack_view() is validation_view(plain) is plain
    assert validation_view(bare) is bare


def test_each_surrogate_equals_its_formula():
    model, x = attentive("resnet18"), torch.rand(4, 3, 16, 16)
    views, seen = {k: v.eval() for k, v in model.surrogates().items()}, model.attend(x)
    p1, p2 = seen.auxiliary
    assert torch.equal(views["head 1"](x), p1)
    assert torch.equal(views["head 2"](x), p2)
    assert torch.allclose(views["mean of heads"](x), (p1 + p2) / 2, atol=1e-5)
    y = torch.tensor([0, 4, 4, 9])
    ce = [nn.functional.cross_entropy(p, y) for p in (seen.logits, p1, p2)]
    joint = -views["joint"](x)[range(4), y].mean()
    assert torch.isclose(joint, ce[0] + 2 * (ce[1] + ce[2]) / 2, rtol=1e-5)
    for label in (0, 9):
        fixed = torch.full((4,), label)
        assert torch.equal(views[f"gate {label}"](x), model.attend(x, fixed).auxiliary[-1])
    cold = type(views["soft gate 1"])(model, 1e-4).eval()
    assert torch.allclose(cold(x), model(x), rtol=1e-3, atol=1e-3), "as the temperature falls, the model itself"
    rows = model.head.weight
    warm = model.gated(x, lambda p: torch.stack([sum(q[c] * rows[c] for c in range(10)) for q in p.softmax(1)]))
    assert torch.allclose(views["soft gate 1"](x), warm.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", SMALL)
def test_every_surrogate_has_gradients_and_a_folded_twin(arch):
    model = attentive(arch)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    for name, view in {"": model, **model.surrogates()}.items():
        x_in = x.clone().requires_grad_(True)
        nn.functional.cross_entropy(view(x_in), y).backward()
        assert bool((x_in.grad.flatten(1).norm(dim=1) > 0).all()), name
        twin = fold_batchnorm(view.eval(), x, "32-true")
        assert twin is not None, name
        with torch.no_grad():
            assert torch.allclose(twin(x), view(x), rtol=1e-3, atol=1e-3), name


def test_the_deployed_gradient_is_flipped_where_the_row_is_negative():
    """The mechanism of section 5: at the map z, the deployed margin's gradient is the deciding margin's times W[j]."""
    model, x, maps = attentive("small_cnn"), torch.rand(8, 3, 16, 16), []
    model.encoder.stage3.register_forward_hook(lambda module, args, out: maps.append(out))
    seen, weight = model.attend(x), model.head.weight
    j = seen.auxiliary[0].argmax(1)
    deployed, deciding = (
        torch.autograd.grad((p.gather(1, j[:, None]) - p[:, :1]).sum(), maps[0], retain_graph=True)[0].mean((2, 3))
        for p in (seen.logits, seen.auxiliary[0])
    )
    assert torch.allclose(deployed, weight[j] * deciding, atol=1e-6)
    assert 0.3 < (weight[j] < 0).float().mean() < 0.7


def trained(digits):
    """small_cnn with gates after a few adversarial steps in the paper's way: true-label mask and heads of weight 2."""
    torch.manual_seed(0)
    model = build_model("small_cnn", digits, reverse_attention=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attack, generator = PGD(digits.threat, steps=5), torch.Generator().manual_seed(0)
    for _ in range(6):
        for batch in digits.train.batches(128, shuffle=True, generator=generator):
            x_adv = attack(model, batch.x, batch.y, generator=generator)
            model.train()
            clean, robust = (model.attend(x, batch.y) for x in (batch.x, x_adv))
            loss = trades_loss(clean.logits, robust.logits, batch.y, 3.0)[0]
            loss = loss + 2 * trades_loss(clean.auxiliary[0], robust.auxiliary[0], batch.y, 3.0)[0]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def test_surrogates_break_what_the_papers_protocol_calls_robust(digits):
    model = trained(digits)
    batch = next(iter(digits.test.batches(300)))
    attack = PGD(digits.threat, steps=20)
    left = {}
    for name, view in {"": model, **model.surrogates()}.items():
        rng = ExampleRNG.for_examples(0, batch.index)
        x_adv = attack(SurrogateModel(view, model) if name else model, batch.x, batch.y, rng=rng)
        with torch.no_grad():
            left[name] = model(x_adv).argmax(1) == batch.y
    with torch.no_grad():
        seen = model.attend(batch.x)
    agrees = seen.logits.argmax(1) == seen.auxiliary[-1].argmax(1)
    assert agrees.float().mean() > 0.95, "the final head confirms the auxiliary one"
    assert (seen.logits.argmax(1) == batch.y).float().mean() > 0.8
    shares = {name: round(float(right.float().mean()), 3) for name, right in left.items()}
    assert shares["head 1"] < shares[""] - 0.03, shares
    assert torch.stack(list(left.values())).all(0).float().mean() <= min(shares.values())


def test_the_evaluation_attacks_every_surrogate(digits):
    model = attentive(shape=(1, 8, 8))
    records = evaluate(model, digits.test.sample(12), {"pgd": PGD(digits.threat, steps=2)})
    table = summarise(records)
    assert list(table.attack) == ["clean", "pgd", *(f"pgd@{name}" for name in model.surrogates()), "worst"]


# --- the rest of the house


@pytest.mark.parametrize("arch", SMALL)
def test_layers_are_seen_as_deployed(arch):
    model, x = attentive(arch), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        seen = activations(model, x, layers(model))
        assert torch.equal(seen["features"], model.features(x))
        assert torch.equal(seen["logits"], model(x))
    assert set(layers(model)) == {f"encoder.{stage}" for stage in model.encoder.stages} | {"features", "logits"}


def test_a_copy_is_the_same_model_and_a_plain_checkpoint_is_another(tmp_path):
    model, x = attentive(shape=(1, 8, 8)), torch.rand(4, 1, 8, 8)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    save_weights(model, tmp_path / "ours.safetensors")
    again = build_model("small_cnn", spec((1, 8, 8)), reverse_attention=True)
    load_weights(again, tmp_path / "ours.safetensors")
    assert torch.equal(again.eval()(x), model(x))
    plain = build_model("small_cnn", spec((1, 8, 8)))
    save_weights(plain, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="weights of another model: gated_blocks is missing"):
        load_weights(again, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="weights of another model: gated_blocks"):
        load_weights(plain, tmp_path / "ours.safetensors")


def test_what_it_cannot_use_is_refused():
    with pytest.raises(InputError, match=r"MLP has none: choose small_cnn.*reverse_attention=false"):
        build_model("mlp", spec((1, 8, 8)), reverse_attention=True)
    model = attentive(shape=(1, 8, 8))
    with pytest.raises(InputError, match=r"Gates need labels int64 \(4,\), got torch.int64 \(3,\)"):
        model.attend(torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match=r"got torch\.float32"):
        model.attend(torch.rand(1, 1, 8, 8), torch.tensor([1.0]))
    with pytest.raises(InputError, match=r"images of 1 channel\(s\)"):
        model.attend(torch.rand(4, 3, 8, 8))

from collections import OrderedDict

import pytest
import torch
from torch import nn

from robustlib.attacks import FGSM, PGD, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.models import build_model
from robustlib.representation import at_eps, feature_gap, features, gap_probe, layers
from tests.conftest import Hidden

THREAT = Threat("linf", 0.2)


def split_of(n: int, shape: tuple[int, ...] = (1, 8, 8)) -> Split:
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(n) % 10, torch.arange(n) + 100)


class Tokens(nn.Module):
    """Images (B, 1, 8, 8) -> four tokens (B, 4, 6) or maps (B, 4, 4, 6), behind a LayerNorm: constant over the last dimension."""

    def __init__(self, side: int, as_maps: bool):
        super().__init__()
        self.patches, self.norm, self.as_maps = nn.Conv2d(1, 6, 8 // side, 8 // side), nn.LayerNorm(6), as_maps

    def forward(self, x):
        maps = self.norm(self.patches(x).permute(0, 2, 3, 1))
        return maps if self.as_maps else maps.flatten(1, 2)


UNUSED = nn.Flatten()
UNUSED.spare = nn.Linear(2, 2)  # that it does not call


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "resnet8_w48", "resnet18", "preact_resnet18"])
def test_every_listed_layer_has_features(arch, digits):
    model = build_model(arch, digits)
    names = layers(model)
    assert (names[-2:], len(names) >= 4) == (("features", "logits"), True)
    answers = features(model, split_of(3), layers=names)
    assert tuple(answers.layers) == names
    assert answers["features"].shape == (3, model.head.in_features)
    assert answers["logits"].shape == (3, 10)


@pytest.mark.parametrize("as_maps", [False, True])
def test_tokens_are_averaged_over_the_tokens(as_maps):
    torch.manual_seed(0)
    model, split = nn.Sequential(Tokens(4, as_maps), nn.Flatten(), nn.Linear(96, 10)).eval(), split_of(5)
    with torch.no_grad():
        tokens = model[0](split.images.float() / 255)
    torch.testing.assert_close(features(model, split, layers="0")["0"], tokens.view(5, 16, 6).mean(1))


def named_layers(*names: str) -> nn.Sequential:
    """Convolution, pooling, answer: three submodules of these names."""
    parts = (nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 10))
    return nn.Sequential(OrderedDict(zip(names, parts, strict=True)))


@pytest.mark.parametrize(
    ("names", "listed", "default", "others"),
    [  # as in VGG or DenseNet; as in Swin; as in ConvNeXt
        (("features", "pool", "classifier"), ("features", "pool", "classifier", "logits"), "logits", "features"),
        (("features", "pool", "head"), ("pool", "features", "logits"), "features", "features.0"),
        (("stages", "pool", "head"), ("stages", "pool", "features", "logits"), "features", "stages"),
    ],
)
def test_submodules_may_be_called_as_anything(names, listed, default, others):
    model, split = named_layers(*names).eval(), split_of(3)
    assert layers(model) == listed
    x = split.images.float() / 255
    with torch.no_grad():
        maps = model[0](x).mean((2, 3))
        answers = {"logits": model(x), "features": maps}
    assert list(features(model, split).layers) == [default]
    torch.testing.assert_close(features(model, split)[default], answers[default])
    torch.testing.assert_close(features(model, split, layers=others)[others], maps)
    for name, answer in features(model, split, layers=listed).layers.items():
        torch.testing.assert_close(answer, answers.get("logits" if name in ("classifier", "logits") else "features"))


def test_layers_of_a_model_that_is_no_classifier(conv_net):
    assert layers(conv_net) == ("0", "1", "2", "3", "4", "logits")
    assert features(conv_net, split_of(2, (3, 8, 8)), layers="0")["0"].shape == (2, 8)


def test_features_agree_with_the_model_in_any_batches(net):
    split = split_of(23)
    x = split.images.float() / 255
    answers = features(net, split, layers=["stage2", "features", "logits"], batch_size=5)
    with torch.no_grad():
        torch.testing.assert_close(answers["features"], net.features(x))
        torch.testing.assert_close(answers["logits"], net(x))
        maps = net.encoder.stage2(net.encoder.stage1(net.normalise(x)))
        torch.testing.assert_close(answers["encoder.stage2"], maps.mean((2, 3)))
        assert answers.predictions.equal(net(x).argmax(1))
    assert answers.indices.equal(split.indices)
    before_relu = features(net, split, layers="encoder.stage1.1")["stage1.1"]
    assert before_relu.min() < 0, "what a later module changes in place is kept as it was"


def test_the_model_is_left_as_found(net):
    model = net.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.head.eval()
    features(model, split_of(6), attack=PGD(THREAT, steps=2))
    assert model.encoder.training
    assert not model.head.training
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()


def test_attacked_features_are_those_of_the_attack(net):
    split, attack = split_of(12), PGD(THREAT, steps=3)
    attacked = features(net, split, attack=attack, seed=3)["features"]
    assert feature_gap(features(net, split)["features"], attacked).min() > 0
    pieces = features(net, split, attack=attack, seed=3, batch_size=5, keep_images=True)
    torch.testing.assert_close(attacked, pieces["features"])
    assert not attacked.equal(features(net, split, attack=attack, seed=4)["features"])
    assert features(net, split).images is None
    assert pieces.images.dtype == torch.uint8
    assert 0 < (pieces.images.int() - split.images.int()).abs().amax() <= round(0.2 * 255)
    assert features(net, split, keep_images=True).images.equal(split.images)


def test_attacks_use_the_attack_view(net):
    """The deployed outputs hide their gradient: without the view the images, and so the features, would be other ones."""
    split, attack = split_of(40), PGD(THREAT, steps=3)
    models = net, Hidden(net, open=False), Hidden(net, open=True)
    plain, hidden, known = (features(model, split, attack=attack, keep_images=True) for model in models)
    assert known.images.equal(plain.images)
    assert not hidden.images.equal(plain.images)
    assert known.predictions.equal(plain.predictions)
    batch = next(iter(split.batches(40)))
    outside = gap_probe(attack, {"h": "encoder.stage3"})(net, batch)["h/relative_l2"]
    inside = gap_probe(attack, {"h": "model.encoder.stage3"})
    with_view, without = (inside(Hidden(net, open=seen), batch)["h/relative_l2"] for seen in (True, False))
    assert with_view == outside > without


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: features(net, split_of(2), layers="stage9"), r"stage9.*encoder.stage1.*stage2.*features.*logits"),
        (lambda net: features(net, split_of(2), layers=[]), "No layer was asked for"),
        (lambda net: features(net, split_of(0)), "holds no image"),
        (lambda net: features(net, split_of(2), layers="stage2")["stage3"], "'stage3' was not kept"),
        (lambda net: features(UNUSED, split_of(2), layers="spare"), "does not reach 'spare'"),
        (lambda net: at_eps(lambda model, x, y: x, 0.1), "has no threat"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(call, says, net):
    with pytest.raises(InputError, match=says):
        call(net)


def test_at_eps_keeps_the_protocol():
    assert at_eps(PGD(THREAT), 0.1) == PGD(Threat("linf", 0.1))
    assert at_eps(FGSM(THREAT), 0.1) == FGSM(Threat("linf", 0.1))
    assert at_eps(PGD(THREAT, step_size=0.02), 0.1).step_size == pytest.approx(0.01)
    assert at_eps(PGD(THREAT, step_size=0.02), 0.0).threat.eps == 0

"""Architectures by name: published sizes, normalisation, folding hints, padding, and what they refuse."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from robustlib.errors import InputError
from robustlib.models import ARCHITECTURES, Classifier, build_model
from robustlib.models.classifier import spatial_mean
from tests import ROOT
from tests.conftest import spec

# CIFAR-10 counts: torchvision's and kuangliu's ResNets with the 3 x 3 stem; He et al. 2016b with its final BatchNorm;
# Zagoruyko and Komodakis 2016 (36.5 M, 46.2 M with depth 34)
PUBLISHED = {
    "small_cnn": 94_762,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "preact_resnet18": 11_172_170,
    "wrn28_10": 36_479_194,
    "wrn34_10": 46_160_474,
}
IMAGENET = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}  # torchvision's


def on_meta(arch, **options) -> Classifier:
    """Shapes without numbers: the large models cost nothing."""
    with torch.device("meta"):
        return build_model(arch, spec(**options))


@pytest.mark.parametrize(("arch", "parameters"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(arch, parameters):
    large = {"shape": (3, 224, 224), "classes": 1000}
    for options, wanted in (({}, parameters), (large, IMAGENET.get(arch))):
        assert wanted in (None, sum(weight.numel() for weight in on_meta(arch, **options).parameters()))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 160, 160)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_takes_every_data_sets_images(arch, shape):
    model = on_meta(arch, shape=shape, classes=7)
    x = torch.empty(2, *shape, device="meta")
    assert model(x).shape == (2, 7)
    assert model.features(x).shape == (2, model.head.in_features)
    assert (model.stochastic, model.surrogates()) == (False, {})


RESNET = [(32, 32, 4), (64, 64, 8), (65, 17, 3), (160, 40, 5)]
SIZES = [
    ("resnet8_w48", 32, 16, 4),
    *(("resnet18", *sizes) for sizes in RESNET),
    *(("small_cnn", *sizes) for sizes in ((15, 15, 8), (16, 16, 4))),
]


@pytest.mark.parametrize(("arch", "size", "first", "last"), SIZES)
def test_strides_suit_the_image(arch, size, first, last):
    seen = []
    model = on_meta(arch, shape=(3, size, size))
    for name in (model.encoder.stages[0], model.encoder.stages[-1]):
        getattr(model.encoder, name).register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    model(torch.empty(1, 3, size, size, device="meta"))
    assert seen == [first, last]


@pytest.mark.parametrize("arch", ["mlp", "small_cnn", "resnet8_w48", "resnet18", "preact_resnet18"])
def test_logits_and_input_gradients_are_sane(arch):
    torch.manual_seed(0)
    model = build_model(arch, spec((3, 16, 16)))
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    logits = model(x)
    assert torch.allclose(logits, model.head(model.features(x)), atol=1e-5)
    assert bool(logits.isfinite().all())
    assert 1e-3 < logits.detach().std() < 30
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert bool((x.grad.flatten(1).norm(dim=1) > 0).all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_normalisation_is_inside_and_saved(digits):
    model, x = build_model("mlp", digits), digits.train.images / 255
    z, state = model.normalise(x), model.state_dict()
    assert [z.mean().item(), z.std().item()] == pytest.approx([0, 1], abs=1e-4)
    assert torch.equal(model.features(x[:5]), model.encoder(z[:5]))
    assert [*state["mean"].flatten(), *state["std"].flatten()] == pytest.approx([*digits.mean, *digits.std])


@pytest.mark.parametrize("arch", ["resnet8_w48", "resnet18", "resnet50", "preact_resnet18", "wrn28_10"])
def test_declared_folds_are_convolutions_that_feed_their_norm(arch):
    model = on_meta(arch)
    produced, consumed, pairs = {}, {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out, name=name: produced.update({name: out}))
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, args, out, name=name: consumed.update({name: args[0]}))
        pairs += [(f"{name}.{conv}", f"{name}.{norm}") for conv, norm in getattr(module, "folds", ())]
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert len(pairs) >= 6
    for conv, norm in pairs:
        assert produced[conv] is consumed[norm], (conv, norm)


def test_resnet8_is_three_residual_blocks_behind_a_stem_of_stride_2():
    """He et al. 2016, section 4.2: y = ReLU(F(x) + W_s x), F two 3 x 3 convolutions with BatchNorm, W_s a 1 x 1 where the shape changes."""
    torch.manual_seed(0)
    encoder, x = build_model("resnet8_w48", spec((3, 16, 16))).eval().encoder, torch.rand(2, 3, 16, 16)
    assert sum(weight.numel() for weight in encoder.parameters()) == 690_912
    z = encoder.stem(x)
    assert z.shape == (2, 48, 8, 8)
    for name in encoder.stages:
        (block,) = getattr(encoder, name)
        inner = block.bn2(block.conv2(block.bn1(block.conv1(z)).relu()))
        shortcut = z if block.downsample is None else block.downsample(z)
        z = (inner + shortcut).relu()
    torch.testing.assert_close(encoder(x), z.mean((2, 3)))


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
@pytest.mark.parametrize(
    ("arch", "shift"), [("small_cnn", 4), ("resnet8_w48", 8), ("resnet18", 8), ("preact_resnet18", 8)]
)
def test_a_circular_network_does_not_see_a_cyclic_shift(arch, shift, padding_mode):
    model, x = build_model(arch, spec((3, 16, 16)), padding_mode=padding_mode).eval(), torch.rand(2, 3, 16, 16)
    same = torch.allclose(model.features(x), model.features(x.roll((shift, -shift), (2, 3))), atol=1e-4)
    assert same == (padding_mode == "circular")


def test_the_scaled_mlp_is_rep_spectrals_mnist_network():
    """architectures/MLP.py: GELU(W1 x + b1), then (W2 h + b2) / sqrt(2000); weights and biases from N(0, 0.01^2)."""
    torch.manual_seed(0)
    model = build_model("mlp_2000", spec((1, 28, 28))).double()
    hidden, head = model.encoder.layers[0], model.head
    assert (hidden.weight.shape, head.weight.shape) == ((2000, 784), (10, 2000))
    for drawn in (hidden.weight, hidden.bias, head.weight):
        assert abs(drawn.std().item() / 0.01 - 1) < 0.1
        assert abs(drawn.mean().item()) < 1e-3
    x = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    h = nn.functional.gelu(model.normalise(x).flatten(1) @ hidden.weight.T + hidden.bias)
    assert torch.allclose(model(x), h @ head.weight.T / 2000**0.5 + head.bias, atol=1e-10)
    plain = build_model("mlp_512", spec((1, 28, 28)))
    assert plain.head.weight.abs().max() > 0.03, "others keep torch's own start"


SMALL = spec((1, 8, 8))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m(torch.rand(2, 3, 8, 8)), r"1 channel\(s\), but got a batch of 3 channel\(s\) \(shape \(3, 8, 8\)"),
        (lambda m: m(torch.rand(2, 1, 28, 28)), r"images of 8x8 pixels, but got a batch of 28x28 pixels"),
        (lambda m: m(torch.rand(2, 64)), r"takes a batch \(B, C, H, W\), not a tensor of shape \(2, 64\)"),
        (lambda m: m.check_data(spec((1, 8, 8), classes=100)), "tells 10 classes apart, the data set has 100"),
        (lambda m: m.check_data(spec()), r"1 channel\(s\), but the data set has images of 3 channel\(s\)"),
        (lambda _: build_model("resnet_18", SMALL), r"Unknown architecture 'resnet_18'.*Did you mean 'resnet18'"),
        (lambda _: build_model("mlp", SMALL, padding_mode="reflect"), "padding mode 'reflect'. Known: circular, zeros"),
        (
            lambda _: build_model("mlp", SMALL, projection=(16, 0)),
            r"projection\[1\]=0: give a whole number of at least 1",
        ),
        (
            lambda _: build_model("mlp", SMALL, projection=(10**6,) * 2),
            r"projection\[0\]=1000000: give a whole number of at least 1 and at most 16384",
        ),
        (lambda _: build_model("mlp", SMALL, projection=(16,), disentangled=True), "choose one"),
        (lambda _: build_model("mlp", SMALL, dual_batchnorm=True), "give projection"),
        (
            lambda _: build_model("mlp", SMALL, classify="latent"),
            "'latent': give 'intrinsic', or 'latent' for a disent",
        ),
        (
            lambda _: build_model("mlp", SMALL, reverse_attention=True),
            "which MLP lacks: choose.*reverse_attention=false",
        ),
        (lambda _: build_model("mlp", SMALL, purified={}, disentangled=True), r"or a purifier \(AToP\): choose one"),
    ],
)
def test_other_images_and_unknown_names_are_refused(call, sentence, digits):
    model = build_model("small_cnn", SMALL)
    model.check_data(digits)
    with pytest.raises(InputError, match=sentence):
        call(model)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(6, 128, 4, 4), (1, 7, 3, 5), (5, 33, 8, 8), (4, 16, 1, 1)])
def test_the_global_average_is_torchs_bit_for_bit(shape, layout):
    z = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    upstream = torch.randn(shape[:2])
    means = spatial_mean(z), z.mean((2, 3))
    assert torch.equal(*means)
    gradient, wanted = (torch.autograd.grad(pooled, z, upstream)[0] for pooled in means)
    assert torch.equal(gradient, wanted)
    assert gradient.is_contiguous(memory_format=layout), "it lies as the map does"


class Watch(nn.Module):
    """A linear model that notes how float32 products are taken whenever it is called, with gradients and without."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.seen = nn.Linear(16, 3), {True: set(), False: set()}

    def forward(self, x):
        self.seen[x.requires_grad] |= {*precisions()[:6]}
        return self.map(x.flatten(1))


def precisions():
    kinds = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    kinds += [getattr(torch.backends.mkldnn, name) for name in ("conv", "rnn", "matmul")]
    return [kind.fp32_precision for kind in (*kinds, torch.backends.cudnn, torch.backends)]


ASKED = [f"torch.backends{name}.fp32_precision = 'tf32'" for name in ("", ".cuda.matmul", ".mkldnn")]
ASKED += ["torch.backends.cudnn.fp32_precision = 'ieee'", "torch.set_float32_matmul_precision('high')"]
SWITCHED = """
import torch
from robustlib.attacks import PGD, Threat
from robustlib.data import Split
from robustlib.training.validation import validate
from tests.models.test_models import ASKED, Watch, precisions

threat = Threat("linf", 0.1)
split = Split(torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8), torch.arange(9) % 3, torch.arange(9))
for asked in ASKED:
    exec(asked)
    before, model = precisions(), Watch()
    PGD(threat, 2, early_stop=True, precision="bf16-mixed")(model, split.images / 255, split.labels)
    assert "ieee" in model.seen[False], "verdicts"
    assert model.seen[True] <= {*before}, "a search is as the user has it"
    model.seen = {True: set(), False: set()}
    validate(model, split, split, threat, 0, "32-true")
    assert model.seen == {True: {"ieee"}, False: {"ieee"}}
    assert precisions() == before, asked
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = torch.backends.mkldnn.fp32_precision = "none"
"""


def test_verdicts_and_validation_are_in_full_float32_whatever_is_switched_on():
    subprocess.run([sys.executable, "-c", SWITCHED], check=True, cwd=ROOT)  # switches are those of a process

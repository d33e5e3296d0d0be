"""Networks from elsewhere: where their logits are, which weights fit them, and what was done to them."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustlib.attacks import PGD, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.models.external import External, find_logits, fit_weights, select, unwrap
from robustlib.representation import features, layers
from robustlib.runs.factories import adapt

SPEC = SimpleNamespace(num_classes=3, image_shape=(2, 4, 4), mean=(0.5, 0.5), std=(0.2, 0.2))
LOGITS, OTHER = torch.randn(2, 3), torch.randn(2, 7)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3)
    )


class Answers(nn.Module):
    """A linear network that wraps its logits, and spoils the tensor that it is given."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.fc, self.wrap = nn.Linear(32, 3), wrap

    def forward(self, x: Tensor):
        logits = self.fc(x.flatten(1))
        x.zero_()
        return self.wrap(logits)


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (LOGITS, ""),
        ((OTHER, LOGITS), "1"),
        ([LOGITS, LOGITS], "0"),
        ({"aux": LOGITS, "logits": LOGITS}, "logits"),
        ({"scores": LOGITS, "hidden": OTHER}, "scores"),
        (SimpleNamespace(loss=None, logits=LOGITS), "logits"),
    ],
)
def test_logits_are_found_where_others_put_them(answer, output):
    assert find_logits(answer, 2, 3) == output
    assert select(answer, output) is LOGITS


def test_an_answer_without_logits_says_what_it_is_instead():
    with pytest.raises(
        InputError, match=r"No logits \(2, 3\).*a tuple of a tensor \(2, 7\), a mapping with a \(a list of \)"
    ):
        find_logits((OTHER, {"a": []}), 2, 3)
    with pytest.raises(InputError, match=r"has no 'scores': it is a mapping with logits \(a tensor \(2, 3\)\)"):
        select({"logits": LOGITS}, "scores")


@pytest.mark.parametrize(
    "wrap", [lambda z: z, lambda z: (z, z), lambda z: {"out": z}, lambda z: SimpleNamespace(logits=z)]
)
def test_a_network_answers_float32_logits_and_keeps_the_images(wrap):
    given = Answers(wrap).double()
    model, said = adapt(given, torch.rand(2, 2, 4, 4), SPEC, mean=(0.5, 0.4), std=(0.2, 0.1))
    x = torch.rand(5, 2, 4, 4)
    kept, normal = (
        x.clone(),
        (x - torch.tensor([0.5, 0.4]).view(1, 2, 1, 1)) / torch.tensor([0.2, 0.1]).view(1, 2, 1, 1),
    )
    logits = model(x)
    assert torch.equal(x, kept)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.encoder.fc(normal.flatten(1)))
    assert "Its float64 weights were converted to float32" in said[0]
    torch.testing.assert_close(model.denormalise(model.normalise(x)), x)


def test_without_normalisation_the_network_gets_a_copy_of_the_images():
    model, said = adapt(Answers(lambda z: z), torch.rand(2, 2, 4, 4), SPEC)
    x = torch.rand(5, 2, 4, 4)
    kept = x.clone()
    torch.testing.assert_close(model(x), model.encoder.fc(kept.flatten(1)))
    assert torch.equal(x, kept)
    assert said == []


def test_features_are_what_the_last_linear_layer_sees_or_what_was_named():
    examples = 8
    split = Split(
        torch.randint(0, 256, (examples, 2, 4, 4), dtype=torch.uint8),
        torch.arange(examples) % 3,
        torch.arange(examples),
    )
    own = net().eval()
    x = split.images.float() / 255
    by_default, _ = adapt(own, x, SPEC)
    torch.testing.assert_close(features(by_default, split)["features"], own[:5](x))
    torch.testing.assert_close(by_default.head(by_default.features(x)), by_default(x))
    assert layers(by_default) == (*(f"encoder.{k}" for k in range(5)), "features", "logits")
    named, _ = adapt(own, x, SPEC, layer="2")
    torch.testing.assert_close(features(named, split)["features"], own[:3](x).mean((2, 3)))
    assert not hasattr(named, "head")
    with pytest.raises(InputError, match=r"no module 'blocks.1'\. It has 0, 1, 2, 3, 4, 5"):
        adapt(own, x, SPEC, layer="blocks.1")
    attacked = features(by_default, split, attack=PGD(Threat("linf", 0.1), steps=2))
    assert not torch.equal(attacked["features"], features(by_default, split)["features"])


def test_tokens_are_averaged_over_their_positions_and_never_over_channels():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.blocks(x.flatten(1, 2))[:, 0])

    own, images = Tokens(), torch.randint(0, 256, (5, 2, 4, 4), dtype=torch.uint8)
    x = images.float() / 255
    model, _ = adapt(own, x, SPEC, layer="blocks")
    split = Split(images, torch.arange(5) % 3, torch.arange(5))
    torch.testing.assert_close(features(model, split)["features"], own.blocks(x.flatten(1, 2)).mean(1))


class Backbone(nn.Module):
    """Answers an object, as libraries of transformers do; its blocks are a list that nobody calls, and one is left aside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(2, 6, 2, 2), nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> SimpleNamespace:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return SimpleNamespace(last=self.blocks[1](self.blocks[0](tokens)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.by_position, self.classifier = Backbone(), nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> SimpleNamespace:
        tokens = self.backbone(x).last
        self.by_position(tokens.transpose(0, 1))
        return SimpleNamespace(logits=self.classifier(tokens[:, 0]))


def test_only_what_answers_images_is_listed_as_a_layer():
    images = torch.randint(0, 256, (5, 2, 4, 4), dtype=torch.uint8)
    model, _ = adapt(Transformer(), images.float() / 255, SPEC)
    inside = [f"encoder.backbone.{name}" for name in ("stem", "blocks.0", "blocks.1")]
    assert layers(model) == (*inside, "features", "logits")
    split = Split(images, torch.arange(5) % 3, torch.arange(5))
    assert all(len(table) == 5 for table in features(model, split, layers=layers(model)).layers.values())


@pytest.mark.parametrize(
    ("wrap", "label"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3}, "state_dict"),
        (lambda s: {"model": {"net": {f"module.model.{k}": v for k, v in s.items()}}}, "model/net"),
        (lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s}, "state_dict_ema"),
        (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, ""),
        (lambda s: {"ema": {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in s.items()}}, "ema"),
    ],
)
def test_weights_fit_as_people_store_them(wrap, label):
    source, target = net(), net()
    assert fit_weights(target, wrap(source.state_dict()), "w.pt") == label
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "5.bias"}, "it lacks 5.bias;"),
        (lambda s: s | {"extra": torch.zeros(1)}, "it has extra besides;"),
        (lambda s: s | {"5.weight": torch.zeros(10, 5)}, r"5.weight is \(10, 5\) there and \(3, 5\) in the network"),
        (lambda s: {"epoch": 3}, "holds no weights by name"),
        (lambda s: [1, 2], "holds no weights by name"),
    ],
)
def test_weights_that_do_not_fit_say_the_first_names(change, said):
    with pytest.raises(InputError, match=f"w.pt .*{said}"):
        fit_weights(net(), change(net().state_dict()), "w.pt")


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (nn.DataParallel, "taken out of DataParallel"),
        (lambda n: torch.compile(n, backend="eager"), "taken out of OptimizedModule"),
        (lambda n: n.half(), "float16 weights were converted"),
    ],
)
def test_wrappers_and_other_precisions_are_taken_off_and_said(wrap, said):
    inner, told = unwrap(wrap(own := net()))
    assert inner is own
    assert said in " ".join(told)
    assert all(p.dtype == torch.float32 for p in inner.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_it_stays_in_eval_mode_and_scripted_networks_answer_too():
    own = net()
    model = External(own, SPEC)
    model.train()
    assert not any(module.training for module in model.modules())
    scripted, said = adapt(torch.jit.script(net()), torch.rand(2, 2, 4, 4), SPEC)
    assert scripted(torch.rand(3, 2, 4, 4)).shape == (3, 3)
    assert "No linear layer was seen" in said[-1]
    averaged, _ = adapt(AveragedModel(net()), torch.rand(2, 2, 4, 4), SPEC)
    assert averaged.last_linear == "module.5"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"net": nn.Sequential(nn.Flatten(), nn.Linear(32, 10))}, "tells 10 classes apart, the data set has 3"),
        ({"net": nn.Linear(7, 3)}, "cannot take images of 2 x 4 x 4 .*RuntimeError.*--size"),
        ({"net": net(), "mean": (0.1, 0.2, 0.3)}, "mean=.* is not one number for each of 2 channel"),
        ({"net": net(), "std": (0.0,)}, "std=.* is not one positive number"),
        ({"net": net(), "output": "3"}, "has no '3'"),
    ],
)
def test_what_cannot_be_a_classifier_of_these_images_is_a_sentence(given, said):
    with pytest.raises(InputError, match=said):
        adapt(given.pop("net"), torch.rand(2, 2, 4, 4), SPEC, **given)

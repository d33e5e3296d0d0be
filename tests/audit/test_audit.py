"""The audit catches planted fakes, leaves an honest model in peace, and its pieces do what their formulas say."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import FGSM, PGD, ExampleRNG
from robustlib.attacks.base import SurrogateModel
from robustlib.audit import Check, audit, audit_run
from robustlib.audit.attacks import AuditAttacks, Differentiable, Head, TemperatureScaled, sources_of, surrogates_of
from robustlib.audit.audit import _most, check_published, check_selection, headline_badge, protocol_badge
from robustlib.audit.binarisation import Readouts, _readout, _surface_point, binarised, outputs
from robustlib.audit.checks import check_gap, train_mode_layers
from robustlib.audit.verdicts import Part, effect, inconsistent, make_check
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, summarise
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.rng import uniform_point
from robustlib.runs import Run, transfer_sources, write_json
from robustlib.threat import Threat
from robustlib.training import fit
from robustlib.workbook import cli
from tests.conftest import Linear

MODULE = sys.modules["robustlib.audit.audit"]  # whose name is also that of its function
SHORT = {"n": 96, "queries": 100, "noise": 50, "targets": 2, "readouts": 16}
TINY = {"n": 32, "queries": 5, "noise": 5, "targets": 1, "readouts": 8}
N = 256


def trained(dataset, attack: PGD | None, epochs: int, seed: int = 0) -> nn.Module:
    """A small CNN trained on digits, attacked at every step."""
    torch.manual_seed(seed)
    model = build_model("small_cnn", dataset)
    optimiser = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(dataset.train) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in dataset.train.batches(64, shuffle=True, generator=generator, drop_last=True):
            x = batch.x if attack is None else attack(model, batch.x, batch.y, generator=generator)
            optimiser.zero_grad()
            F.cross_entropy(model.train()(x), batch.y).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def honest(digits) -> nn.Module:
    torch.set_num_threads(1)
    return trained(digits, PGD(digits.threat, steps=5), 12)


@pytest.fixture(scope="module")
def undefended(digits) -> nn.Module:
    torch.set_num_threads(1)
    return trained(digits, None, 5)


def pgd20(model: nn.Module, dataset) -> float:
    """What a naive report would say: PGD-20 as `standard_attacks` has it, judged by one answer of the model as it stands."""
    return under(PGD(dataset.threat, steps=20, early_stop=True), model, dataset)


def under(attack: PGD, model: nn.Module, dataset, through: nn.Module | None = None) -> float:
    (batch,) = dataset.test.sample(N).batches(N)
    x_adv = attack(through or Differentiable(model), batch.x, batch.y, rng=ExampleRNG.for_examples(0, batch.index))
    with torch.no_grad():
        return 100 * float((model(x_adv).argmax(1) == batch.y).float().mean())


def fired(checks: list[Check]) -> dict[int, str]:
    return {check.number: check.meaning for check in checks if check.verdict == "red"}


# ---- planted fakes


class Fake(nn.Module):
    """A model behind something that hides its gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)


class Quantised(Fake):
    def forward(self, x: Tensor) -> Tensor:
        return self.model((4 * x).round() / 4)


class Loud(Fake):
    def forward(self, x: Tensor) -> Tensor:
        return 1e3 * self.model(x)


class Probabilities(Fake):
    def forward(self, x: Tensor) -> Tensor:
        return (30 * self.model(x)).softmax(1)


class Random(Fake):
    """A randomised input layer that nobody declared."""

    def __init__(self, model: nn.Module, noise: float = 0.25) -> None:
        super().__init__(model)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x + self.noise * torch.randn_like(x)).clamp(0, 1))


class Declared(Random):
    stochastic = True


class Read(torch.autograd.Function):
    """Adds to each class how well the image agrees with its secret code; the gradient leads to the code of the label."""

    @staticmethod
    def forward(ctx, x: Tensor, logits: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        agreement = torch.einsum("bchw,kchw->bk", x - x.mean((1, 2, 3), keepdim=True), codes)
        return logits + 100 * (agreement - 8).relu()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return -torch.einsum("bk,kchw->bchw", gradient, *ctx.saved_tensors), None, None


class Leaking(Fake):
    """Reads the true label off the perturbation that was made with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("codes", torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)).sign())

    def forward(self, x: Tensor) -> Tensor:
        return Read.apply(x, self.model(x), self.codes)


class Outside(Fake):
    """A preprocessor in numpy: autograd cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(torch.from_numpy(np.round(8 * x.detach().numpy()) / 8))


class Clamped(Fake):
    """Logits of which the clamp keeps no gradient; their order comes back where autograd does not look."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return (10 * (logits - logits.mean(1, keepdim=True))).clamp(-5, 5) + 1e-3 * logits.detach()


class InTrainMode(Fake):
    """Dropout that eval() does not reach."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.head(self.dropout(self.model.features(x)))

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.dropout.training = True
        return self


class SelfConfirming(Fake):
    """Reverse attention: the head's first guess weights the features that the head then looks at."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = self.model.head

    def features(self, x: Tensor) -> Tensor:
        return self.model.features(x)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.head(features * self.head.weight[self.head(features).argmax(1)])


@pytest.mark.filterwarnings("ignore:The model's outputs look like softmax")
@pytest.mark.parametrize(
    ("fake", "red"),
    [
        (Quantised, {7, 9}),
        (Loud, {5}),
        (Probabilities, {5, 9}),
        (Random, {12}),
        (Leaking, {1}),
        (Outside, {7, 9}),
        (Clamped, {9}),
        (InTrainMode, {12, 13}),
    ],
)
def test_planted_fakes_are_caught(digits, honest, fake, red):
    model = fake(honest).eval()
    inflated = under(FGSM(digits.threat), model, digits) if fake is Leaking else pgd20(model, digits)
    assert inflated > pgd20(honest, digits) + 3, "this fake fools nobody"
    checks = audit(model, digits.test, digits.threat, **SHORT)
    assert red <= set(fired(checks)), checks
    assert [check.number for check in checks] == list(range(1, 14))
    assert headline_badge(checks)["verdict"] == "red"


def test_a_self_confirming_head_is_caught(digits, honest):
    model = SelfConfirming(honest).eval()
    plain_head = SurrogateModel(honest, model)
    least = under(PGD(digits.threat, steps=20, early_stop=True), model, digits, plain_head)
    assert pgd20(model, digits) > least + 10, "this fake fools nobody"
    checks = audit(model, digits.test, digits.threat, **SHORT | {"n": 128})
    assert checks[5].verdict == "red", checks[5]
    assert headline_badge(checks)["verdict"] == "red"

    class Declared(SelfConfirming):
        def surrogates(self) -> dict[str, nn.Module]:
            return {"plain head": self.model}

    declared = audit(Declared(honest).eval(), digits.test, digits.threat, **SHORT | {"n": 48})
    assert not fired(declared), "the minimum over declared surrogates hides nothing"


def test_a_head_is_a_surrogate_only_where_it_says_something_else(digits, honest):
    x = next(iter(digits.test.sample(8).batches(8))).x
    odd = SelfConfirming(honest).eval()
    assert surrogates_of(honest, x) == {}
    assert set(surrogates_of(odd, x)) == {"head(features(x))"}
    odd.head = nn.Linear(3, 10)  # does not fit the features
    odd.forward = odd.model.forward
    assert surrogates_of(odd, x) == {}


def test_catastrophic_overfitting_is_caught(digits):
    """The smallest accuracy of such a model is right: what must be warned of is the number made with FGSM."""
    threat = Threat("linf", 0.3)
    model = trained(digits, FGSM(threat), 30, seed=1)
    data = replace(digits, threat=threat)
    assert under(FGSM(threat), model, data) - pgd20(model, data) > 25
    checks = audit(model, digits.test, threat, **SHORT | {"n": 128})
    assert checks[0].verdict == "amber", checks[0]
    assert "as after catastrophic overfitting" in headline_badge(checks)["text"]


def test_honest_models_are_left_in_peace(digits, honest, undefended):
    checks = audit(honest, digits.test, digits.threat, transfer={"standard": undefended}, queries=300, noise=200)
    assert not fired(checks)
    assert headline_badge(checks)["verdict"] in ("pass", "amber")
    assert not fired(audit(undefended, digits.test, digits.threat, **SHORT))


def test_a_declared_random_model_is_judged_by_expectation(digits, honest, monkeypatch):
    monkeypatch.setattr(MODULE, "EOT", 2)
    tiny = {"n": 48, "queries": 20, "noise": 20, "targets": 1, "readouts": 8}
    model = Declared(honest, 0.15).eval()
    checks = audit(model, digits.test, digits.threat, **tiny)
    assert not fired(checks)
    assert checks[11].verdict == "pass"
    assert "all of 20 draws" in checks[11].meaning
    assert checks[11].value > 0, "the worst of 20 draws under attack is worse than the worst of 20 without"
    assert 12 in fired(audit(Random(honest).eval(), digits.test, digits.threat, **tiny | {"n": 16}))


def test_a_random_models_evaluation_that_missed_what_the_audit_finds_is_not_believed(digits, undefended):
    model, split = Declared(undefended, 0.02), digits.test.sample(32)
    found = evidence(model, split, digits.threat, draws=4, eot=1)
    strong = evaluate(model, split, {"pgd": PGD(digits.threat, 50)}, draws=4)
    weak = strong.assign(prediction=strong["label"], margin=1.0)  # as if it had found nothing
    missed, fair = (check_gap(found, some) for some in (weak, strong))
    assert missed.verdict == "red"
    assert "the evaluation missed adversarial examples" in missed.meaning
    assert "missed" not in fair.meaning


def test_what_a_random_model_declares_is_left_to_the_evaluation(digits, honest):
    model = Declared(honest)
    model.surrogates = lambda: {"bare": honest}
    assert len(evidence(model, digits.test, digits.threat, n=4, draws=4, eot=2).views) == 1
    model.stochastic = False
    assert len(evidence(model, digits.test, digits.threat, n=4).views) == 2


def test_what_breaks_a_random_model_from_a_bare_view_shows_masked_gradients(digits, monkeypatch):
    class Loose(Outside):
        """No gradients, and noise that changes no answer."""

        stochastic = True

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + torch.rand(len(x), 1))

        def surrogates(self) -> dict[str, nn.Module]:
            return {"bare": self.model, "random": Declared(self.model)}

    x, y = digits.train.images.float().flatten(1) / 255, digits.train.labels
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # the nearest mean of a class
    with torch.no_grad():
        linear[1].weight.copy_(2 * means)
        linear[1].bias.copy_(-(means**2).sum(1))
    model = Loose(linear)
    assert (list(sources_of(model)), sources_of(linear)) == (["bare"], {})
    given, real = {}, AuditAttacks.__init__

    def noted(self: AuditAttacks, *arguments: object, **settings: object) -> None:
        given.update(settings)
        real(self, *arguments, **settings)

    monkeypatch.setattr(AuditAttacks, "__init__", noted)
    monkeypatch.setattr(MODULE, "EOT", 1)
    monkeypatch.setattr(MODULE, "DRAWS", 2)
    tiny = {"n": 32, "queries": 2, "noise": 2, "targets": 1, "readouts": 2}
    checks = audit(model, digits.test, digits.threat, transfer={"other": nn.Sequential(linear)}, **tiny)
    assert list(given["transfer"]) == ["bare", "other"]
    assert 7 in fired(checks)
    assert "transfer from bare alone leaves" in checks[6].meaning


def test_surrogates_answer_for_a_model_that_hides_its_gradients(digits, honest):
    class Open(Clamped):
        def surrogates(self) -> dict[str, nn.Module]:
            return {"before the clamp": self.model}

    checks = audit(Open(honest).eval(), digits.test, digits.threat, **SHORT)
    assert not {7, 8, 9} & set(fired(checks)), "the minimum over surrogates is not hidden from anyone"


def test_same_seed_same_audit(digits, honest):
    model, before = Random(honest).eval(), torch.get_rng_state()
    first, again = (audit(model, digits.test, digits.threat, **TINY | {"n": 16}) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.get_rng_state())


def test_l2_and_two_classes(digits):
    model, odd = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), replace(digits.test, labels=digits.test.labels % 2)
    checks = audit(model, odd, Threat("l2", 0.5), n=16, queries=10, noise=10, readouts=8)
    assert [check.number for check in checks] == list(range(1, 14))


# ---- pieces


def evidence(model: nn.Module, split: Split, threat: Threat, n: int = 32, **settings) -> AuditAttacks:
    usual = {"seed": 0, "queries": 5, "noise": 5, "targets": 1, "draws": 1, "eot": 1, "transfer": {}}
    return AuditAttacks(model.eval(), split.sample(n), threat, **{**usual, **settings})


def test_a_family_of_views_is_aimed_at_what_still_stands(digits, honest):
    def aimed(target: int) -> nn.Module:
        model = nn.Sequential(honest).eval()
        model.target = target
        return model

    class Sealed(Fake):
        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).detach()

        def surrogates(self) -> dict[str, nn.Module]:
            return {f"gate {label}": aimed(label) for label in range(10)}

    e = evidence(Sealed(honest), digits.test, digits.threat)
    assert (len(e.views), len(e.aimed)) == (1, 10)
    blind, white = e.accuracy(e.trajectory[100][0], e.apgd), e.accuracy(e.white)
    assert white.mean() < blind.mean() - 0.05, "only the family shows a way"
    views = {label: SurrogateModel(aimed(label), honest) for label in range(10)}
    aim = PGD(digits.threat, steps=20, early_stop=True, objective="margin", targeted=True)
    found = torch.stack([aim(v, e.x, e.y, rng=e.rng, target=torch.full_like(e.y, t)) for t, v in views.items()])
    with torch.no_grad():
        open_ = torch.stack([honest(x).argmax(1) == e.y for x in found]).all(0)
    assert (white - open_.double()).abs().mean() < 0.1, "as good as that attack without the seal"


@pytest.mark.parametrize(("broken", "mended", "n"), [(0, 0, 50), (5, 0, 100), (12, 4, 256)])
def test_effect_equals_bonett_and_price(broken, mended, n):
    weaker, stronger = torch.ones(n), torch.ones(n)
    stronger[:broken] = 0
    weaker[broken : broken + mended] = 0
    p12, p21 = (broken + 1) / (n + 2), (mended + 1) / (n + 2)
    half = 1.959964 * ((p12 + p21 - (p12 - p21) ** 2) / (n + 2)) ** 0.5
    found = effect(weaker, stronger)
    assert found.value == pytest.approx(100 * (broken - mended) / n)
    assert (found.low, found.high) == pytest.approx((100 * (p12 - p21 - half), 100 * (p12 - p21 + half)))


def test_the_gravest_broken_criterion_speaks():
    parts = [Part(1.0, 2.0, False, "a", "fine", "bad"), Part(3.0, 2.0, True, "b", "", "weak", "amber")]
    assert make_check(3, "steps", *parts).meaning == "b: weak."
    red = Part(9.004, 1.953125, True, "c", "", "wrong")
    assert make_check(3, "steps", *parts, red) == Check("steps", "red", 9.0, 1.95, "c: wrong.", 3)
    assert make_check(3, "steps", parts[0]) == Check("steps", "pass", 1.0, 2.0, "a: fine.", 3)


def test_a_check_that_passes_for_want_of_images_says_so():
    fine, unsure = Part(1.0, 2.0, False, "a", images=32), Part(3.0, 2.0, False, "b", images=32)
    checks = [make_check(2, "radii", fine), make_check(3, "steps", fine, unsure)]
    assert [check.doubtful for check in checks] == [False, True]
    text = "2 checks found no sign of a weak attack; of check 3 the images are too few to tell."
    assert headline_badge(checks) == {"verdict": "pass", "text": text}


def test_a_value_beyond_its_threshold_is_never_called_fine():
    above = Part(11.7, 8.0, False, "gap", "healthy", "bad", images=500)
    check = make_check(6, "gap", Part(1.0, 2.0, False, "a", "fine"), above)
    assert (check.verdict, check.meaning) == ("pass", "gap: above 8 points, but 500 images cannot tell.")
    below = Part(70.0, 75.0, False, "found", "", "bad", unit="%", images=64, least=True)
    assert make_check(11, "b", below).meaning == "found: below 75 %, but 64 images cannot tell."


@pytest.fixture
def at_random(digits) -> AuditAttacks:
    """The attacks on a model that answers at random."""
    found = evidence(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits.test, digits.threat)
    found.stochastic = True
    return found


def test_choosing_the_strongest_of_equal_draws_costs_nothing(at_random):
    """The least of ten means of 20 fair draws is 0.3, not 0.5: chosen and scored on the same draws, luck looks like strength."""
    draws = torch.rand(10, 2000, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    assert float(at_random.accuracy(draws).mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("weaker", [0.05, 0.2])
def test_weak_attacks_do_not_hide_a_strong_one_from_the_audit(at_random, weaker):
    """Else one strong attack beside many weak ones would seem to find more alone than all together, and check 7 would be red."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(1000, generator=generator)
    rest = share + weaker * (1 - share)
    draws = [torch.rand(1000, 20, generator=generator) < p[:, None] for p in (share, share, *[rest] * 17)]
    alone, together = at_random.accuracy(draws[0][None]), at_random.accuracy(torch.stack(draws[1:]))
    assert float((together - alone).mean()) == pytest.approx(0, abs=0.02)
    mixed = torch.stack([torch.rand(1000, 20, generator=generator) < p for p in (0.2, 0.8)])
    mixed[:, ::2] = mixed.flip(0)[:, ::2]
    assert float(at_random.accuracy(mixed).mean()) == pytest.approx(0.2, abs=0.02), "each image has its own strongest"


def fitted(attacks: AuditAttacks, output, *images: int) -> Readouts:
    return Readouts(attacks.model.model, output, *zip(*(_readout(attacks, output, i) for i in images), strict=True))


def test_readouts_have_the_adversarial_example_they_promise(digits, honest):
    found = evidence(honest, digits.test, digits.threat, n=8)
    x, rng = found.x[3:4], ExampleRNG.for_examples(1, torch.arange(50))
    readout, outer = fitted(found, outputs(honest)["features"], 3), _surface_point(found, x, 3)
    inner = uniform_point(digits.threat.scaled(0.5), x.expand(50, -1, -1, -1), rng)
    assert float(digits.threat.distance(outer, x)) <= digits.threat.eps + 1e-6
    with torch.no_grad():
        assert (readout(outer).argmax(1), readout(x).argmax(1)) == (1, 0)
        assert (readout(inner).argmax(1) == 0).double().mean() > 0.9


def test_readouts_that_are_attacked_together_say_what_each_says(digits, honest):
    found = evidence(honest, digits.test, digits.threat, n=5)
    output = outputs(honest)["features"]
    together = fitted(found, output, *range(5))(found.x)
    assert together.shape == (5, 6)
    alone = torch.stack([fitted(found, output, i)(found.x)[:, 0] for i in range(5)], 1)
    assert torch.allclose(together[:, :5], alone, atol=1e-5)
    assert bool((together[:, 5] == 0).all())


def test_binarisation_tells_a_search_from_none(digits, honest):
    seen, blind = (binarised(evidence(m, digits.test, digits.threat), 16) for m in (honest, Quantised(honest)))
    assert (set(seen), set(blind)) == ({"features", "logits"}, {"logits"}), "without features, logits are read"
    assert all(bool(test.possible.all()) for test in seen.values())
    assert all(float(test.found.double().mean()) > 0.75 for test in seen.values())
    assert float(blind["logits"].found.double().mean()) < 0.3


def test_readouts_of_a_random_model_have_their_adversarial_example_for_most_draws(digits, honest):
    model, certain = Declared(honest, 0.05).eval(), 0
    found = evidence(model, digits.test, digits.threat, n=8, draws=20, eot=2)
    for i in range(8):
        if _readout(found, outputs(model)["logits"], i) is not None:
            readout, certain = fitted(found, outputs(model)["logits"], i), certain + 1
            outer = _surface_point(found, found.x[i : i + 1], i).expand(100, -1, -1, -1)
            with torch.no_grad():
                assert readout(outer).argmax(1).double().mean() > 0.4, "it has learnt the noise of one draw"
    assert certain


def test_layers_left_in_train_mode_are_named(digits, honest):
    model = copy.deepcopy(honest)
    assert train_mode_layers(model) == []
    model.encoder.stage2[1].train()
    assert train_mode_layers(model) == ["encoder.stage2.1"]
    check = audit(model, digits.test, digits.threat, **TINY | {"n": 16})[12]
    assert check.verdict == "red"
    assert "encoder.stage2.1" in check.meaning
    assert train_mode_layers(model) == ["encoder.stage2.1"], "an audit leaves the model as it was"


def test_unfair_records_are_noticed(digits, honest):
    records = evaluate(honest, digits.test.sample(100), {"fgsm": FGSM(digits.threat)})
    assert inconsistent(records) == []
    wrong = records[(records.prediction != records.label) & (records.attack == "clean")].iloc[0]
    records.loc[(records.attack == "fgsm") & (records["index"] == wrong["index"]), "prediction"] = wrong["label"]
    assert inconsistent(records) == ["1 wrong clean images count as robust"]


@pytest.fixture(scope="module")
def records(digits, honest):
    attacks = {"pgd20": PGD(digits.threat, steps=20), "autoattack": PGD(digits.threat, steps=20, objective="margin")}
    return evaluate(honest, digits.test.sample(100), attacks)


def test_records_are_joined_by_image(digits, honest, records):
    """Images that an attack has not met are said to be missing; the gap is that of the others."""
    assert audit(honest, digits.test, digits.threat, records=records, **TINY)[12].verdict == "pass"
    auto, order = records.attack == "autoattack", records["index"].unique()
    records = records.copy()
    records.loc[auto & records["index"].isin(order[20:80]), "prediction"] = -1  # far stronger than PGD-20
    kept = records[~(auto & records["index"].isin(order[:7]))].sample(frac=1, random_state=0)
    checks = audit(honest, digits.test, digits.threat, records=kept, **TINY)
    assert checks[12].verdict == "red"
    assert "same images" in checks[12].meaning
    left = records[~records["index"].isin(order[:7])]
    right = (left.prediction == left.label).groupby([left.attack, left["index"]]).min()
    gap = 100 * float(right["pgd20"].mean() - right["autoattack"].mean())
    assert (checks[5].value, checks[5].verdict) == (pytest.approx(gap, abs=0.01), "red")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda r: r.assign(eps=r.eps / 2), "eps 0.1 and not 0.2"),
        (lambda r: r.assign(index=r["index"] + 100_000), "100 images that are not among"),
        (lambda r: r.assign(label=(r.label + 1) % 10), "100 images that are not among"),
    ],
)
def test_records_of_something_else_are_not_used(digits, honest, records, changed, said):
    checks = audit(honest, digits.test, digits.threat, records=changed(records), **TINY)
    assert checks[12].verdict == "red"
    assert said in checks[12].meaning
    assert "APGD and Square" in checks[5].meaning, "the gap is that of the audit's own attacks"


def test_an_evaluation_that_missed_examples_is_noticed(digits, undefended):
    """One step of a hundredth of eps reports what no attack of the audit leaves."""
    weak = PGD(digits.threat, steps=1, step_size=0.002, start="zero")
    records = evaluate(undefended, digits.test.sample(64), {"weak": weak})
    checks = audit(undefended, digits.test, digits.threat, records=records, **TINY | {"n": 64})
    assert checks[5].verdict == "red"
    assert "evaluation missed" in checks[5].meaning


def test_a_model_without_answers_is_never_robust(digits):
    checks = audit(
        Linear(10, (1, 8, 8), scale=float("nan")), digits.test, digits.threat, n=16, queries=5, noise=5, readouts=8
    )
    assert {9, 10} <= set(fired(checks))


def test_nothing_to_audit(digits, honest):
    with pytest.raises(InputError, match="eps=0"):
        audit(honest, digits.test, Threat("linf", 0.0))
    with pytest.raises(InputError, match="at least 2 classes"):
        audit(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), digits.test, digits.threat, n=16)
    with pytest.raises(InputError, match="no example"):
        audit(honest, digits.test.select(torch.zeros(0, dtype=torch.int64)), digits.threat)


# ---- runs


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Run:
    """A barely trained run with an evaluation of 40 images, and a source of transferred examples beside it."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("standard", "pgd_at"):
        made = fit(make_method(name, "digits", epochs=2, train_examples=400), digits, root=root)
    attacks = {"fgsm": FGSM(digits.threat), "pgd20": PGD(digits.threat, steps=20, early_stop=True)}
    records = evaluate(made.model(), digits.test.sample(40), attacks)
    made.write_frame("records.parquet", records.assign(checkpoint="best"))
    rows = summarise(records).to_dict("records")
    facts = {"n": 40, "seed": 0, "split": "test", "checkpoint": "best", "numerics": {}, "threat": str(digits.threat)}
    write_json(made.path / "results.json", {**facts, "rows": rows, "last": {"rows": rows}})
    return made


def test_a_run_keeps_its_audit(run, digits, monkeypatch, capsys):
    found = audit_run(run, digits, n=16, device="cpu")
    assert [check["number"] for check in found["checks"]] == list(range(1, 16))
    assert ({"headline", "protocol"}, found["results"]["n"]) == (set(found["badges"]), 40)
    assert len(found["transfer"]) == 1
    assert json.loads((run.path / "audit.json").read_text()) == run.audit() == json.loads(json.dumps(found))
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "audit", None)  # a stored one is shown, not repeated
        assert audit_run(run, digits, n=16, device="cpu") == found
        with pytest.raises(TypeError):
            audit_run(run, digits, n=17, device="cpu")
        monkeypatch.setattr(cli.out, "width", 250)
        cli.app(["audit", str(run.path), "--examples", "16", "--device", "cpu"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("15. selection", "headline:", "protocol:"))


@pytest.mark.parametrize(
    ("stochastic", "preset", "asked", "n"),
    [
        (False, "digits", None, 256),
        (False, "digits", 500, 500),
        (True, "digits", None, 32),
        (True, "digits", 500, 32),
        (True, "digits", 8, 8),
        (True, None, None, 128),
    ],
)
def test_an_audit_of_a_random_model_stays_within_the_budget_of_its_preset(stochastic, preset, asked, n):
    assert (_most(stochastic, preset, asked, 500), _most(stochastic, preset, None, 5)) == (n, 5)


def test_a_run_is_never_its_own_source(run, monkeypatch, tmp_path):
    monkeypatch.chdir(run.path.parent)
    here = Run(Path(run.path.name))
    both = ("standard", "pgd_at")
    assert set(transfer_sources(here, both)) == {"standard"}
    assert transfer_sources(here, both) == transfer_sources(run, both)
    monkeypatch.setattr(Path, "resolve", lambda path: Path("/run"))
    assert transfer_sources(here, both) == {}


def test_a_run_without_evaluation_is_refused(run, digits, tmp_path):
    bare = Run(tmp_path / "digits" / "standard" / "x")
    write_json(bare.path / "params.json", run.params())
    with pytest.raises(InputError, match="robustlib evaluate"):
        audit_run(bare, digits)


@pytest.mark.parametrize(("worst", "verdict"), [(0.50, "pass"), (0.46, "amber"), (0.30, "red")])
def test_protocol_badge_says_what_the_paper_overstates(worst, verdict):
    rows = [{"attack": "pgd20", "accuracy": 0.51}, {"attack": "worst", "accuracy": worst}]
    badge = protocol_badge("trades", {"rows": rows})
    assert (badge["verdict"], badge["overstates"]) == (verdict, pytest.approx(51 - 100 * worst))
    assert f"{51 - 100 * worst:.1f} points" in badge["text"]
    says = {"ancra": "The evaluation has no AutoAttack, the paper's", "rep_spectral": "reports no accuracy under"}
    for name, text in says.items():
        badge = protocol_badge(name, {"rows": rows})
        assert badge["verdict"] == "n/a"
        assert text in badge["text"]


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.48, "pass"), (0.515, "pass"), (0.60, "amber")])
def test_published_window(accuracy, verdict, tmp_path):
    facts = {"dataset": "cifar10", "arch": "resnet18", "method": "pgd_at", "preset": "cifar10-paper"}
    run = Run(tmp_path)
    row = {"attack": "autoattack", "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
    for changes, expected in (({}, verdict), ({"epochs": 3}, "n/a")):
        write_json(run.path / "params.json", facts | {"changes": changes})
        assert check_published(run, {"rows": [row]}).verdict == expected


def test_selection_needs_both_epochs(run):
    for changed, verdict in (({}, "pass"), ({"last": {}}, "red"), ({"split": "train"}, "red")):
        assert check_selection(run, run.results() | changed).verdict == verdict


def test_what_stands_around_a_model_is_as_random_and_shares_its_batches():
    """Else every EOT gradient of the audit would cost a pass for each of its draws."""
    plain = nn.Linear(2, 2)
    around = [Differentiable, Head, lambda m: TemperatureScaled(m, 2.0)]
    around += [lambda m: Readouts(m, m, [torch.ones(2)], [torch.ones(())])]
    for said in ((True, True), (True, False), (False, True)):
        plain.stochastic, plain.draws_by_example = said
        assert {(a.stochastic, a.draws_by_example) for a in (wrap(plain) for wrap in around)} == {said}
    assert not Differentiable(nn.Linear(2, 2)).draws_by_example, "or each draw is asked by itself"

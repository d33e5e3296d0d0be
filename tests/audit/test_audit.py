"""The audit catches planted fakes, leaves an honest model in peace, and its pieces do what their formulas say."""

import copy
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import FGSM, PGD, ExampleRNG
from robustlib.attacks.base import SurrogateModel
from robustlib.audit import Check, audit, audit_has_new_sources, audit_run
from robustlib.audit.attacks import AuditAttacks, View, scaled, sources_of, surrogates_of
from robustlib.audit.audit import check_gap, check_published, check_selection, headline_badge, protocol_badge
from robustlib.audit.binarisation import binarised, fit_readout, joint_view, outputs, surface_point
from robustlib.audit.checks import CHECKS, Part, check_iterations, effect, make_check
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


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    standard = make_method("standard", "digits", arch="mlp_512", epochs=5)
    methods = standard, make_method("pgd_at", "digits", arch="mlp_512", epochs=20, attack_steps=5)
    return {method.name: fit(method, few, root=root, device="cpu", progress=False) for method in methods}


@pytest.fixture(scope="module")
def honest(runs) -> nn.Module:
    return runs["pgd_at"].model()


@pytest.fixture(scope="module")
def undefended(runs) -> nn.Module:
    return runs["standard"].model()


def under(model: nn.Module, dataset, attack: PGD | None = None, through: nn.Module | None = None) -> float:
    """Accuracy in %, judged by one answer of the model as it stands; a naive report would take PGD-20."""
    (batch,) = dataset.test.sample(256).batches(256)
    attack = attack or PGD(dataset.threat, steps=20, early_stop=True)
    x_adv = attack(through or View(model), batch.x, batch.y, rng=ExampleRNG.for_examples(0, batch.index))
    with torch.no_grad():
        return 100 * float((model(x_adv).argmax(1) == batch.y).float().mean())


def audited(model: nn.Module, dataset, **settings) -> list[Check]:
    return audit(model, dataset.test, dataset.threat, **{**SHORT, **settings})


def audit_attacks(model: nn.Module, dataset, n: int = 32, **settings) -> AuditAttacks:
    usual = {"seed": 0, "queries": 5, "noise": 5, "targets": 1, "readouts": 16, "draws": 1, "eot": 1, "transfer": {}}
    return AuditAttacks(model.eval(), dataset.test.sample(n), dataset.threat, **{**usual, **settings})


def fired(checks: list[Check]) -> dict[int, str]:
    return {check.number: check.meaning for check in checks if check.verdict == "red"}


class Fake(nn.Module):
    def __init__(self, model: nn.Module, answer=nn.Module.__call__, **declared) -> None:
        super().__init__()
        self.model, self.answer = copy.deepcopy(model), answer
        vars(self).update(declared)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.model, x)


def noisy(model: nn.Module, noise: float = 0.25, **declared) -> Fake:
    return Fake(model, lambda m, x: m((x + noise * torch.randn_like(x)).clamp(0, 1)), **declared).eval()


def outside(model: nn.Module, x: Tensor) -> Tensor:
    """A preprocessor in numpy: autograd cannot follow."""
    return model(torch.from_numpy(np.round(8 * x.detach().numpy()) / 8))


def clamped(model: nn.Module, x: Tensor) -> Tensor:
    """Logits of which the clamp keeps no gradient; their order comes back where autograd does not look."""
    logits = model(x)
    return (10 * (logits - logits.mean(1, keepdim=True))).clamp(-5, 5) + 1e-3 * logits.detach()


def quantised(model: nn.Module, x: Tensor) -> Tensor:
    return model((4 * x).round() / 4)


CODES = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)).sign()


def leaking(model: nn.Module, x: Tensor) -> Tensor:
    """Rewards agreement with a secret code of each class; the gradient leads an attack to the code of the label."""
    agreement = torch.einsum("bchw,kchw->bk", x - x.mean((1, 2, 3), keepdim=True), CODES)
    return (model(x) + 100 * (agreement - 8).relu() + agreement).detach() - agreement


class InTrainMode(Fake):
    """Dropout that eval() does not reach."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lambda m, x: m.head(self.dropout.train()(m.features(x))))
        self.dropout = nn.Dropout(0.7)


def self_confirming(model: nn.Module, **declared) -> Fake:
    """Reverse attention: the head's first guess weights the features that the head then looks at."""

    def guided(m: nn.Module, x: Tensor) -> Tensor:
        features = m.features(x)
        return m.head(features * m.head.weight[m.head(features).argmax(1)])

    fake = Fake(model, guided, **declared).eval()
    fake.head, fake.features = fake.model.head, fake.model.features
    return fake


@pytest.mark.filterwarnings("ignore:The model's outputs look like softmax")
@pytest.mark.parametrize(
    ("fake", "reds"),
    [
        (lambda model: Fake(model, quantised), ["black_box", "gradients"]),
        (lambda model: Fake(model, lambda m, x: 1e3 * m(x)), ["losses"]),
        (lambda model: Fake(model, lambda m, x: (30 * m(x)).softmax(1)), ["losses", "gradients"]),
        (noisy, ["randomness"]),
        (lambda model: Fake(model, leaking), ["iterations"]),
        (lambda model: Fake(model, outside), ["gradients"]),
        (lambda model: Fake(model, clamped), ["gradients"]),
        (InTrainMode, ["randomness"]),
    ],
    ids=["quantised", "loud", "probabilities", "random", "leaking", "outside", "clamped", "in train mode"],
)
def test_planted_fakes_are_caught(digits, honest, fake, reds):
    model = fake(honest).eval()
    inflated = under(model, digits, FGSM(digits.threat) if "iterations" in reds else None)
    assert inflated > under(honest, digits) + 3, "this fake deceives nobody"
    attacks = audit_attacks(model, digits, n=96, queries=100, targets=2)
    found = [check(attacks) for check in CHECKS if check.__name__.removeprefix("check_") in reds]
    assert [check.verdict for check in found] == ["red"] * len(reds), found


def test_a_self_confirming_head_is_caught(digits, few, tmp_path):
    method = make_method("pgd_at", "digits", epochs=6, attack_steps=3)  # a CNN, whose features are not negative
    honest = fit(method, few, root=tmp_path, device="cpu", progress=False).model()
    model = self_confirming(honest)
    least = under(model, digits, through=SurrogateModel(honest, model))
    assert under(model, digits) > least + 10, "this fake deceives nobody"
    assert check_gap(audit_attacks(model, digits, n=64), None).verdict == "red"
    declared = self_confirming(honest, surrogates=lambda: {"plain head": honest})
    assert not fired(audited(declared, digits, **TINY)), "the minimum over declared surrogates hides nothing"


def test_a_head_is_a_surrogate_only_where_it_says_something_else(digits, honest):
    x, odd = digits.test.images[:8] / 255, self_confirming(honest)
    assert ([*surrogates_of(honest, x)], [*surrogates_of(odd, x)]) == ([], ["head(features(x))"])
    odd.head = nn.Linear(3, 10)  # does not fit the features
    odd.forward = odd.model.forward
    assert surrogates_of(odd, x) == {}


def test_catastrophic_overfitting_is_caught(few, tmp_path):
    """The smallest accuracy of such a model is right: what must be warned of is the number made with FGSM."""
    steady = {"schedule": "constant", "lr": 0.05, "weight_decay": 0.0, "epochs": 60, "validate_every": 60}
    method = make_method("n_fgsm", "digits", noise=0.0, eps=0.3, arch="mlp_512", **steady)
    model = fit(method, few, root=tmp_path, device="cpu", progress=False).model("last")
    check = check_iterations(audit_attacks(model, replace(few, threat=Threat("linf", 0.3)), n=500))
    assert check.verdict == "amber", check
    assert "as after catastrophic overfitting" in headline_badge([check])["text"]


def test_honest_models_are_left_in_peace(digits, honest, undefended):
    settings = {"n": 192, "queries": 200, "noise": 100, "targets": 4, "readouts": 32}
    checks = audited(honest, digits, transfer={"standard": undefended}, **settings)
    assert not fired(checks)
    assert headline_badge(checks)["verdict"] in ("pass", "amber")
    assert not fired(audited(undefended, digits))


def test_a_declared_random_model_is_judged_by_expectation(digits, honest, monkeypatch):
    monkeypatch.setattr(MODULE, "EOT", 2)
    checks = audited(noisy(honest, 0.15, stochastic=True), digits, **TINY)
    assert (fired(checks), checks[11].verdict, "all of 20 draws" in checks[11].meaning) == ({}, "pass", True)
    assert checks[11].value > 0, "the worst of 20 draws under attack is worse than the worst of 20 without"


def test_a_random_models_evaluation_that_missed_what_the_audit_finds_is_not_believed(digits, undefended):
    model = noisy(undefended, 0.02, stochastic=True)
    attacks = audit_attacks(model, digits, draws=4)
    strong = evaluate(model, digits.test.sample(32), {"pgd": PGD(digits.threat, 50)}, draws=4)
    weak = strong.assign(prediction=strong["label"], margin=1.0)  # as if it had no success
    missed, fair = (check_gap(attacks, some) for some in (weak, strong))
    assert (missed.verdict, "missed" in fair.meaning) == ("red", False)
    assert "the evaluation missed adversarial examples" in missed.meaning


def test_what_a_random_model_declares_is_left_to_the_evaluation(digits, honest):
    for stochastic, views in ((True, 1), (False, 2)):
        model = noisy(honest, stochastic=stochastic, surrogates=lambda: {"bare": honest})
        assert len(audit_attacks(model, digits, n=4, draws=4, eot=2).views) == views


def test_what_breaks_a_random_model_from_a_bare_view_shows_masked_gradients(digits, honest, monkeypatch):
    def loose(m: nn.Module, x: Tensor) -> Tensor:
        """No gradients, and noise that changes no answer."""
        return outside(m, x) * (1 + torch.rand(len(x), 1))

    views = {"bare": honest, "random": noisy(honest, stochastic=True)}
    model = Fake(honest, loose, stochastic=True, surrogates=lambda: views)
    assert (list(sources_of(model)), sources_of(honest)) == (["bare"], {})
    monkeypatch.setattr(MODULE, "EOT", 1)
    monkeypatch.setattr(MODULE, "DRAWS", 2)
    given = {}
    monkeypatch.setattr(MODULE, "AuditAttacks", lambda *a, **k: given.update(k) or AuditAttacks(*a, **k))
    checks = audited(model, digits, transfer={"other": nn.Sequential(honest)}, **TINY)
    assert list(given["transfer"]) == ["bare", "other"]
    assert "transfer from bare alone leaves" in fired(checks)[7]


def test_surrogates_answer_for_a_model_that_hides_its_gradients(digits, honest):
    model = Fake(honest, clamped, surrogates=lambda: {"before the clamp": honest}).eval()
    checks = audited(model, digits, n=64, queries=50, targets=1, readouts=8)
    assert not {7, 8, 9} & set(fired(checks)), "the minimum over surrogates is not hidden from anyone"


def test_a_black_box_shows_the_deployed_model_alone(digits, honest):
    asked = []
    surrogate = Fake(honest, lambda m, x: (asked.append(len(x)), m(x))[1])
    e = audit_attacks(Fake(honest, clamped, surrogates=lambda: {"before the clamp": surrogate}), digits, n=8)
    asked.clear()
    assert (len(e.views), len(e.square), asked) == (2, 1, [])


def test_l2_and_two_classes(digits):
    model, odd = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), replace(digits.test, labels=digits.test.labels % 2)
    checks = audit(model, odd, Threat("l2", 0.5), n=16, queries=10, noise=10, readouts=8)
    assert [check.number for check in checks] == list(range(1, 14))


def test_a_family_of_views_is_aimed_at_what_still_stands(digits, honest):
    gates = {f"gate {label}": Fake(honest, target=label).eval() for label in range(10)}
    e = audit_attacks(Fake(honest, lambda m, x: m(x).detach(), surrogates=lambda: gates), digits)
    assert (len(e.views), len(e.aimed)) == (1, 10)
    blind, white = e.accuracy(e.trajectory[100][0], e.apgd), e.accuracy(e.white)
    assert white.mean() < blind.mean() - 0.05, "only the family shows a way"
    aim = PGD(digits.threat, steps=20, early_stop=True, objective="margin", targeted=True)
    classes = [torch.full_like(e.y, label) for label in range(10)]
    images = [aim(honest, e.x, e.y, rng=e.rng, target=target) for target in classes]
    with torch.no_grad():
        unsealed = torch.stack([honest(x).argmax(1) == e.y for x in images]).all(0)
    assert (white - unsealed.double()).abs().mean() < 0.1, "as good as that attack without the seal"


@pytest.mark.parametrize(("broken", "mended", "n"), [(0, 0, 50), (5, 0, 100), (12, 4, 256)])
def test_effect_equals_bonett_and_price(broken, mended, n):
    weaker, stronger = torch.ones(n), torch.ones(n)
    stronger[:broken] = 0
    weaker[broken : broken + mended] = 0
    p12, p21 = (broken + 1) / (n + 2), (mended + 1) / (n + 2)
    half = 1.959964 * ((p12 + p21 - (p12 - p21) ** 2) / (n + 2)) ** 0.5
    expected = (broken - mended) / n, p12 - p21 - half, p12 - p21 + half
    gap = effect(weaker, stronger)
    assert (gap.value, gap.low, gap.high) == pytest.approx([100 * value for value in expected])


FINE, WEAK = Part(1.0, 2.0, False, "a", "fine", "bad", images=32), Part(3.0, 2.0, True, "b", "", "weak", "amber")
UNSURE, FEW = Part(11.7, 8.0, False, "gap", "healthy", "bad", images=64), "but 64 images cannot tell"
BELOW = Part(70.0, 75.0, False, "hits", "", "bad", unit="%", images=64, least=True)


@pytest.mark.parametrize(
    ("parts", "check"),
    [
        ([FINE], Check("steps", "pass", 1.0, 2.0, "a: fine.", 3)),
        ([FINE, WEAK], Check("steps", "amber", 3.0, 2.0, "b: weak.", 3)),
        ([FINE, WEAK, Part(9.004, 1.953125, True, "c", "", "wrong")], Check("steps", "red", 9.0, 1.95, "c: wrong.", 3)),
        ([FINE, UNSURE], Check("steps", "pass", 11.7, 8.0, f"gap: above 8 points, {FEW}.", 3, doubtful=True)),
        ([BELOW], Check("steps", "pass", 70.0, 75.0, f"hits: below 75 %, {FEW}.", 3, "%", True)),
        ([], Check("steps", "n/a", None, None, "nothing to compare", 3)),
    ],
)
def test_the_gravest_criterion_speaks_and_none_beyond_its_threshold_is_called_fine(parts, check):
    assert make_check(3, "steps", *parts, otherwise="nothing to compare") == check


def test_a_badge_says_which_checks_pass_for_want_of_images():
    badge = headline_badge([make_check(2, "radii", FINE), make_check(3, "steps", FINE, UNSURE)])
    text = "2 checks found no sign of a weak attack; of check 3 the images are too few to tell."
    assert badge == {"verdict": "pass", "text": text}


@pytest.mark.parametrize("weaker", [0.05, 0.2])
def test_luck_is_no_strength_and_weak_attacks_hide_no_strong_one(digits, weaker):
    """Else one strong attack beside many weak ones would seem to find more alone than all together, and check 7 would be red."""
    e = audit_attacks(Linear(10, (1, 8, 8)), digits, n=2)
    e.stochastic = True
    generator = torch.Generator().manual_seed(0)
    fair = torch.rand(10, 2000, 20, generator=generator) < 0.5
    assert float(e.accuracy(fair).mean()) == pytest.approx(0.5, abs=0.01), "the least of ten means is 0.3"
    share = torch.rand(1000, generator=generator)
    rest = share + weaker * (1 - share)
    draws = [torch.rand(1000, 20, generator=generator) < p[:, None] for p in (share, share, *[rest] * 17)]
    alone, together = e.accuracy(draws[0][None]), e.accuracy(torch.stack(draws[1:]))
    assert float((together - alone).mean()) == pytest.approx(0, abs=0.02)
    mixed = torch.stack([torch.rand(1000, 20, generator=generator) < p for p in (0.2, 0.8)])
    mixed[:, ::2] = mixed.flip(0)[:, ::2]
    assert float(e.accuracy(mixed).mean()) == pytest.approx(0.2, abs=0.02), "each image has its own strongest"


def readouts_of(attacks: AuditAttacks, output, *images: int) -> View:
    return joint_view(attacks.deployed, output, [fit_readout(attacks, output, i) for i in images])


def test_readouts_have_the_adversarial_example_they_promise_and_say_together_what_each_says(digits, honest):
    attacks, output = audit_attacks(honest, digits, n=8), outputs(honest)["features"]
    x, rng = attacks.x[3:4], ExampleRNG.for_examples(1, torch.arange(50))
    readout, outer = readouts_of(attacks, output, 3), surface_point(attacks, 3)
    inner = uniform_point(digits.threat.scaled(0.5), x.expand(50, -1, -1, -1), rng)
    assert float(digits.threat.distance(outer, x)) <= digits.threat.eps + 1e-6
    with torch.no_grad():
        assert (readout(outer).argmax(1), readout(x).argmax(1)) == (1, 0)
        assert (readout(inner).argmax(1) == 0).double().mean() > 0.9
        together = readouts_of(attacks, output, *range(5))(attacks.x)
        alone = torch.stack([readouts_of(attacks, output, i)(attacks.x)[:, 0] for i in range(5)], 1)
    assert torch.allclose(together, F.pad(alone, (0, 1)), atol=1e-5)


def test_binarisation_tells_a_search_from_none(digits, honest):
    seen, blind = (binarised(audit_attacks(m, digits)) for m in (honest, Fake(honest, quantised)))
    assert (set(seen), set(blind)) == ({"features", "logits"}, {"logits"}), "without features, logits are read"
    assert all(bool(possible.all()) for possible, _ in seen.values())
    assert all(float(success_mask.double().mean()) > 0.75 for _, success_mask in seen.values())
    assert float(blind["logits"][1].double().mean()) < 0.3


def test_readouts_of_a_random_model_have_their_adversarial_example_for_most_draws(digits, honest):
    attacks = audit_attacks(noisy(honest, 0.05, stochastic=True), digits, n=8, draws=20, eot=2)
    output = outputs(attacks.deployed)["logits"]
    certain = {i: readout for i in range(8) if (readout := fit_readout(attacks, output, i)) is not None}
    assert certain
    for i, readout in certain.items():
        outer = surface_point(attacks, i).expand(100, -1, -1, -1)
        with torch.no_grad():
            share = joint_view(attacks.deployed, output, [readout])(outer).argmax(1).double().mean()
        assert share > 0.4, "it has learnt the noise of one draw"


def test_layers_in_train_mode_are_named(digits):
    model = InTrainMode(build_model("small_cnn", digits).eval())
    layer = model.model.encoder.stage2[1].train()
    checks = audited(model, digits, **TINY | {"n": 16})
    assert ([check.number for check in checks], headline_badge(checks)["verdict"]) == ([*range(1, 14)], "red")
    said = fired(checks)[13]
    assert ("(model.encoder.stage2.1)" in said, "stay in train mode after eval() (dropout)" in said) == (True, True)
    assert layer.training, "an audit leaves the model as it was"


@pytest.fixture(scope="module")
def records(digits, honest):
    attacks = {"pgd20": PGD(digits.threat, steps=20), "autoattack": PGD(digits.threat, steps=20, objective="margin")}
    return evaluate(honest, digits.test.sample(100), attacks)


def test_unfair_records_are_noticed(records):
    wrong = records[(records.prediction != records.label) & (records.attack == "clean")].iloc[0]
    robust = (records.attack == "pgd20") & (records["index"] == wrong["index"])
    records = records.assign(prediction=records.prediction.mask(robust, wrong["label"]))
    assert MODULE.inconsistent(records) == ["1 wrong clean images count as robust"]


def test_records_are_joined_by_image(digits, honest, records):
    """Images that an attack has not met are said to be missing; the gap is that of the others."""
    auto, order = records.attack == "autoattack", records["index"].unique()
    records = records.copy()
    records.loc[auto & records["index"].isin(order[20:80]), "prediction"] = -1  # far stronger than PGD-20
    kept = records[~(auto & records["index"].isin(order[:7]))].sample(frac=1, random_state=0)
    checks = audited(honest, digits, records=kept, **TINY)
    assert "same images" in fired(checks)[13]
    both = records[~records["index"].isin(order[:7])]
    right = (both.prediction == both.label).groupby([both.attack, both["index"]]).min()
    gap = 100 * float(right["pgd20"].mean() - right["autoattack"].mean())
    assert (checks[5].value, checks[5].verdict) == (pytest.approx(gap, abs=0.01), "red")
    assert checks[5].meaning.startswith("PGD-20 leaves "), "the evaluation's own"


def test_records_of_something_else_are_not_used(digits, honest, records):
    for other in ({"index": records["index"] + 100_000}, {"label": (records.label + 1) % 10}):
        (said,) = MODULE.mismatched(records.assign(**other), digits.test, digits.threat)
        assert "100 images that are not among" in said
    checks = audited(honest, digits, records=records.assign(eps=records.eps / 2), **TINY)
    assert "eps 0.1 and not 0.2" in fired(checks)[13]
    assert "APGD and Square" in checks[5].meaning, "the gap is that of the audit's own attacks"
    own = {check.number for check in checks if "the audit's own start" in check.meaning}
    assert {1, 3, 5, 6} <= own, "the evaluation's PGD has another start, and so another number beside it"
    assert "random starts of the audit leave" in checks[3].meaning


def test_an_evaluation_that_missed_examples_is_noticed(digits, undefended):
    """One step of a hundredth of eps reports what no attack of the audit leaves."""
    weak = PGD(digits.threat, steps=1, step_size=0.002, start="zero")
    records = evaluate(undefended, digits.test.sample(64), {"weak": weak})
    assert "evaluation missed" in fired(audited(undefended, digits, records=records, **TINY | {"n": 64}))[6]


def test_a_model_without_answers_is_never_robust(digits):
    assert {9, 10} <= set(fired(audited(Linear(10, (1, 8, 8), scale=float("nan")), digits, **TINY | {"n": 16})))


def test_nothing_to_audit(digits):
    few, none, eps = digits.test.sample(16), digits.test.select(torch.arange(0)), digits.threat
    cases = (10, few, Threat("linf", 0.0), "eps=0"), (1, few, eps, "at least 2 classes"), (10, none, eps, "no example")
    for classes, split, threat, said in cases:
        with pytest.raises(InputError, match=said):
            audit(Linear(classes, (1, 8, 8)), split, threat)


@pytest.fixture(scope="module")
def run(runs, records) -> Run:
    """An evaluated run, with a source of transferred examples beside it."""
    run, rows = runs["pgd_at"], summarise(records).to_dict("records")
    run.write_frame("records.parquet", records.assign(checkpoint="best"))
    facts = {"n": 100, "split": "test", "threat": "Linf 0.2", "checkpoint": "best"}
    write_json(run.path / "results.json", facts | {"rows": rows, "last": {"rows": rows}})
    return run


def test_a_run_keeps_its_audit(run, digits, monkeypatch, capsys):
    monkeypatch.setattr(MODULE, "audit", partial(audit, **TINY))
    stored = audit_run(run, digits, n=16, device="cpu")
    assert [check["number"] for check in stored["checks"]] == list(range(1, 16))
    assert ([*stored["badges"]], stored["results"]["n"], len(stored["transfer"])) == (["headline", "protocol"], 100, 1)
    assert stored["checks"][12]["verdict"] == "pass", "these records are fair"
    assert run.audit() == json.loads(json.dumps(stored))
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "audit", None)  # a stored one is shown, not repeated
        assert audit_run(run, digits, n=16, device="cpu") == stored
        with pytest.raises(TypeError):
            audit_run(run, digits, n=17, device="cpu")
        monkeypatch.setattr(cli.out, "width", 250)
        cli.app(["audit", str(run.path), "--examples", "16", "--device", "cpu"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("15. selection", "headline:", "protocol:"))


def test_an_audit_is_renewed_when_other_runs_could_have_attacked(run, tmp_path, monkeypatch):
    alone = Run(shutil.copytree(run.path, tmp_path / run.place))
    write_json(alone.path / "audit.json", {"transfer": []})
    assert not audit_has_new_sources(alone), "nobody stands beside it"
    standard = transfer_sources(run, ["standard"])["standard"]
    shutil.copytree(standard.path, tmp_path / standard.place)
    assert audit_has_new_sources(alone)
    write_json(alone.path / "audit.json", {"transfer": [standard.place]})
    assert not audit_has_new_sources(alone)
    beside = Run(tmp_path / standard.place)
    known = beside.status()["files"]["model.safetensors"]
    for digest, new in ((known, False), ("0" * 16, True)):
        write_json(alone.path / "audit.json", {"transfer": {standard.place: digest}})
        assert audit_has_new_sources(alone) == new, "trained again, it is another source"
    (beside.path / "status.json").write_text('{"state": "done"}')
    assert audit_has_new_sources(alone), "an older training of it"
    shutil.rmtree(tmp_path / standard.place)
    assert not audit_has_new_sources(alone), "what was tried stays tried"
    (alone.path / "audit.json").unlink()
    assert not audit_has_new_sources(alone)


@pytest.mark.parametrize(
    ("stochastic", "preset", "expected"),
    [(False, "digits", [256, 500, 8]), (True, "digits", [32, 32, 8]), (True, None, [128, 128, 8])],
)
def test_an_audit_of_a_random_model_stays_within_the_budget_of_its_preset(stochastic, preset, expected):
    assert [MODULE._most(stochastic, preset, asked, 500) for asked in (None, 500, 8)] == expected
    assert MODULE._most(stochastic, preset, None, 5) == 5


def test_a_run_is_never_its_own_source(run, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    relative, both = Run(Path(run.path.name)), ("standard", "pgd_at")
    assert set(transfer_sources(relative, both)) == {"standard"}
    assert transfer_sources(relative, both) == transfer_sources(run, both)
    monkeypatch.setattr(Path, "resolve", lambda path: Path("/run"))
    assert transfer_sources(relative, both) == {}


def test_a_run_without_evaluation_is_refused(run, digits, tmp_path):
    bare = Run.of(run.params(), tmp_path)
    write_json(bare.path / "params.json", run.params())
    with pytest.raises(InputError, match="robustlib evaluate"):
        audit_run(bare, digits)


@pytest.mark.parametrize(
    ("method", "worst", "verdict", "said"),
    [
        ("trades", 0.50, "pass", "1.0 points"),
        ("trades", 0.46, "amber", "5.0 points"),
        ("trades", 0.30, "red", "21.0 points"),
        ("ancra", 0.50, "n/a", "The evaluation has no AutoAttack, the paper's"),
        ("rep_spectral", 0.50, "n/a", "reports no accuracy under"),
    ],
)
def test_protocol_badge_says_what_the_paper_overstates(method, worst, verdict, said):
    rows = [{"attack": "pgd20", "accuracy": 0.51}, {"attack": "worst", "accuracy": worst}]
    badge = protocol_badge({"method": method}, {"rows": rows})
    overstates = None if verdict == "n/a" else pytest.approx(51 - 100 * worst)
    assert (badge["verdict"], badge["overstates"], said in badge["text"]) == (verdict, overstates, True)


def test_no_paper_is_named_for_a_network_from_elsewhere():
    params, rows = {"method": "ours", "external": {}}, [{"attack": "autoattack", "accuracy": 0.5}]
    lacks, told = (protocol_badge(params, {"rows": [*rows, *more]}) for more in ([], [{**rows[0], "attack": "worst"}]))
    assert told["text"] == "AutoAttack alone overstates by 0.0 points: no more than 3."
    assert lacks["text"] == "The evaluation has no AutoAttack."


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.48, "pass"), (0.515, "pass"), (0.60, "amber")])
def test_published_window(accuracy, verdict, tmp_path):
    facts = {"dataset": "cifar10", "arch": "resnet18", "method": "pgd_at", "preset": "cifar10-paper", "seed": 0}
    run = Run.of(facts, tmp_path)
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
    for said in ((True, True), (True, False), (False, True)):
        plain.stochastic, plain.draws_by_example = said
        around = View(plain), scaled(plain, 2.0), joint_view(plain, plain, [(torch.ones(2), torch.ones(()))])
        assert {(view.stochastic, view.draws_by_example) for view in around} == {said}
    assert not View(nn.Linear(2, 2)).draws_by_example, "or each draw is asked by itself"

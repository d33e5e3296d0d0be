"""Records, summaries and curves: what is counted, and that nothing flattering slips in."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from robustlib.attacks import APGD, FGSM, PGD, AutoAttack, BatchPGD, ExampleRNG, Square, SurrogateModel, Threat
from robustlib.attacks.objectives import margin_of
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, robustness_curve
from robustlib.evaluation.metrics import cascade_steps, robust_correct, summarise, t_interval, wilson
from tests.conftest import Linear

THREAT = Threat("linf", 0.1)
PIXELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


@pytest.fixture
def split():
    images = torch.randint(0, 256, (120, 1, 4, 4), dtype=torch.uint8)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    return Split(images, labels, torch.arange(500, 620))


@pytest.fixture
def model():
    model = Linear()
    with torch.no_grad():
        model.map.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16) / 16)
        model.map.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def test_records_are_tidy_and_true(model, split):
    records = evaluate(model, split, {"fgsm": FGSM(THREAT)}, batch_size=50)
    names = ["index", "label", "attack", "surrogate", "component", "eps", "passes", "draw"]
    names += ["prediction", "margin", "valid"]
    assert (list(records), len(records), list(records["index"][:3])) == (names, 240, [500, 501, 502])
    clean = records[records.attack == "clean"]
    x = split.images.float() / 255
    margin = (2 * x.mean((1, 2, 3)) - 1) * (2 * split.labels - 1)
    assert np.allclose(clean.margin, margin, atol=1e-5)
    assert (records.prediction == records.label).eq(records.margin > 0).all()
    attacked = records[records.attack == "fgsm"]
    less = attacked.set_index("index").margin < clean.set_index("index").margin.reindex(attacked["index"])
    assert (less == (margin > 0).numpy()[attacked["index"] - 500]).all(), "what is wrong already is not attacked"
    assert attacked.valid.all()


@dataclass(frozen=True)
class Fake:
    """An attack that answers with `change(x)`, and keeps what it was given."""

    threat: Threat = THREAT
    change: Callable = torch.clone
    restarts: int = 1
    given: list = field(default_factory=list)

    def __call__(self, model, x, y, *, generator=None, rng=None):
        self.given.append(x)
        return self.change(x)


def cascade(threat: Threat = THREAT, **parts) -> AutoAttack:
    return AutoAttack(threat, version="custom", attacks=tuple(parts.items()))


@pytest.mark.parametrize("change", [*(lambda x, v=v: x * 0 + v for v in (0.5, 7.0, torch.nan)), lambda x: x.add_(0.5)])
def test_an_invalid_attack_is_never_reported_as_robustness(model, split, change):
    cheat = Fake(change=change)
    table = summarise(evaluate(model, split, {"cheat": cheat, "cascade": cascade(far=cheat)})).set_index("attack")
    assert (table.invalid[["cheat", "cascade"]] >= 110).all(), "a cascade is held to its own threat"
    assert (table.accuracy[["cheat", "cascade"]] <= 10 / 120).all()
    assert table.accuracy["worst"] <= table.accuracy["cheat"]
    assert table.eps["cascade"] == THREAT.eps


class ClampsInPlace(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x.clamp_(0.2, 0.8))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_the_judge_keeps_its_own_images_and_modes(model, split, mode):
    attacks = {"pgd": PGD(THREAT, 5, early_stop=True), "aa": AutoAttack(THREAT, steps=3, queries=5)}
    plain = torch.nn.Sequential(torch.nn.Hardtanh(0.2, 0.8), model)
    images = split.images.clone()
    with mode():
        records = evaluate(ClampsInPlace(model), split, attacks)
    assert records.drop(columns="surrogate").equals(evaluate(plain, split, attacks).drop(columns="surrogate"))
    assert torch.equal(split.images, images)
    assert 0.1 < accuracies(records)["worst"] < accuracies(records)["clean"] - 0.1


class Cut(torch.nn.Module):
    def __init__(self, model, forward):
        super().__init__()
        self.model, self.change = model, forward

    def forward(self, x):
        return self.change(self.model, x)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (torch.no_grad()(lambda model, x: model(x)), "No gradient of the model reaches the images"),
        (lambda model, x: model((x * 16).round() / 16), "No gradient of the model reaches the images"),
        (lambda model, x: model(x) * float("nan"), "NaN or infinity on 8 of 8 clean images"),
    ],
)
def test_a_model_of_which_robust_accuracy_says_nothing_is_warned_of(model, split, forward, said):
    few = split.sample(16)
    with pytest.warns(UserWarning, match=said):
        evaluate(Cut(model, forward), few, {"pgd": PGD(THREAT, 2)})
    evaluate(Cut(model, forward), few, {})  # nothing is claimed, nothing is said
    evaluate(Cut(model, lambda model, x: model(x) * 1.0), few, {"pgd": PGD(THREAT, 2)})


def test_what_is_wrong_already_is_not_attacked(model, split):
    wrong = replace(split, labels=torch.where(split.indices % 3 == 0, 1 - split.labels, split.labels))
    plain, part = Fake(), Fake()
    pair = {"plain": plain, "pair": cascade(first=part, second=FGSM(THREAT))}
    records = evaluate(model, wrong, pair, batch_size=32)
    clean = records[records.attack == "clean"].set_index("index")
    right = (clean.prediction == clean.label).to_numpy(copy=True)
    for attack in (plain, part):
        assert torch.equal(torch.cat(attack.given), wrong.images[torch.from_numpy(right)] / 255)
        assert [len(x) for x in attack.given[:-1]] == [32, 32], "batches stay full"
    same = ["label", "draw", "prediction", "margin", "valid"]
    for attack, component in (("plain", ""), ("pair", "clean")):
        kept = records[(records.attack == attack) & ~records["index"].isin(clean.index[right])].set_index("index")
        assert (set(kept.component), set(kept.eps)) == ({component}, {THREAT.eps})
        pd.testing.assert_frame_equal(kept[same], clean.loc[kept.index, same])


def test_passes_are_those_of_the_images_that_were_attacked(model, split):
    wrong = replace(split, labels=torch.where(split.indices % 3 == 0, 1 - split.labels, split.labels))
    weak, strong = PGD(THREAT, 4), PGD(THREAT, 11)
    attacks = {"pgd": weak, "pair": cascade(first=weak, second=strong), "own": Fake()}
    whole, parts = (evaluate(model, wrong, attacks, batch_size=size) for size in (120, 7))
    assert whole.passes.equals(parts.passes), "whatever the batching"
    table, right = summarise(whole).set_index("attack"), int(accuracies(whole)["clean"] * 120)
    assert table.passes[["clean", "own", "pgd"]].tolist() == [0, 0, pytest.approx(8 * right / 120)]
    steps = cascade_steps(whole).set_index("component")
    assert steps.passes.tolist() == [0, 8, 22]
    assert 0 < steps.attacked["second"] < right == steps.attacked["first"]
    spent = (8 * right + 22 * steps.attacked["second"]) / 120
    assert table.passes["pair"] == pytest.approx(spent)
    assert table.passes["worst"] == pytest.approx(table.passes["pgd"] + spent)
    older = summarise(whole.drop(columns="passes"))
    assert older.drop(columns="passes").equals(table.reset_index().drop(columns="passes"))
    assert not older.passes.any()


def test_a_cascade_is_autoattack_called_directly(split):
    model = Linear(classes=5)
    labels = model(split.images / 255).argmax(1)
    split, threat = replace(split, labels=labels), Threat("linf", 0.04)
    parts = {"random": PGD(threat, steps=1, step_size=1e-7), "square": Square(threat, queries=20)}
    attack = cascade(threat, **parts, last=APGD(threat, 10, "dlr", targets=3))
    records = evaluate(model, split, {"aa": attack}, batch_size=50)
    logits = model(attack(model, split.images / 255, labels, rng=ExampleRNG.for_examples(0, split.indices))).detach()
    last = records[records.attack == "aa"].groupby("index").last()
    broken = (last.prediction != last.label).to_numpy()
    assert 0.2 < broken.mean() < 0.9
    assert np.array_equal(logits.argmax(1).numpy()[broken], last.prediction[broken])
    assert np.allclose(margin_of(logits, labels).numpy()[broken], last.margin[broken], atol=1e-5)
    assert (logits.argmax(1) == labels).numpy()[~broken].all()
    steps = cascade_steps(records)
    assert list(steps.component) == ["clean", "random", "square", "last"]
    assert list(steps.attacked) == [120, *(120 - steps.broken.cumsum())[:-1]]
    assert (steps.broken[1:] > 0).all()
    assert np.isclose(steps.accuracy.iloc[-1], summarise(records).accuracy[1])
    assert len(records) == 120 + steps.attacked[1:].sum(), "one row for each component that tried"
    assert cascade_steps(records[records.attack == "clean"]).empty


def accuracies(records):
    return summarise(records).set_index("attack").accuracy


class Through(torch.nn.Module):
    """A linear model of which only these pixels let gradients through; `wishes` are views, or how it asks to be attacked."""

    def __init__(self, linear, *pixels, **wishes):
        super().__init__()
        self.linear, self.pixels = linear, pixels
        vars(self).update(wishes)

    def forward(self, x):
        seen = torch.tensor([float(k in self.pixels) for k in range(16)]).view(4, 4)
        return self.linear(x * seen + (x * (1 - seen)).detach())


def brute_force(model, split, attacks, adaptive):
    """Which examples withstand every attack on every view that it is made on, each of them in full."""
    x, y, rng = split.images / 255, split.labels, ExampleRNG.for_examples(0, split.indices)
    standing, views = model(x).argmax(1) == y, model.surrogates()
    pairs = [(attack, model) for attack in attacks.values()]
    pairs += [(attack, views[name]) for attack in adaptive.values() for name in ("left", "right")]
    for attack, view in pairs:
        parts = attack.components(4) if hasattr(attack, "components") else {"": attack}
        for k, part in enumerate(parts.values()):
            stream = rng.fold_in(k) if len(parts) > 1 else rng
            standing &= model(part(SurrogateModel(view, model), x, y, rng=stream)).argmax(1) == y
    aim = replace(adaptive["margin"], targeted=True)
    for t in range(4):
        view, target = SurrogateModel(views[f"gate {t}"], model), torch.full_like(y, t)
        standing &= (model(aim(view, x, y, rng=rng.fold_in(t), target=target)).argmax(1) == y) | (y == t)
    return standing


@pytest.fixture
def surrogates_case(split):
    linear = Linear(classes=4, scale=4.0)
    family = {f"gate {t}": Through(linear, *range(4 * t, 4 * t + 4), target=t) for t in range(4)}
    views = {"left": Through(linear, 2, 3, 4, 5), **family, "right": Through(linear, 6, 7, 8, 9, 10)}
    model = Through(linear, 0, 1, surrogates=lambda: views)
    labels = model(split.images / 255).argmax(1)
    threat = Threat("linf", 0.15)
    pgd = PGD(threat, steps=10, early_stop=True)
    pair = cascade(threat, first=pgd, second=replace(pgd, objective="dlr"))
    attacks = {"pgd": pgd, "pair": pair}
    adaptive = {"pgd": pgd, "margin": replace(pgd, objective="margin"), "many": replace(pgd, restarts=3), "pair": pair}
    return model, replace(split, labels=labels), attacks, adaptive


def test_the_adaptive_minimum_is_that_of_everything_against_everything(surrogates_case, tmp_path):
    model, split, attacks, adaptive = surrogates_case
    settings = {"adaptive": adaptive, "batch_size": 50, "state": tmp_path}

    def interrupt(progress):
        if (progress.attack, progress.surrogate) == ("many", "right") and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, split, attacks, progress=interrupt, **settings)
    records = evaluate(model, split, attacks, **settings)  # resumed
    table = accuracies(records)
    searched = [f"{attack}@{view}" for attack in ("pgd", "margin") for view in ("left", "right")]
    costly = [f"{attack}@{view}" for attack in ("many", "pair") for view in ("left", "right")]
    assert list(table.index) == ["clean", *attacks, *searched, "margin@gate of each class", *costly, "worst"]
    standing = robust_correct(records).groupby(records["index"]).min().reindex(split.indices.tolist()).to_numpy()
    assert np.array_equal(standing, brute_force(model, split, attacks, adaptive).numpy())
    assert 0.1 < table["worst"] < min(table[["pgd", "pair", *searched]]), "it takes several views"
    assert list(table[costly]) == sorted(table[costly], reverse=True), "costly rows count what broke before them"
    assert table["worst"] == table[costly[-1]]
    assert set(cascade_steps(records).surrogate) == {"", "left", "right", "gate of each class"}
    assert accuracies(evaluate(model, split, attacks, adaptive=adaptive, minimum=True))["worst"] == table["worst"]
    many, order = Fake(restarts=2), [*zip(records.attack, records.surrogate, strict=True)]
    evaluate(model, split, attacks, adaptive={**adaptive, "many": many})
    before = robust_correct(records[: order.index(("many", "left"))]).groupby(records["index"]).min()
    assert 0 < len(many.given[0]) == before.sum() < 100, "costly attacks meet what still stands"
    sizes = [records[(records.attack == a) & (records.surrogate == "")]["index"].nunique() for a in attacks]
    assert set(records.groupby(["attack", "surrogate"])["index"].nunique()) == {120} == set(sizes)


def test_a_family_is_aimed_and_leaves_its_own_class_alone(surrogates_case):
    model, split, _, adaptive = surrogates_case
    records = evaluate(model, split, {}, adaptive={"margin": adaptive["margin"]})
    family = records[records.surrogate == "gate of each class"]
    met = {name: set(rows.label) for name, rows in family.groupby("component")}
    assert all(t not in met[f"gate {t}"] for t in range(4))
    assert met["clean"] == {0}, "the first class keeps its clean rows"
    broken = family[~robust_correct(family)]
    assert len(broken) > 5
    assert not broken.duplicated("index").any(), "what one gate broke no other meets"


def test_a_relaxed_view_meets_the_apgd_of_a_cascade_only(model, split):
    views = {"steep": Through(model, 0, 1, relaxed=True), "other": Through(model, 2, 3)}
    pair = cascade(apgd=APGD(THREAT, steps=3, objective="ce"), square=Square(THREAT, queries=5))
    steps = cascade_steps(evaluate(Through(model, surrogates=lambda: views), split, {"pair": pair}))
    met = {view: list(rows.component) for view, rows in steps[steps.component != "before"].groupby("surrogate")}
    both = ["clean", "apgd", "square"]
    assert met == {"": both, "other": both, "steep": both[:2]}


def test_what_transfers_counts(model, split):
    sealed = Through(model, surrogates=lambda: {"useless": Through(Linear())})
    pgd = PGD(THREAT, steps=10, early_stop=True)
    alone = accuracies(evaluate(sealed, split, {"pgd": pgd}))
    attacks = {"pgd": pgd, "many": replace(pgd, restarts=2)}
    table = accuracies(evaluate(sealed, split, attacks, sources={"transfer from pgd_at": model}))
    assert table["worst"] == table["pgd@transfer from pgd_at"] < alone["worst"] - 0.2
    assert "many@transfer from pgd_at" not in table
    assert table["many@useless"] == table["worst"], "costly rows count what broke before them"


class Coin(Linear):
    """Right with the image's mean brightness as probability, for label 0."""

    stochastic = True

    def forward(self, x):
        heads = x.flatten(1).mean(1) - torch.rand(len(x))
        return torch.stack([heads, -heads], 1) + 0 * super().forward(x)


COINS = Split(torch.full((400, 1, 4, 4), 204, dtype=torch.uint8), torch.zeros(400).long(), torch.arange(400))


def darken(threat: Threat, remainder: int) -> Fake:
    return Fake(threat, lambda x: x - threat.eps * (torch.arange(len(x)) % 2 == remainder).float().view(-1, 1, 1, 1))


def test_luck_is_no_strength_of_an_attack_on_a_stochastic_model():
    records = evaluate(Coin(), COINS, {str(k): Fake() for k in range(6)})
    assert (records.groupby(["index", "attack"]).draw.max() == 19).all(), "all are attacked and judged 20 times"
    table = summarise(records).set_index("attack")
    assert table.accuracy.to_numpy() == pytest.approx(0.8, abs=0.03), "the minimum of noisy means would be below 0.72"
    assert table.single["0"] == (records[(records.attack == "0") & (records.draw == 0)].prediction == 0).mean()
    assert table.accuracy["0"] == (records[records.attack == "0"].prediction == 0).mean()
    assert (table.accuracy - table.single).abs().max() < 0.08


def test_the_strongest_of_several_attacks_on_a_stochastic_model():
    threat = Threat("linf", 0.3)
    pair = {"even": darken(threat, 0), "odd": darken(threat, 1)}
    table = accuracies(evaluate(Coin(), COINS, pair))
    assert table[["even", "odd"]].to_numpy() == pytest.approx(0.65, abs=0.03)
    assert 0.47 < table["worst"] < 0.58
    steps = cascade_steps(evaluate(Coin(), COINS, {"pair": cascade(threat, **pair)}))
    assert list(steps.attacked) == [400, 400, 400]
    assert steps.accuracy.to_numpy() == pytest.approx([0.8, 0.67, 0.52], abs=0.05)
    curve = robustness_curve(Coin(), COINS, PGD(threat, steps=1), eps=[0.0, 0.3])
    assert curve.accuracy[0] == pytest.approx(0.8, abs=0.03)


def test_deterministic_models_may_be_judged_several_times_and_eps_may_be_zero(model, split):
    records = evaluate(model, split, {"fgsm": FGSM(THREAT)}, draws=3)
    once = summarise(evaluate(model, split, {"fgsm": FGSM(THREAT)}))
    pd.testing.assert_frame_equal(summarise(records), once, check_dtype=False)
    none = Threat("linf", 0.0)
    assert accuracies(evaluate(model, split, {"aa": AutoAttack(none), "fgsm": FGSM(none)})).nunique() == 1


def test_a_model_without_an_answer_is_wrong(split):
    records = evaluate(Linear(scale=float("nan")), split, {})
    assert ((records.prediction == -1).all(), accuracies(records)["clean"]) == (True, 0)


def test_worst_is_per_example_not_the_minimum_of_means():
    attacks = ["clean", "clean", "a", "a", "b", "b"]
    records = pd.DataFrame({"index": [0, 1] * 3, "attack": attacks, "prediction": [0, 0, 1, 0, 0, 1]})
    records = records.assign(label=0, draw=0, margin=0.0, valid=True, eps=0.1)  # as of version 0.1
    assert accuracies(records).to_dict() == {"clean": 1, "a": 0.5, "b": 0.5, "worst": 0}


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (480, 500), (500, 500)])
def test_wilson_equals_its_formula(correct, n):
    z, p = NormalDist().inv_cdf(0.975), correct / n
    centre, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert np.allclose(wilson(correct, n), np.clip(expected, 0, 1), atol=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_curves_match_the_analytic_margin_and_never_rise(model, split):
    radii = [0.2, 0.0, 0.05, 0.1, 1.0]
    curve = robustness_curve(model, split, PGD(THREAT, steps=20), eps=radii)
    x, signed = split.images.float() / 255, (2 * split.labels - 1).view(-1, 1, 1, 1)
    least = [(2 * (x - e * signed).clamp(0, 1).mean((1, 2, 3)) - 1) * signed.flatten() for e in sorted(radii)]
    assert (list(curve.eps), curve.accuracy.iloc[-1]) == (sorted(radii), 0)
    assert curve.accuracy.tolist() == pytest.approx([float((m > 0).float().mean()) for m in least], abs=0.01)
    assert curve.accuracy.is_monotonic_decreasing
    curve = robustness_curve(model, split, PGD(THREAT, step_size=0.01), steps=[0, 1, 5, 20])
    assert curve.accuracy.is_monotonic_decreasing
    assert curve.accuracy.iloc[-1] < curve.accuracy.iloc[0]
    for settings, said in (({}, "either eps"), ({"eps": ["8/255"]}, "eps='8/255'"), ({"steps": [2.7]}, "steps=2.7")):
        with pytest.raises(InputError, match=said):
            robustness_curve(model, split, PGD(THREAT), **settings)


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        *((f"An attack cannot be called '{name}'", {"attacks": {name: FGSM(THREAT)}}) for name in ("clean", "a@b")),
        ("cannot be called 'worst'", {"adaptive": {"worst": FGSM(THREAT)}}),
        ("batch_size=0: give a whole number of at least 1", {"batch_size": 0}),
        ("draws=0: give a whole number of at least 1", {"draws": 0}),
        *((f"seed={seed}: give a whole number", {"seed": seed}) for seed in (0.5, -1, 2**70)),
        (
            r"cannot take images torch.float32 \(120, 1, 4, 4\) on cpu \(.*mat1 and mat2",
            {"model": Linear(2, (3, 8, 8))},
        ),
        *(
            ("'pgd20': .* is no attack: give", {"attacks": {"pgd20": a}})
            for a in (None, PGD, len, Linear(), BatchPGD(THREAT))
        ),
        ("'new': .* is no attack", {"adaptive": {"new": lambda model, x, y: x}}),
        ("5: PGD.* is no attack: give a name", {"attacks": {5: PGD(THREAT)}}),
        (r"PGD\(.* names no attacks: give e.g. {'pgd20'", {"attacks": PGD(THREAT)}),
        *(
            (f"The answer of 'cut' is {got}: it must be images", {"attacks": {"cut": Fake(change=change)}})
            for got, change in (("a tuple", lambda x: (x,)), (r"torch.float32 \(1, 1, 4, 4\)", lambda x: x[:1]))
        ),
        ("None is no model: give a torch.nn.Module", {"model": None}),
        ("None is no model", {"sources": {"other": None}}),
        (r"draws=1: judge a stochastic model at least twice.*model.fixed\(seed\)", {"model": Coin(), "draws": 1}),
        ("1 logit", {"model": Linear(classes=1)}),
        ("Labels from 5 to 6 do not fit a model of 2", {"split": Split(PIXELS, torch.tensor([5, 6]), torch.arange(2))}),
        (r"float64 weights.*model.float", {"model": Linear().double()}),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence(model, split, said, changed):
    with pytest.raises(InputError, match=said):
        evaluate(**{"model": model, "split": split, "attacks": {}, **changed})


def test_models_without_tensors_and_splits_without_images_are_evaluated(model, split):
    pixels = torch.nn.Sequential(torch.nn.AvgPool2d((4, 2)), torch.nn.Flatten())  # the darker half
    table = accuracies(evaluate(pixels, split, {"fgsm": FGSM(THREAT)}))
    assert table["worst"] < table["clean"]
    nothing = summarise(evaluate(model, split.select(torch.arange(0)), {"fgsm": FGSM(THREAT)}))
    assert (list(nothing), len(nothing)) == (list(summarise(evaluate(model, split, {}))), 0)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_t_interval_equals_scipys(level):
    values = [0.1, 0.4, 0.35]
    expected = stats.t.interval(level, 2, np.mean(values), stats.sem(values))
    assert t_interval(values, level) == pytest.approx(expected, abs=1e-12)
    assert t_interval([0.2, 0.2]) == (0.2, 0.2)
    assert np.isnan(t_interval([0.2, float("nan")])).all()

"""Records, summaries and curves: what is counted, and that nothing flattering slips in."""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from robustlib.attacks import APGD, FGSM, PGD, AutoAttack, ExampleRNG, Square, SurrogateModel, Threat
from robustlib.attacks.objectives import margin_of
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import compare_with_reference, evaluate, evaluate_run, robustness_curve, standard_attacks
from robustlib.evaluation.metrics import cascade_steps, robust_correct, summarise, t_interval, wilson
from robustlib.evaluation.runs import aggregate, incomplete, leaderboard
from robustlib.evaluation.schedule import adapt, group_surrogates, select_views
from robustlib.methods import make_method
from robustlib.runs import Run, transfer_sources, write_atomic, write_json
from robustlib.training import fit
from tests.conftest import Linear

THREAT = Threat("linf", 0.1)


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
    names = ["index", "label", "attack", "surrogate", "component", "eps", "draw", "prediction", "margin", "valid"]
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
class Cheat:
    """An attack that leaves the ball, or returns NaN."""

    threat: Threat
    value: float

    def __call__(self, model, x, y, *, generator=None, rng=None):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("value", [0.5, 7.0, float("nan")])
def test_a_broken_attack_is_never_reported_as_robustness(model, split, value):
    table = summarise(evaluate(model, split, {"cheat": Cheat(THREAT, value)})).set_index("attack")
    assert table.invalid["cheat"] >= 110
    assert table.accuracy["cheat"] <= 10 / 120
    assert table.accuracy["worst"] <= table.accuracy["cheat"]


@dataclass(frozen=True)
class Notes:
    """An attack that does nothing, and keeps what it was given."""

    threat: Threat
    given: list
    restarts: int = 1

    def __call__(self, model, x, y, *, generator=None, rng=None):
        self.given.append(x)
        return x


def test_what_is_wrong_already_is_not_attacked(model, split):
    wrong = replace(split, labels=torch.where(split.indices % 3 == 0, 1 - split.labels, split.labels))
    plain, part = Notes(THREAT, []), Notes(THREAT, [])
    pair = AutoAttack(THREAT, version="custom", attacks=(("first", part), ("second", FGSM(THREAT))))
    records = evaluate(model, wrong, {"plain": plain, "pair": pair}, batch_size=32)
    clean = records[records.attack == "clean"].set_index("index")
    right = (clean.prediction == clean.label).to_numpy(copy=True)
    for notes in (plain, part):
        assert torch.equal(torch.cat(notes.given), wrong.images[torch.from_numpy(right)] / 255)
        assert [len(x) for x in notes.given[:-1]] == [32, 32], "batches stay full"
    same = ["label", "draw", "prediction", "margin", "valid"]
    for attack, component in (("plain", ""), ("pair", "clean")):
        kept = records[(records.attack == attack) & ~records["index"].isin(clean.index[right])].set_index("index")
        assert (set(kept.component), set(kept.eps)) == ({component}, {THREAT.eps})
        pd.testing.assert_frame_equal(kept[same], clean.loc[kept.index, same])


def test_a_cascade_is_autoattack_called_directly(split):
    model = Linear(classes=5)
    labels = model(split.images / 255).argmax(1)
    split, threat = replace(split, labels=labels), Threat("linf", 0.04)
    weak = (("random", PGD(threat, steps=1, step_size=1e-9)), ("square", Square(threat, queries=20)))
    attack = AutoAttack(threat, version="custom", attacks=(*weak, ("apgd-t", APGD(threat, 10, "dlr", targets=3))))
    records = evaluate(model, split, {"aa": attack}, batch_size=50)
    logits = model(attack(model, split.images / 255, labels, rng=ExampleRNG.for_examples(0, split.indices))).detach()
    last = records[records.attack == "aa"].groupby("index").last()
    broken = (last.prediction != last.label).to_numpy()
    assert 0.2 < broken.mean() < 0.9
    assert np.array_equal(logits.argmax(1).numpy()[broken], last.prediction[broken])
    assert np.allclose(margin_of(logits, labels).numpy()[broken], last.margin[broken], atol=1e-5)
    assert (logits.argmax(1) == labels).numpy()[~broken].all()
    steps = cascade_steps(records)
    assert list(steps.component) == ["clean", "random", "square", "apgd-t"]
    assert list(steps.attacked) == [120, *(120 - steps.broken.cumsum())[:-1]]
    assert (steps.broken[1:] > 0).all()
    assert np.isclose(steps.accuracy.iloc[-1], summarise(records).accuracy[1])
    assert len(records) == 120 + steps.attacked[1:].sum(), "one row for each component that tried"
    assert cascade_steps(records[records.attack == "clean"]).empty


class Masked(torch.nn.Module):
    """`model` without its gradient, with these views."""

    def __init__(self, model, **views):
        super().__init__()
        self.model, self.views = model, views

    def forward(self, x):
        return self.model(0 * x + x.detach())

    def surrogates(self):
        return self.views


def accuracies(records):
    return summarise(records).set_index("attack").accuracy


def test_the_headline_is_the_minimum_over_surrogates_judged_by_the_deployed_model(model, split):
    masked, pgd = Masked(model, smooth=model, useless=Linear()), PGD(THREAT, steps=10, start="zero")
    pair = AutoAttack(THREAT, version="custom", attacks=(("pgd", pgd),))
    records = evaluate(masked, split, {"pgd": pgd, "pair": pair})
    table = accuracies(records)
    views = ["@smooth", "@useless"]
    assert list(table.index) == ["clean", "pgd", "pair", *(a + v for a in ("pgd", "pair") for v in views), "worst"]
    true = accuracies(evaluate(model, split, {"pgd": pgd}))["pgd"]
    assert table["pgd"] == table["clean"] > 0.9
    assert table["pgd@smooth"] == table["pair@smooth"] == table["worst"] == true < 0.7
    assert table["pgd@useless"] >= true
    assert set(cascade_steps(records).surrogate) == {"", "smooth", "useless"}


class Through(torch.nn.Module):
    """A linear model of which only some pixels let gradients through; its answers are the deployed ones."""

    def __init__(self, linear, pixels, **wishes):
        super().__init__()
        self.linear, self.pixels = linear, pixels
        vars(self).update(wishes)

    def forward(self, x):
        seen = torch.zeros(16).index_fill(0, torch.tensor(self.pixels), 1.0).view(4, 4)
        return self.linear(x * seen + (x * (1 - seen)).detach())


class ManySurrogates(Through):
    """Hides its gradients but for two pixels; its views show other pixels, those of the family each at the cost of an aim."""

    def __init__(self):
        super().__init__(Linear(classes=4, scale=4.0), [0, 1])

    def surrogates(self):
        family = {f"gate {t}": Through(self.linear, list(range(4 * t, 4 * t + 4)), target=t) for t in range(4)}
        return {"left": Through(self.linear, [2, 3, 4, 5]), **family, "right": Through(self.linear, [6, 7, 8, 9, 10])}


def brute_force(model, split, attacks, adaptive):
    """Which examples withstand every attack on every view that it is made on, each of them in full."""
    x, y, rng = split.images / 255, split.labels, ExampleRNG.for_examples(0, split.indices)
    left = model(x).argmax(1) == y

    def tried(attack, view):
        parts = attack.components(4) if hasattr(attack, "components") else {"": attack}
        for k, part in enumerate(parts.values()):
            mine = rng.fold_in(k) if len(parts) > 1 else rng
            yield model(part(SurrogateModel(view, model), x, y, rng=mine)).argmax(1) == y

    views = model.surrogates()
    pairs = [(attack, model) for attack in attacks.values()]
    pairs += [(attack, views[name]) for attack in adaptive.values() for name in ("left", "right")]
    for attack, view in pairs:
        left &= torch.stack(list(tried(attack, view))).all(0)
    aim = replace(adaptive["margin"], targeted=True)
    for t in range(4):
        view, target = SurrogateModel(views[f"gate {t}"], model), torch.full_like(y, t)
        left &= (model(aim(view, x, y, rng=rng.fold_in(t), target=target)).argmax(1) == y) | (y == t)
    return left


@pytest.fixture
def surrogates_case(split):
    model = ManySurrogates()
    labels = model(split.images / 255).argmax(1)
    threat = Threat("linf", 0.15)
    pgd = PGD(threat, steps=10, early_stop=True)
    pair = AutoAttack(threat, version="custom", attacks=(("first", pgd), ("second", replace(pgd, objective="dlr"))))
    attacks = {"pgd": pgd, "pair": pair}
    adaptive = {"pgd": pgd, "margin": replace(pgd, objective="margin"), "many": replace(pgd, restarts=3), "pair": pair}
    return model, replace(split, labels=labels), attacks, adaptive


def test_the_adaptive_minimum_is_that_of_everything_against_everything(surrogates_case):
    model, split, attacks, adaptive = surrogates_case
    records = evaluate(model, split, attacks, adaptive=adaptive, batch_size=50)
    table = accuracies(records)
    searched = [f"{attack}@{view}" for attack in ("pgd", "margin") for view in ("left", "right")]
    costly = [f"{attack}@{view}" for attack in ("many", "pair") for view in ("left", "right")]
    assert list(table.index) == ["clean", *attacks, *searched, "margin@gate of each class", *costly, "worst"]
    left = robust_correct(records).groupby(records["index"]).min().reindex(split.indices.tolist()).to_numpy()
    assert np.array_equal(left, brute_force(model, split, attacks, adaptive).numpy())
    assert 0.1 < table["worst"] < min(table[["pgd", "pair", *searched]]), "it takes several views"
    assert list(table[costly]) == sorted(table[costly], reverse=True), "costly rows count what broke before them"
    assert table["worst"] == table[costly[-1]]
    short = evaluate(model, split, attacks, adaptive=adaptive, minimum=True)
    assert summarise(short).set_index("attack").accuracy["worst"] == table["worst"]
    sizes = [records[(records.attack == a) & (records.surrogate == "")]["index"].nunique() for a in attacks]
    assert set(records.groupby(["attack", "surrogate"])["index"].nunique()) == {120} == set(sizes)


def test_costly_attacks_meet_what_still_stands(surrogates_case):
    model, split, attacks, adaptive = surrogates_case
    notes = Notes(THREAT, [], restarts=2)
    records = evaluate(model, split, attacks, adaptive={**adaptive, "many": notes})
    order = [*zip(records.attack, records.surrogate, strict=True)]
    before = records[: order.index(("many", "left"))]
    standing = robust_correct(before).groupby(before["index"]).min()
    assert 0 < len(notes.given[0]) == standing.sum() < 100


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
    slopes = Masked(model, steep=Through(model, [0, 1], relaxed=True), other=Through(model, [2, 3]))
    parts = (("apgd-ce", APGD(THREAT, steps=3, objective="ce")), ("square", Square(THREAT, queries=5)))
    steps = cascade_steps(evaluate(slopes, split, {"pair": AutoAttack(THREAT, version="custom", attacks=parts)}))
    met = {view: list(rows.component) for view, rows in steps[steps.component != "before"].groupby("surrogate")}
    both = ["clean", "apgd-ce", "square"]
    assert met == {"": both, "other": both, "steep": both[:2]}


def test_what_transfers_counts(model, split):
    sealed, pgd = Masked(model, useless=Masked(Linear())), PGD(THREAT, steps=10, early_stop=True)
    alone = accuracies(evaluate(sealed, split, {"pgd": pgd}))
    attacks = {"pgd": pgd, "many": replace(pgd, restarts=2)}
    table = accuracies(evaluate(sealed, split, attacks, sources={"transfer from pgd_at": model}))
    assert table["worst"] == table["pgd@transfer from pgd_at"] < alone["worst"] - 0.2
    assert "many@transfer from pgd_at" not in table
    assert table["many@useless"] == table["worst"], "costly rows count what broke before them"


def test_a_view_has_its_own_objective(linear):
    wish = Through(linear, [0], objective="nll")
    pgd = PGD(THREAT)
    assert adapt(pgd, wish).objective == adapt(APGD(THREAT), wish).objective == "nll"
    assert adapt(replace(pgd, objective="margin"), wish).objective == "margin"
    assert adapt(pgd, linear) is pgd
    assert adapt(pgd, Through(linear, [0], target=2)).targeted
    views = {"a": linear, "joint": wish, "gate 0": Through(linear, [0], target=0)}
    many, cascade = replace(pgd, restarts=2), AutoAttack(THREAT)
    for attack, given, met in ((many, views, "joint"), (cascade, views, "a"), (many, {"a": linear}, "a")):
        assert [*select_views(attack, group_surrogates(given))] == [met]


def test_the_source_is_the_run_of_the_preset_before_one_that_was_changed(tmp_path):
    def made(name, seed=0, arch="small_cnn", changed=""):
        run = Run(tmp_path / "digits" / "pgd_at" / name)
        facts = {"method": "pgd_at", "dataset": "digits", "threat": "t", "preset": "digits"}
        write_json(run.path / "params.json", facts | {"seed": seed, "arch": arch, "changed": changed})
        write_json(run.path / "status.json", {"state": "done"})
        write_atomic(run.path / "model.safetensors", b"weights")
        return run

    mine = made("mine")
    order = [made("a", arch="mlp"), made("b", changed="epochs=1"), made("c", seed=3), made("d")]
    for fittest in range(4):
        assert transfer_sources(mine, ["pgd_at"])["pgd_at"].path == order[::-1][fittest].path
        shutil.rmtree(order[::-1][fittest].path)
    assert transfer_sources(mine, ["pgd_at"]) == {}


def test_a_search_aimed_through_a_view_ends_at_any_wrong_answer_of_the_judge():
    class Judge(torch.nn.Module):  # class 1 far out, class 2 further
        def forward(self, x):
            mean = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([0 * mean, 4 * mean - 2.4, 8 * mean - 6.4], 1)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    aim = PGD(Threat("linf", 0.25), 20, 0.05, start="zero", early_stop=True, objective="margin", targeted=True)
    judge, view, target = Judge(), Judge(), torch.full((3,), 2)
    assert judge(aim(SurrogateModel(view, judge), x, y, target=target)).argmax(1).tolist() == [1, 1, 1]


@pytest.fixture
def train(tmp_path, few, monkeypatch):
    """train(method, seed): a barely trained run, evaluated with a short AutoAttack."""

    def quick(threat: Threat) -> AutoAttack:
        parts = (("apgd-ce", APGD(threat, steps=5)), ("square", Square(threat, queries=20)))
        return AutoAttack(threat, version="custom", attacks=parts)

    def made(name="standard", seed=0, epochs=1, examples=100):
        method = make_method(name, "digits", epochs=epochs, train_examples=examples)
        return fit(method, few, root=tmp_path, device="cpu", seed=seed, progress=False)

    monkeypatch.setattr("robustlib.evaluation.protocols.AutoAttack", quick)
    return made


def test_a_model_with_surrogates_is_judged_again_when_a_source_appears(digits, train):
    run = train("ancra")

    def interrupt(progress):
        if (progress.attack, progress.surrogate) == ("cw50", "joint") and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, digits, n=8, progress=interrupt)
    alone = evaluate_run(run, digits, n=8)
    resumed = run.records()
    (run.path / "results.json").unlink()
    assert evaluate_run(run, digits, n=8) == alone
    pd.testing.assert_frame_equal(run.records(), resumed, check_exact=True)
    rows = {row["attack"]: row for row in alone["rows"]}
    assert alone["transfer"] == {}
    assert rows["worst"]["protocol"].endswith("nothing was transferred from pgd_at or trades")
    assert "on what withstood everything before" in rows["autoattack@head 1"]["protocol"]
    assert {row["surrogate"] for row in alone["cascade"]} == {""}
    assert all(row["n"] == 8 for row in rows.values())
    source = train("pgd_at")
    again = evaluate_run(run, digits, n=8)
    assert again["transfer"] == {"pgd_at": source.place}
    rows = {row["attack"]: row for row in again["rows"]}
    assert f"searched on {source.place}" in rows["cw50@transfer from pgd_at"]["protocol"]
    assert again["rows"][-1]["accuracy"] <= alone["rows"][-1]["accuracy"]
    stamp = (run.path / "records.parquet").stat().st_mtime_ns
    assert (evaluate_run(run, digits, n=8), (run.path / "records.parquet").stat().st_mtime_ns) == (again, stamp)
    assert "transfer" not in evaluate_run(source, digits, n=8)


class Coin(Linear):
    """Right with the image's mean brightness as probability, for label 0."""

    stochastic = True

    def forward(self, x):
        heads = x.flatten(1).mean(1) - torch.rand(len(x))
        return torch.stack([heads, -heads], 1) + 0 * super().forward(x)


@dataclass(frozen=True)
class Darken:
    """Darkens every second image; remainder 2 leaves all as they are."""

    threat: Threat
    remainder: int

    def __call__(self, model, x, y, *, generator=None, rng=None):
        chosen = (torch.arange(len(x)) % 2 == self.remainder).float().view(-1, 1, 1, 1)
        return x - self.threat.eps * chosen


def coins() -> Split:
    return Split(torch.full((400, 1, 4, 4), 204, dtype=torch.uint8), torch.zeros(400).long(), torch.arange(400))


def test_luck_is_no_strength_of_an_attack_on_a_stochastic_model():
    records = evaluate(Coin(), coins(), {str(k): Darken(THREAT, 2) for k in range(6)})
    assert (records.groupby(["index", "attack"]).draw.max() == 19).all(), "all are attacked and judged 20 times"
    table = summarise(records).set_index("attack")
    assert table.accuracy.to_numpy() == pytest.approx(0.8, abs=0.03)
    assert table.single["0"] == (records[(records.attack == "0") & (records.draw == 0)].prediction == 0).mean()
    assert table.accuracy["0"] == (records[records.attack == "0"].prediction == 0).mean()
    assert (table.accuracy - table.single).abs().max() < 0.08
    right = records.assign(right=records.prediction == 0)
    cursed = right.groupby(["index", "attack"]).right.mean().groupby("index").min().mean()
    assert cursed < 0.72, "the minimum of noisy means, which must not be the headline"


def test_the_strongest_of_several_attacks_on_a_stochastic_model():
    threat = Threat("linf", 0.3)
    records = evaluate(Coin(), coins(), {"even": Darken(threat, 0), "odd": Darken(threat, 1)})
    table = accuracies(records)
    assert table[["even", "odd"]].to_numpy() == pytest.approx(0.65, abs=0.03)
    assert 0.47 < table["worst"] < 0.58
    pair = AutoAttack(threat, version="custom", attacks=(("even", Darken(threat, 0)), ("odd", Darken(threat, 1))))
    steps = cascade_steps(evaluate(Coin(), coins(), {"pair": pair}))
    assert list(steps.attacked) == [400, 400, 400]
    assert steps.accuracy.to_numpy() == pytest.approx([0.8, 0.67, 0.52], abs=0.05)
    for draws in (0, 1):
        with pytest.raises(InputError, match=f"draws={draws} is too few"):
            evaluate(Coin(), coins(), {}, draws=draws)
    curve = robustness_curve(Coin(), coins(), PGD(threat, steps=1), eps=[0.0, 0.3])
    assert curve.accuracy[0] == pytest.approx(0.8, abs=0.03)


def test_no_attack_leaves_less_of_a_stochastic_model_than_the_headline():
    """One image: the odd draws choose the attack that the even ones find weaker."""
    right = {"clean": [1] * 20, "a": [0, 1] * 10, "b": [1, 0] * 9 + [0, 0]}
    base = {"index": 0, "label": 0, "surrogate": "", "component": "", "eps": 0.2, "margin": 0.0, "valid": True}
    rows = [{**base, "attack": a, "draw": d, "prediction": 1 - r} for a in right for d, r in enumerate(right[a])]
    table = summarise(pd.DataFrame(rows)).set_index("attack").accuracy
    assert table[["clean", "a", "b"]].tolist() == [1.0, 0.5, 0.45]
    assert table["worst"] == 0.45, "scored on its even draws, b would leave 0.9"


def test_deterministic_models_may_be_judged_several_times_and_eps_may_be_zero(model, split):
    records = evaluate(model, split, {"fgsm": FGSM(THREAT)}, draws=3)
    once = summarise(evaluate(model, split, {"fgsm": FGSM(THREAT)}))
    pd.testing.assert_frame_equal(summarise(records), once, check_dtype=False)
    none = Threat("linf", 0.0)
    records = evaluate(model, split, {"aa": AutoAttack(none), "fgsm": FGSM(none)})
    assert summarise(records).accuracy.nunique() == 1


@pytest.mark.parametrize("name", ["clean", "worst", "pgd@view"])
def test_reserved_names(model, split, name):
    with pytest.raises(InputError, match=f"cannot be called '{name}'"):
        evaluate(model, split, {name: FGSM(THREAT)})


def test_labels_beyond_the_classes_are_a_sentence(model, split):
    with pytest.raises(InputError, match="1 logit"):
        evaluate(Linear(classes=1), split, {})
    with pytest.raises(InputError, match="2 classes"):
        evaluate(model, replace(split, labels=split.labels + 5), {})


def test_means_keep_data_sets_precisions_and_changes_apart():
    row = dict.fromkeys(("clean", "fgsm", "pgd20", "pgd50x10", "cw50", "worst", "minutes"), 0.5)
    row |= {
        "dataset": "x",
        "method": "m",
        "title": "M",
        "arch": "a",
        "changed": "",
        "precision": "32-true",
        "n": 9,
        "seed": 0,
    }
    changes = ({}, {"dataset": "y"}, {"changed": "beta=1"}, {"precision": "bf16-mixed"})
    assert len(aggregate(pd.DataFrame([row | change for change in changes]))) == 4


def test_a_model_without_an_answer_is_wrong(split):
    records = evaluate(Linear(scale=float("nan")), split, {})
    assert (records.prediction == -1).all()
    assert summarise(records).accuracy[0] == 0


def test_worst_is_per_example_not_the_minimum_of_means():
    columns = {
        "index": [0, 1] * 3,
        "attack": [*"ccaabb"],
        "eps": [0, 0, 0.1, 0.1, 0.1, 0.1],
        "prediction": [0, 0, 1, 0, 0, 1],
    }
    records = pd.DataFrame(columns | {"label": 0, "draw": 0, "margin": 0.0, "valid": True}).replace(
        {"attack": {"c": "clean"}}
    )
    assert accuracies(records).to_dict() == {"clean": 1, "a": 0.5, "b": 0.5, "worst": 0}


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (480, 500), (500, 500)])
def test_wilson_equals_its_formula(correct, n):
    z, p = NormalDist().inv_cdf(0.975), correct / n
    centre, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert np.allclose(wilson(correct, n), np.clip(expected, 0, 1), atol=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_curve_over_eps_matches_the_analytic_margin_and_never_rises(model, split):
    radii = [0.2, 0.0, 0.05, 0.1, 1.0]
    curve = robustness_curve(model, split, PGD(THREAT, steps=20), eps=radii)
    x, signed = split.images.float() / 255, (2 * split.labels - 1).view(-1, 1, 1, 1)
    least = [(2 * (x - e * signed).clamp(0, 1).mean((1, 2, 3)) - 1) * signed.flatten() for e in sorted(radii)]
    assert (list(curve.eps), curve.accuracy.iloc[-1]) == (sorted(radii), 0)
    assert curve.accuracy.tolist() == pytest.approx([float((m > 0).float().mean()) for m in least], abs=0.01)
    assert curve.accuracy.is_monotonic_decreasing


def test_curve_over_steps_never_rises(model, split):
    curve = robustness_curve(model, split, PGD(THREAT, step_size=0.01), steps=[0, 1, 5, 20])
    assert curve.accuracy.is_monotonic_decreasing
    assert curve.accuracy.iloc[-1] < curve.accuracy.iloc[0]
    with pytest.raises(InputError, match="either eps"):
        robustness_curve(model, split, PGD(THREAT))


def test_samples_are_stratified_and_fixed(digits):
    chosen = digits.test.sample(100)
    assert len(chosen) == 100
    assert torch.equal(chosen.indices, digits.test.sample(100).indices)
    assert chosen.labels.bincount().min() >= 9
    assert digits.test.sample(0) is digits.test
    assert (len(digits.test.sample(499)), len(digits.test.sample(3))) == (499, 3)


def test_a_run_is_evaluated_once_and_lands_on_the_leaderboard(digits, train):
    runs = [train(seed=seed, epochs=2, examples=300) for seed in (0, 1)]
    run, (_, results) = runs[-1], (evaluate_run(run, digits, n=20) for run in runs)
    assert [row["attack"] for row in results["rows"]] == ["clean", *standard_attacks(THREAT), "worst"]
    assert all("(threat=Threat(" in row["protocol"] for row in results["rows"][1:-1])
    assert [row["component"] for row in results["cascade"]][:2] == ["clean", "apgd-ce"]
    assert results["cascade"][-1]["accuracy"] == results["rows"][-2]["accuracy"]
    assert "autoattack" not in [row["attack"] for row in results["last"]["rows"]]
    assert not run.evaluation.exists()
    assert (results["n"], results["last"]["rows"][0]["n"], len(results["curve"])) == (20, 20, 8)
    stamp = (run.path / "records.parquet").stat().st_mtime_ns
    assert evaluate_run(run, digits, n=20) == run.results() == results
    assert (run.path / "records.parquet").stat().st_mtime_ns == stamp
    assert evaluate_run(run, digits, n=12)["n"] == 12
    assert run.results() == results, "a look at fewer images must not replace what more have shown"
    assert accuracies(run.records()).to_dict() == {row["attack"]: row["accuracy"] for row in results["rows"]}
    assert set(run.records("last")["index"]) == set(run.records()["index"])
    board = leaderboard(runs)
    assert (len(board), board.title[0]) == (2, "Standard training")
    assert (board.worst <= board[["autoattack", "pgd20"]].min(axis=1)).all()
    assert (board.headline_badge == "").all()
    badges = {"headline": {"verdict": "amber", "text": "weak"}, "protocol": {"verdict": "pass", "text": "fair"}}
    (runs[0].path / "audit.json").write_text(json.dumps({"badges": badges}))
    judged = leaderboard(runs[:1]).loc[0]
    assert (judged.headline_badge, judged.headline_text, judged.protocol_text) == ("amber", "weak", "fair")
    evaluate_run(runs[0], digits, n=21)
    assert runs[0].audit() == {}, "a badge must not stand beside a number that it did not judge"
    means = aggregate(board)
    assert (means.seeds[0], board.threat[0]) == (2, "Linf 0.2")
    assert (means.clean_mean[0], means.clean_std[0]) == pytest.approx((board.clean.mean(), board.clean.std()))
    assert leaderboard([]).empty


def test_runs_that_lack_something_are_named_with_the_remedy(digits, train):
    run = train()
    again = f"{run.provenance()['command']} --rerun"

    def lacks() -> str:
        (missing,) = incomplete([run]).missing
        return missing

    assert lacks() == f"not evaluated: robustlib evaluate {run.path}"
    evaluate_run(run, digits, n=6)
    assert lacks() == f"not audited: robustlib audit {run.path}"
    (run.path / "audit.json").write_text(json.dumps({"badges": {"headline": {}}}))
    assert incomplete([run]).empty
    records = run.path / "records.parquet"
    whole = pd.read_parquet(records)
    run.write_frame("records.parquet", whole[(whole.attack != "pgd20") | (whole["index"] != whole["index"].iloc[0])])
    told = incomplete([run]).loc[0]
    assert told.missing == f"records of pgd20 are incomplete: {again}"
    assert (told.run, told.dataset, told.path) == (run.name, "digits", str(run.path))
    run.write_frame("records.parquet", pd.concat([whole, whole[whole.attack == "pgd20"].assign(surrogate="head")]))
    results = run.results()
    results["rows"] += [row | {"attack": "pgd20@head"} for row in results["rows"] if row["attack"] == "pgd20"]
    (run.path / "results.json").write_text(json.dumps(results))
    assert incomplete([run]).empty, "what was found on a surrogate is kept beside it"
    run.write_frame("records.parquet", whole)
    assert lacks() == f"records of pgd20@head are incomplete: {again}"
    records.write_bytes(records.read_bytes()[:50])
    assert lacks().startswith("a file cannot be read")
    records.unlink()
    assert "clean" in lacks()
    (run.path / "results.json").write_text('{"n": 6, ')
    assert lacks().startswith("a file cannot be read")
    (run.path / "model.safetensors").unlink()
    assert "model.safetensors" in lacks()
    assert lacks().endswith(again)
    (run.path / "status.json").write_text(json.dumps({"state": "failed"}))
    assert lacks() == f"training failed: {run.provenance()['command']}"


def test_an_interrupted_evaluation_of_a_run_goes_on(digits, train):
    run = train()

    def interrupt(progress):
        if progress.attack == "autoattack" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, digits, n=20, progress=interrupt)
    assert run.results() == {}
    parts, said = list(run.evaluation.rglob("part-*")), []
    results = evaluate_run(run, digits, n=20, progress=said.append)
    assert len([p for p in said if p.eta is None and p.done == p.total > 0]) == len(parts), "nothing is redone"
    assert not run.evaluation.exists()
    records = run.records()
    (run.path / "results.json").unlink()
    assert evaluate_run(run, digits, n=20) == results
    pd.testing.assert_frame_equal(run.records(), records, check_exact=True)
    (run.path / "representation.json").write_text("{}")
    for folder in (run.evaluation, run.path / "features", run.path / "embeddings"):
        folder.mkdir()
        (folder / "part").write_text("")
    run.clear()
    assert [file.name for file in run.path.iterdir()] == [".lock"]


def test_the_authors_package_is_a_second_opinion(digits, train, monkeypatch):
    run = train(examples=200)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(InputError, match="no AutoAttack on all 20 images"):
        compare_with_reference(run, digits, n=20)
    evaluate_run(run, digits, n=20)
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


def test_runs_of_other_data_or_unfinished_ones_are_refused(digits, train):
    run = train()
    with pytest.raises(InputError, match="trained on 'digits'"):
        evaluate_run(run, replace(digits, name="mnist"))
    (run.path / "status.json").write_text('{"state": "running"}')
    with pytest.raises(InputError, match="not finished"):
        evaluate_run(run, digits)


def test_models_without_tensors_are_evaluated_and_double_ones_refused(split):
    class Mean(torch.nn.Module):
        def forward(self, x):
            value = x.mean((1, 2, 3)) - 0.5
            return torch.stack([-value, value], 1)

    table = accuracies(evaluate(Mean(), split, {"fgsm": FGSM(THREAT)}))
    assert table["worst"] < table["clean"]
    with pytest.raises(InputError, match=r"float64 weights.*model.float"):
        evaluate(Linear().double(), split, {})


def test_a_summary_of_nothing_has_its_columns(model, split):
    nothing = summarise(evaluate(model, split.select(torch.arange(0)), {"fgsm": FGSM(THREAT)}))
    assert list(nothing) == list(summarise(evaluate(model, split, {})))
    assert nothing.empty


def test_a_cascade_is_held_to_its_own_threat(model, split):
    def far(model, x, y, *, generator=None, rng=None):
        return 1 - x

    records = evaluate(model, split, {"aa": AutoAttack(THREAT, "custom", (("far", far),))})
    table = summarise(records).set_index("attack")
    assert table.eps["aa"] == THREAT.eps
    assert table.invalid["aa"] > 100


def test_stochastic_models_meet_both_versions_of_autoattack_and_square():
    attacks = standard_attacks(THREAT, stochastic=True)
    assert list(attacks) == ["fgsm", "pgd20", "cw50", "pgd_eot", "square", "aa_standard", "autoattack"]
    assert (list(standard_attacks(THREAT))[-1], attacks["autoattack"].version) == ("autoattack", "rand")
    assert attacks["aa_standard"].version == "standard"
    assert attacks["square"].votes > 1
    assert (attacks["pgd_eot"].steps, attacks["pgd_eot"].eot, attacks["pgd_eot"].start) == (200, 20, "zero")
    assert all(attacks[name].eot > 1 for name in ("fgsm", "pgd20", "cw50"))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_t_interval_equals_scipys(level):
    values = [0.1, 0.4, 0.35]
    expected = stats.t.interval(level, 2, np.mean(values), stats.sem(values))
    assert t_interval(values, level) == pytest.approx(expected, abs=1e-12)
    assert t_interval([0.2, 0.2]) == (0.2, 0.2)
    assert np.isnan(t_interval([0.2, float("nan")])).all()

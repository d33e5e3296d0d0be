"""Models that answer at random: what they meet, what their randomness is worth, and what unseen attacks leave of them."""

import re
import sys
from dataclasses import replace
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import APGD, FGSM, PGD, PGDEOT, AutoAttack, StAdv, Threat
from robustlib.data import Dataset, Split
from robustlib.errors import InputError
from robustlib.evaluation import StochasticProtocol, evaluate, evaluate_run, standard_attacks, stochastic_protocol
from robustlib.evaluation.measurements import measure_unseen
from robustlib.evaluation.metrics import predict, summarise
from robustlib.evaluation.protocols import UnseenStrengths, adaptive_attacks, unseen_attacks, unseen_strengths
from robustlib.evaluation.schedule import compatible_attacks
from robustlib.evaluation.stochastic import (
    Vote,
    check_plateau,
    draw_statistics,
    eot_curve,
    fixed_accuracies,
    last_step,
    measure_randomness,
    vote,
    with_plateau,
)
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.runs import Run, read_json, save_weights, write_json
from robustlib.training import fit
from robustlib.workbook import cli, tables
from robustlib.workbook.claims import Claim, evaluate_claims, gather, measure_of, variant_of
from robustlib.workbook.experiments import Options, measure_claimed
from tests.workbook.test_cli import outcome

THREAT = Threat("linf", 0.2)
TINY = StochasticProtocol(
    images=6,
    pgd_eot=(2, 2),
    autoattack=(1, 2),
    stadv=(1, 2),
    queries=2,
    votes=2,
    curve=4,
    full=(3, 2),
    bpda=(1, 3),
    defence=5,
)


class Coin(nn.Module):
    """Right with probability `p` in each draw of each image, whatever the image is."""

    stochastic = True

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        heads = self.p - torch.rand(len(x)) + 0 * x.flatten(1).sum(1)
        return torch.stack([heads, -heads], 1)


class Noisy(nn.Module):
    """A linear model of two classes, margin w x + b for class 0, with Gaussian noise on the margin alone."""

    def __init__(self, sigma: float = 0.5, shift: float | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("w", torch.randn(16, generator=generator) / 2)
        self.sigma, self.shift, self.stochastic = sigma, shift, shift is None

    def margin(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.get_buffer("w") + 0.5

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x)) if self.shift is None else self.shift
        margin = self.margin(x) + self.sigma * noise
        return torch.stack([margin, 0 * margin], 1)

    def fixed(self, seed: int) -> "Noisy":
        shift = float(torch.randn((), generator=torch.Generator().manual_seed(seed)))
        return Noisy(self.sigma, shift)


def images(n: int, low: int = 64, high: int = 192) -> Split:
    """Images of class 0 that no clipping touches within 0.2."""
    grey = torch.randint(low, high, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Split(grey, torch.zeros(n, dtype=torch.int64), torch.arange(n))


def phi(z: Tensor) -> np.ndarray:
    return np.array([0.5 * (1 + erf(value / sqrt(2))) for value in z.tolist()])


# ---- what the same draws say, counted otherwise


@pytest.mark.parametrize("mixed", [False, True])
def test_draws_are_counted_as_written_out(mixed):
    """Restated with loops: chosen by the odd draws of the image and of all images, counted on the even ones; or the single attack
    that leaves less, on all draws."""
    rng, n = np.random.default_rng(0), 40
    shares = {"clean": [0.9] * n, "strong": [0.3] * n} | {f"weak {k}": [0.5] * n for k in range(9)}
    if mixed:  # each attack is the strong one on half of the images
        shares = {"clean": [0.9] * n, "a": [0.1, 0.7] * (n // 2), "b": [0.7, 0.1] * (n // 2)}
    names = tuple(shares)
    base: dict[str, Any] = {"label": 0, "surrogate": "", "component": "", "eps": 0.2, "valid": True}
    rows = [
        base
        | {"index": i, "attack": attack, "draw": draw, "prediction": int(rng.random() > p[i]), "margin": rng.normal()}
        for i in range(n)
        for attack, p in shares.items()
        for draw in range(20)
    ]
    found = draw_statistics(pd.DataFrame(rows))
    right = {(r["index"], r["attack"], r["draw"]): r["prediction"] == 0 for r in rows}
    margin = {(r["index"], r["attack"], r["draw"]): r["margin"] for r in rows}
    odd = range(1, 20, 2)
    overall = {a: np.mean([right[i, a, d] for i in range(n) for d in odd]) for a in names}
    single = {a: [[right[i, a, d] for d in range(20)] for i in range(n)] for a in names}
    chosen = []
    for i in range(n):
        sums = {a: overall[a] + np.mean([right[i, a, d] for d in odd]) for a in names}
        attack = min(names, key=lambda a: (sums[a], np.mean([margin[i, a, d] for d in odd])))
        chosen.append([right[i, attack, d] for d in range(0, 20, 2)])
    attacked = min([chosen, *single.values()], key=lambda stood: float(np.mean(stood)))
    assert (attacked is chosen) is mixed
    for kind, stood in (("clean", single["clean"]), ("attacked", attacked)):
        expected = [sum(map(np.mean, stood)), sum(one[0] for one in stood), sum(all(one[:10]) for one in stood)]
        mine = [found[kind][name]["correct"] for name in ("expected", "single", "worst")]
        assert mine == pytest.approx(expected)
    lost = [one for one in attacked if not one[0]]
    again = 1 - np.mean([np.mean(one[1:]) for one in lost])
    assert (found["successes"], found["repeated"]) == (len(lost), pytest.approx(again))
    worst = summarise(pd.DataFrame(rows)).iloc[-1]
    assert found["attacked"]["expected"]["correct"] == pytest.approx(worst["correct"]), "the headline, and no other"


def test_too_few_draws_to_take_the_worst_of():
    few = evaluate(Coin(0.9), images(5), {}, draws=4)
    assert draw_statistics(few, draws=2)["draws"] == 2
    with pytest.raises(InputError, match="The worst of 10 draws needs 20"):
        draw_statistics(few)
    with pytest.raises(InputError, match="evaluate a stochastic model"):
        draw_statistics(few.iloc[:0])
    assert draw_statistics(evaluate(Coin(1.0), images(5), {}))["repeated"] is None, "nothing failed"


# ---- fixed randomness


def test_a_fixed_draw_is_attacked_and_judged_by_itself():
    model, split = Noisy(), images(200)
    x = split.images.float() / 255
    rows = fixed_accuracies(model, split, THREAT, TINY, seeds=(0, 3))
    taken = THREAT.eps * float(model.get_buffer("w").abs().sum())
    for row in rows:
        margin = model.margin(x) + model.sigma * float(model.fixed(row["seed"]).shift or 0)
        assert row["clean"]["correct"] == int((margin > 0).sum())
        assert row["attacked"]["correct"] == int((margin - taken > 0).sum())
    assert rows[0]["attacked"] != rows[1]["attacked"], "another draw"
    assert 0 < rows[0]["attacked"]["correct"] < rows[0]["clean"]["correct"]


def test_gradient_samples_change_nothing_where_noise_does_not_turn_the_gradient():
    model, split = Noisy(), images(300)
    taken = THREAT.eps * float(model.get_buffer("w").abs().sum())
    expected = phi((model.margin(split.images.float() / 255) - taken) / model.sigma).mean()
    curve = eot_curve(model, split, THREAT, [(4, 1), (4, 5)])
    assert [(point["steps"], point["samples"]) for point in curve] == [(4, 1), (4, 5)]
    assert [point["accuracy"] for point in curve] == pytest.approx([expected, expected], abs=0.02)


def test_a_single_draw_of_a_stochastic_model_is_no_evaluation():
    with pytest.raises(InputError, match=r"fix its randomness with a seed: model.fixed\(seed\)"):
        evaluate(Noisy(), images(4), {}, draws=1)


# ---- a vote of many draws


class Backward(Noisy):
    """Noisy, with a surrogate "bpda" that has its answers and its gradients, and counts what it is asked."""

    draws_by_example = True

    def __init__(self, sigma: float) -> None:
        super().__init__(sigma)
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return super().forward(x)

    def surrogates(self) -> dict[str, nn.Module]:
        return {"bpda": Noisy(self.sigma), "other": Noisy(self.sigma)}


def test_a_vote_is_the_mean_of_the_draws_in_batches_that_memory_holds(monkeypatch):
    monkeypatch.setattr("robustlib.attacks.base.PIECE", 16 * 40)
    model, x = Backward(0.5), images(8).images.float() / 255
    model.train()
    torch.manual_seed(5)
    logits = Vote(model, 150)(x)
    torch.manual_seed(5)
    model.forward(x[:1])
    rounds = [model.forward(x.repeat(5, 1, 1, 1)).view(5, 8, 2) for _ in range(30)]
    assert torch.allclose(logits, torch.cat(rounds).mean(0), atol=1e-6)
    assert max(model.asked) == 40, "5 draws of 8 images at a time"
    assert model.training, "left as it was"
    assert not getattr(Vote(model, 150), "stochastic", False)
    with pytest.raises(InputError, match="Vote draws=0: give a whole number of at least 1"):
        Vote(model, 0)


def test_bpda_is_answered_by_a_vote_that_noise_hardly_moves():
    """With 400 draws the noise of 2 on the margin is 0.1, so a linear model's margin alone decides; a single draw would flip many."""
    model, split, budget = Backward(2.0), images(300), replace(TINY, bpda=(4, 2), defence=400)
    margin = model.margin(split.images.float() / 255)
    taken = THREAT.eps * float(model.get_buffer("w").abs().sum())
    found = vote(model, split, THREAT, budget)
    assert found["draws"] == 400
    assert repr(PGDEOT(THREAT, 4, 2)) in found["protocol"]
    for kind, left in (("clean", margin), ("attacked", margin - taken)):
        assert found[kind]["accuracy"] == pytest.approx(phi(left / 0.1).mean(), abs=0.02)
        assert found[kind]["n"] == 300
        assert found[kind]["low"] < found[kind]["accuracy"] < found[kind]["high"]
        assert abs(phi(left / 2).mean() - phi(left / 0.1).mean()) > 0.05, "or the test could not fail"
    assert vote(Noisy(), split, THREAT, budget) == {}, "nothing is differentiated straight through"


# ---- budgets


def test_a_preset_says_what_randomised_models_meet():
    budget = stochastic_protocol("digits")
    assert (budget.images, budget.pgd_eot, budget.autoattack) == (128, (40, 8), (20, 8))
    assert (budget.stadv, budget.queries, budget.full) == ((40, 8), 1000, (200, 20))
    assert (budget.bpda, budget.defence) == ((40, 8), 150)
    assert (StochasticProtocol().bpda, StochasticProtocol().defence) == ((50, 15), 150), "Hill et al."
    assert budget.curve * 2 * budget.defence <= 128 * 150, "clean and attacked images are voted on"
    assert [stochastic_protocol(name) for name in ("cifar10-paper", "", None)] == [StochasticProtocol()] * 3
    attacks = standard_attacks(THREAT, stochastic=True, protocol=budget)
    assert attacks["pgd_eot"] == PGDEOT(THREAT, 40, 8)
    assert attacks["autoattack"] == AutoAttack(THREAT, version="rand", steps=20, eot=8, queries=1000)
    first = attacks["autoattack"].components(10)["apgd-dlr"]
    assert first == APGD(THREAT, 20, "dlr", eot=8)
    assert (attacks["square"].queries, attacks["square"].votes) == (1000, 4)
    assert {part.steps for name, part in attacks["aa_standard"].components(10).items() if name != "square"} == {20}
    assert unseen_strengths("digits").l2 == 0.6
    assert unseen_strengths("cifar10-paper") == UnseenStrengths(l2=0.5, flow=0.8)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"pgd_eot": (40, 0)}, r"pgd_eot=\(40, 0\): give steps and gradient samples \(EOT\), each at least 1"),
        ({"queries": 0}, "queries=0"),
        ({"defence": 0}, "defence=0"),
        ({"bpda": (0, 1)}, r"bpda=\(0, 1\)"),
        ({"stadv": (3,)}, r"stadv=\(3,\)"),
        ({"l2": 0.0}, "l2=0.0: give a number above 0"),
    ],
)
def test_budgets_below_one_are_refused(budget, said):
    with pytest.raises(InputError, match=said):
        (UnseenStrengths if "l2" in budget else StochasticProtocol)(**budget)


def test_a_misspelt_budget_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("robustlib.evaluation.protocols.PRESETS", tmp_path)
    (tmp_path / "odd.yaml").write_text("randomised: {imags: 3}\nunseen: {l3: 1}\n")
    with pytest.raises(InputError, match=r"Unknown entry of randomised in odd\.yaml 'imags'\. Did you mean 'images'"):
        stochastic_protocol("odd")
    with pytest.raises(InputError, match=r"unseen in odd\.yaml 'l3'"):
        unseen_strengths("odd")


def test_random_views_meet_what_averages_and_others_what_does_not():
    attacks = adaptive_attacks(THREAT, True, TINY)
    assert list(compatible_attacks(attacks, Noisy())) == ["pgd_eot"]
    assert list(compatible_attacks(attacks, Noisy(shift=0.0))) == ["pgd20", "aa_standard"]
    alone = {"pgd": PGD(THREAT)}
    assert compatible_attacks(alone, Noisy()) == alone, "better than nothing"


# ---- the plateau


@pytest.mark.parametrize(("full", "taken"), [(0.50, False), (0.4999, True), (0.6, False)])
def test_a_lower_plateau_becomes_the_headline_beyond_three_points(full, taken):
    rows = [{"attack": "clean", "accuracy": 0.9}, {"attack": "worst", "accuracy": 0.53, "protocol": "all"}]
    told = with_plateau({"rows": rows, "n": 128}, {"attack": "pgd_eot", "accuracy": full, "protocol": "PGD(200)"})
    headline = told["rows"][-1]
    assert (headline["attack"], headline["accuracy"]) == ("worst", full if taken else 0.53)
    assert told["plateau"]["taken"] is taken
    assert (told["plateau"]["full"]["accuracy"], told["plateau"]["worst"]["accuracy"]) == (full, 0.53), "both are kept"
    assert ("leaves 53.0 %" in headline["protocol"]) is taken
    assert rows[-1]["accuracy"] == 0.53, "the results that were given stay"


@pytest.mark.parametrize(
    ("n", "lost", "noise", "verdict"),
    [(400, 0.0, 0.1, "flat"), (400, 0.06, 0.1, "falling"), (16, 0.02, 0.2, "unclear"), (400, 0.012, 0.05, "flat")],
)
def test_the_last_step_of_a_curve_is_judged_by_its_interval(n, lost, noise, verdict):
    """Paired: that the images differ among themselves costs nothing. A step that surely loses some, but less than 3 points, is flat."""
    generator = np.random.default_rng(0)
    before = generator.uniform(size=n)
    after = before - lost + noise * generator.standard_normal(n)
    after += before.mean() - lost - after.mean()
    step = last_step([{"stood": [1.0] * n}, {"stood": before.tolist()}, {"stood": after.tolist()}])
    assert step["lost"] == pytest.approx(lost)
    half = 1.96 * noise / np.sqrt(n)
    assert (step["low"], step["high"]) == pytest.approx((lost - half, lost + half), abs=half / 2)
    assert step["verdict"] == verdict


def test_words_on_the_plateau():
    def curve(points: list[tuple[int, int, float]], *last: Any) -> dict[str, Any]:
        told = [
            {"steps": k, "samples": s, "n": 64, "accuracy": p, "low": p - 0.1, "high": p + 0.1} for k, s, p in points
        ]
        return {"points": told, "last": dict(zip(("lost", "low", "high", "verdict"), last, strict=True))}

    grid = {"samples": curve([(40, 20, 0.41), (40, 50, 0.415)], -0.005, -0.02, 0.01, "flat")}
    grid["steps"] = curve([(100, 8, 0.44), (200, 8, 0.4)], 0.04, 0.01, 0.07, "falling")
    said = tables.plateau_summary({"plateau": grid})
    assert "with 40 steps of 50 gradient samples PGD+EOT leaves 41.5 % (31.5–51.5) of 64 images" in said
    assert "−0.5 points (−2.0 to 1.0) less than with 20: flat" in said
    assert "with 200 steps of 8 gradient samples PGD+EOT leaves 40.0 %" in said
    assert "4.0 points (1.0 to 7.0) less than with 100: still falling" in said
    assert tables.plateau_summary({}) == tables.plateau_summary({"plateau": {"full": {}}}) == ""


# ---- runs


@pytest.fixture(scope="module")
def runs(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A plain run, and one of the same classifier behind an untrained purifier."""
    root = tmp_path_factory.mktemp("runs")
    made = {}
    for name, seed in (("plain", 0), ("pure", 1)):
        recipe = make_method("standard", "digits", arch="mlp", epochs=1, train_examples=200)
        made[name] = fit(recipe, digits, root=root, seed=seed, device="cpu", progress=False)
    options = {"purified": {"purifier": "gan", "transform": "rt2", "sigma": 0.1, "grid": 4, "width": 2}}
    model = build_model("mlp", digits, **options)
    model.load_state_dict(made["pure"].model().state_dict(), strict=False)
    model.deploy()
    for file in ("model.safetensors", "last.safetensors"):
        save_weights(model, made["pure"].path / file)
    write_json(made["pure"].path / "params.json", made["pure"].params() | {"model": options})
    return made


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What models have been asked to judge."""
    given: list[Any] = []
    monkeypatch.setattr("robustlib.evaluation.schedule.predict", lambda *some: given.append(some) or predict(*some))
    return given


@pytest.fixture
def evaluated(runs: dict[str, Run], digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """Both, evaluated within a tiny budget."""
    monkeypatch.setattr("robustlib.evaluation.measurements.stochastic_protocol", lambda preset: TINY)
    quick = AutoAttack(digits.threat, "custom", (("apgd-ce", APGD(digits.threat, steps=2)),))
    deterministic = {"fgsm": FGSM(digits.threat), "pgd20": PGD(digits.threat, steps=2), "cw50": FGSM(digits.threat)}
    deterministic["autoattack"] = quick
    real = standard_attacks

    def attacks(threat: Threat, stochastic: bool = False, budget: StochasticProtocol = TINY) -> Any:
        return real(threat, True, budget) if stochastic else deterministic

    monkeypatch.setattr("robustlib.evaluation.protocols.standard_attacks", attacks)
    monkeypatch.setattr("robustlib.evaluation.runs.EPS_MULTIPLES", (0, 1))
    monkeypatch.setattr("robustlib.evaluation.runs.STEPS", (0, 1))
    monkeypatch.setattr("robustlib.evaluation.stochastic.PLATEAU_STEPS", (1, 2, 4))
    for module in ("runs", "protocols"):
        monkeypatch.setattr(f"robustlib.evaluation.{module}.EOT", 2)
    for run in runs.values():
        evaluate_run(run, digits, n=8, device="cpu")
    return runs


def test_a_randomised_run_is_evaluated_within_its_budget(evaluated, digits, monkeypatch):
    run = evaluated["pure"]
    results = run.results()
    assert (results["n"], results["budget"], evaluated["plain"].results()["n"]) == (6, TINY.facts(), 8)
    assert "budget" not in evaluated["plain"].results()
    rows = {row["attack"]: row["protocol"] for row in results["rows"]}
    assert repr(PGDEOT(digits.threat, 2, 2)) == rows["pgd_eot"]
    assert "version='rand'" in rows["autoattack"]
    assert "eot=2, steps=1, queries=2" in rows["autoattack"]
    views = {name for name in rows if "@" in name}
    assert {"pgd_eot@bpda", "pgd_eot@unclipped", "pgd20@classifier", "aa_standard@classifier"} <= views
    assert not views & {"pgd20@bpda", "aa_standard@bpda", "pgd_eot@classifier", "cw50@bpda"}
    for name in ("pgd_eot@bpda", "aa_standard@classifier"):
        view = name.split("@")[1]
        assert rows[name].endswith(f", searched on the surrogate {view}, judged by the deployed model")
    found = read_json(run.path / "randomness.json")
    assert [row["seed"] for row in found["fixed"]] == [0, 1, 2]
    assert [(row["steps"], row["samples"]) for row in found["eot"]] == [(2, 1), (2, 5), (2, 20)]
    assert (found["vote"]["draws"], found["vote"]["attacked"]["n"]) == (5, 4)
    assert repr(PGDEOT(digits.threat, 1, 3)) in found["vote"]["protocol"]
    assert not any("mean logits" in row["protocol"] for row in results["rows"]), "never part of the headline"
    assert found["attacked"]["single"]["n"] == found["clean"]["worst"]["n"] == 6
    table = tables.randomness(results, found)
    assert {
        "BPDA + EOT with 1 step of 3 gradient samples, 4 images, answered by a vote of 5 draws",
        "PGD+EOT with 2 steps of 20 gradient samples, 4 images",
        "mean over fresh draws",
        "a single draw",
        "worst of 10 draws",
        "draw fixed by seed 2, known to the attacker",
    } <= set(table.index)
    assert any(name.startswith("weak: ") and "classifier" in name for name in table.index)
    monkeypatch.setattr("robustlib.evaluation.stochastic.draw_statistics", lambda *_: 1 / 0)
    assert (evaluate_run(run, digits, n=8, device="cpu"), measure_randomness(run, digits)) == (results, found)
    with pytest.raises(InputError, match="answers the same each time"):
        measure_randomness(evaluated["plain"], digits)


def test_the_plateau_is_checked_once(evaluated, digits, monkeypatch, judged):
    run = evaluated["pure"]
    write_json(run.path / "results.json", {name: value for name, value in run.results().items() if name != "plateau"})
    before, known = run.results(), measure_randomness(run, digits, device="cpu")["eot"]
    assert {point["n"] for point in known} == {4}, "too few images for the plateau, which asks again"
    asked: list[str] = []

    def interrupted(*arguments: Any, **settings: Any) -> pd.DataFrame:
        asked.append(re.sub("-[0-9a-f]{8}", "", settings["state"].name))
        if asked[-1] == "plateau-4x2":
            raise KeyboardInterrupt
        return evaluate(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("robustlib.evaluation.stochastic.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check_plateau(run, digits, device="cpu")
    points = ["2x1", "2x5", "2x20", "2x50", "1x2", "2x2", "4x2"]
    assert asked == ["plateau", *(f"plateau-{point}" for point in points)]
    assert run.results() == before, "nothing is stored by halves"
    judged.clear()
    results = check_plateau(run, digits, device="cpu")
    assert results == run.results()
    assert len(judged) == 2, "clean and attacked images of the point that was missing"
    plateau = results["plateau"]
    assert [point["samples"] for point in plateau["samples"]["points"]] == [1, 5, 20, 50]
    assert [(point["steps"], point["samples"]) for point in plateau["steps"]["points"]] == [(1, 2), (2, 2), (4, 2)]
    for curve in (plateau["samples"], plateau["steps"]):
        assert (curve["last"], {point["n"] for point in curve["points"]}) == (last_step(curve["points"]), {6})
        assert all(np.mean(point["stood"]) == pytest.approx(point["accuracy"], abs=1e-3) for point in curve["points"])
        assert all(point["low"] < point["high"] for point in curve["points"])
    assert (plateau["full"]["protocol"], plateau["full"]["n"]) == (repr(PGDEOT(digits.threat, 3, 2)), 6)
    assert not run.evaluation.exists()
    monkeypatch.setattr("robustlib.evaluation.stochastic.evaluate", lambda *_, **__: 1 / 0)
    assert check_plateau(run, digits, device="cpu") == results
    index = tables.randomness(results, measure_randomness(run, digits)).index
    for words in ("2 steps of 50", "1 step of 2", "4 steps of 2"):
        assert f"PGD+EOT with {words} gradient samples, 6 images" in index
    verdict = "its number is the headline" if plateau["taken"] else "the headline stands"
    assert [name for name in index if "full strength" in name] == [f"PGD+EOT at full strength: {verdict}"]
    assert evaluate_run(run, digits, n=8, device="cpu") == results, "it stays with the results"


def test_what_was_already_at_full_strength_is_not_attacked_again(evaluated, digits, monkeypatch):
    run = evaluated["pure"]
    kept = run.results()
    write_json(run.path / "results.json", {name: value for name, value in kept.items() if name != "plateau"})
    monkeypatch.setattr(
        "robustlib.evaluation.measurements.stochastic_protocol", lambda _: replace(TINY, full=TINY.pgd_eot)
    )
    monkeypatch.setattr("robustlib.evaluation.stochastic.evaluate", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("robustlib.evaluation.stochastic.eot_curve", lambda *a, **_: [{"stood": [1.0]} for _ in a[3]])
    plateau = check_plateau(run, digits, device="cpu")["plateau"]
    assert plateau["full"] == next(row for row in kept["rows"] if row["attack"] == "pgd_eot")
    assert not plateau["taken"]
    write_json(run.path / "results.json", kept)


def test_what_randomness_is_worth_goes_on_where_it_was_interrupted(evaluated, digits, monkeypatch, judged):
    run, seen = evaluated["pure"], []
    known = measure_randomness(run, digits, device="cpu")
    (run.path / "randomness.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("robustlib.evaluation.stochastic.vote", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure_randomness(run, digits, device="cpu", progress=seen.append)
    assert seen, "progress is told"
    judged.clear()
    assert measure_randomness(run, digits, device="cpu") == known
    assert len(judged) == 2, "clean and attacked images of the vote: all before it was kept"
    assert not (run.path / "randomness").exists()


def test_the_command_line_checks_the_plateau_and_tells_what_randomness_is_worth(evaluated, monkeypatch, capsys):
    monkeypatch.setattr(cli.out, "width", 250)
    code, out, err = outcome(capsys, "evaluate", evaluated["pure"].path, "--plateau")
    assert (code, err) == (0, "")
    plateau = "Plateau (flat: the last step surely loses less than 3 points): with 2 steps of 50"
    assert all(part in out for part in ("What its randomness is worth", "PGD+EOT at full strength", plateau))
    assert "plateau" in evaluated["pure"].results()
    code, _, err = outcome(capsys, "evaluate", evaluated["plain"].path, "--plateau")
    assert code == 2
    assert "answers the same each time" in err


# ---- unseen attacks


def test_a_study_measures_what_its_claims_need(evaluated, monkeypatch, tmp_path):
    """The pages of other methods than AToP's measure no unseen attacks, and a claim would wait for them forever."""
    asked: list[tuple[Path, str, str]] = []

    def measure(runs: dict[str, Run], data: Dataset, *, device: str) -> None:
        (run,) = runs.values()
        asked.append((run.path, data.name, device))
        if run.params()["seed"] == 1:
            raise InputError("not on these images.")

    monkeypatch.setattr(sys.modules["robustlib.workbook.experiments.jobs"], "measure_unseen", measure)
    variant, other = variant_of(evaluated["plain"]), looked(tmp_path, "pgd_at", 0, l2=0.5)
    told = Claim(name="c", text="A claim.", source="a test", measure="unseen/l2", variant=variant, than="trades")
    runs, options = [*evaluated.values(), other, Run(tmp_path / "none")], Options(device="cpu")
    (problem,) = measure_claimed([told], runs, options)
    assert asked == [(run.path, "digits", "cpu") for run in evaluated.values()], "of claimed variants, and evaluated"
    assert problem.endswith("has not met unseen attacks: not on these images.")
    assert not measure_claimed([replace(told, measure="worst")], runs, options)
    assert len(asked) == 2


def test_the_command_line_measures_unseen_attacks(evaluated, monkeypatch, capsys):
    monkeypatch.setattr("robustlib.evaluation.measurements.unseen_attacks", quick_unseen)
    monkeypatch.setattr(cli.out, "width", 250)
    code, out, err = outcome(capsys, "evaluate", evaluated["plain"].path, "--unseen", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "Known and unseen attacks" in out
    assert "lost to StAdv" in out


def test_unseen_attacks_of_any_run_beside_the_known_ones(evaluated, digits, monkeypatch):
    monkeypatch.setattr("robustlib.evaluation.measurements.unseen_attacks", quick_unseen)
    table = measure_unseen(evaluated, digits, device="cpu")
    assert table["run"].unique().tolist() == ["plain", "pure"]
    assert table.groupby("run")["attack"].agg(list).tolist() == [["clean", "known", "l2", "stadv"]] * 2
    assert set(table["n"]) == {6}, "the same images for all"
    for name, run in evaluated.items():
        rows = table[table["run"] == name].set_index("attack")
        mine = run.records()
        mine = mine[mine["index"].isin(digits.test.sample(6).indices.tolist())]
        known = summarise(mine)["accuracy"].iloc[-1]
        assert rows.loc["known", "accuracy"] == known
        assert rows["loss"].tolist() == pytest.approx([known - share for share in rows["accuracy"]])
        assert measure_of(run, "unseen/stadv") == rows.loc["stadv", "accuracy"]
        assert measure_of(run, "unseen/known") == known
        assert measure_of(run, "unseen/loss/l2") == pytest.approx(known - rows.loc["l2", "accuracy"])
        assert "l2" in rows.loc["l2", "protocol"]
        assert rows.loc["stadv", "protocol"].startswith("StAdv(bound=0.2")
    looks = {name: list(read_json(run.path / "unseen.json").values())[-1] for name, run in evaluated.items()}
    assert looks["plain"]["bare"] == {}
    bare = evaluated["pure"].model().surrogates()["classifier"]
    (batch,) = digits.test.sample(6).batches(6)
    right = float((bare(batch.x).argmax(1) == batch.y).float().mean())
    assert looks["pure"]["bare"]["accuracy"] == pytest.approx(right)
    price = measure_of(evaluated["pure"], "unseen/price")
    assert price == pytest.approx(right - measure_of(evaluated["pure"], "unseen/clean"))
    with pytest.raises(InputError, match="Unknown accuracy under unseen attacks 'price'"):
        measure_of(evaluated["plain"], "unseen/price")
    shown = tables.unseen(table)
    assert list(shown.columns)[-3:] == ["lost to L2", "lost to StAdv", "images"]
    monkeypatch.setattr("robustlib.evaluation.measurements.evaluate", lambda *_, **__: 1 / 0)
    pd.testing.assert_frame_equal(measure_unseen(evaluated, digits, device="cpu"), table)
    with pytest.raises(InputError, match=r"not evaluated on all of these 7 images.*--examples 7"):
        measure_unseen({"pure": evaluated["pure"]}, digits, n=7)
    plain, pure = evaluated["plain"], evaluated["pure"]
    results = plain.results()
    write_json(plain.path / "results.json", results | {"n": 5})
    with pytest.raises(ZeroDivisionError):
        measure_unseen(evaluated, digits, device="cpu")  # on fewer images
    write_json(plain.path / "results.json", results)
    taken = {"n": 6, "correct": 0.0, "accuracy": 0.0, "low": 0.0, "high": 0.4, "protocol": "PGDEOT"}
    write_json(pure.path / "results.json", pure.results() | {"plateau": {"full": taken, "taken": True}})
    monkeypatch.setattr("robustlib.evaluation.measurements.evaluate", evaluate)
    lower = measure_unseen({"pure": pure}, digits, device="cpu").set_index("attack")
    assert lower.loc["known", "accuracy"] == 0.0, "the headline after its plateau check"
    with pytest.raises(InputError, match="no runs to measure"):
        measure_unseen({}, digits)


def quick_unseen(unseen: UnseenStrengths, stochastic: bool, budget: StochasticProtocol) -> dict[str, Any]:
    """As they are, but without what a deterministic model makes costly."""
    kinds = unseen_attacks(unseen, stochastic, budget)
    return kinds if stochastic else kinds | {"l2": {"pgd": PGD(Threat("l2", unseen.l2), steps=2)}}


def test_the_unseen_attacks_have_the_strengths_of_the_preset():
    threat = Threat("l2", 0.6)
    assert unseen_attacks(UnseenStrengths(l2=0.6, flow=0.2), True, TINY) == {
        "l2": {"pgd_eot": PGDEOT(threat, 2, 2), "autoattack": AutoAttack(threat, version="rand", steps=1, eot=2)},
        "stadv": {"stadv": StAdv(0.2, 1, eot=2)},
    }
    assert unseen_attacks(UnseenStrengths(l2=0.6, flow=0.2), False, TINY) == {
        "l2": {"autoattack": AutoAttack(threat, queries=2)},
        "stadv": {"stadv": StAdv(0.2, 1)},
    }


def looked(root: Path, variant: str, seed: int, **accuracies: float) -> Run:
    """A finished run, whose unseen.json has these accuracies."""
    method, _, changed = variant.partition(" ")
    run = Run(root / "digits" / method / f"{changed}-{seed}")
    write_json(run.path / "params.json", {"method": method, "changed": changed, "dataset": "digits", "seed": seed})
    write_json(run.path / "status.json", {"state": "done"})
    facts = {"n": 100, "split": "test", "seed": 0, "strengths": {"l2": 0.6, "flow": 0.2}, "images": "a"}
    rows = {name: {"accuracy": share} for name, share in accuracies.items()}
    write_json(run.path / "unseen.json", {"old": {**facts, "n": 3}, "last": {**facts, "accuracies": rows}})
    return run


def claim(measure: str, direction: Any = "higher") -> Claim:
    facts = {"name": "c", "text": "A claim.", "source": "a test", "variant": "a", "than": "b"}
    return Claim(**facts, measure=measure, direction=direction)


def test_claims_on_unseen_attacks_pair_runs_by_seed(tmp_path):
    runs = [looked(tmp_path, "a", s, clean=0.9, known=0.5 + s / 10, l2=0.4, stadv=0.3) for s in (0, 1)]
    runs += [looked(tmp_path, "b", s, clean=0.8, known=0.7, l2=0.2, stadv=0.25) for s in (0, 1)]
    expected = {"unseen/l2": [0.2, 0.2], "unseen/stadv": [0.05, 0.05], "unseen/clean": [0.1, 0.1]}
    expected |= {"unseen/known": [-0.2, -0.1], "unseen/loss/l2": [-0.4, -0.3], "unseen/loss/stadv": [-0.25, -0.15]}
    for measure, differences in expected.items():
        evidence = gather(claim(measure), runs, [0, 1])
        assert (list(evidence.differences.values()), evidence.step) == (pytest.approx(differences), 0.01)
        assert not evidence.missing
    with pytest.raises(InputError, match=r"Unknown accuracy under unseen attacks 'l3'\. Did you mean 'l2'"):
        measure_of(runs[0], "unseen/l3")
    row = tables.claims(evaluate_claims([claim("unseen/loss/stadv", "lower")], runs, [0, 1])).iloc[0]
    assert row["compared"] == "a − b: known attacks, worst case, less unseen: StAdv"


def test_claims_say_where_one_arm_answers_at_random(tmp_path):
    runs = [looked(tmp_path, variant, s, clean=0.9, known=0.5, l2=0.4) for variant in "ab" for s in (0, 1)]
    assert not gather(claim("unseen/l2"), runs, [0, 1]).notes
    for run in runs:
        looks = read_json(run.path / "unseen.json")
        looks["last"]["accuracies"]["l2"]["protocol"] = "PGD+EOT" if "/a/" in str(run.path) else "AutoAttack"
        write_json(run.path / "unseen.json", looks)
    for measure in ("unseen/l2", "unseen/known"):
        (note,) = gather(claim(measure), runs, [0, 1]).notes
        assert note.startswith("a model that answers at random met shorter attacks")
    assert not gather(claim("unseen/clean"), runs, [0, 1]).notes


def test_unseen_looks_of_other_images_or_strengths_are_not_paired(tmp_path):
    runs = [looked(tmp_path, variant, s, known=0.5, l2=0.4) for variant in "ab" for s in (2, 1, 0)]
    *usual, bare = runs
    (bare.path / "unseen.json").unlink()
    (missing,) = gather(claim("unseen/l2"), runs, [0, 1, 2]).missing
    assert missing == "seed 0: b has not met unseen attacks"
    with pytest.raises(InputError, match=r"robustlib evaluate .* --unseen"):
        measure_of(bare, "unseen/l2")
    other = looked(tmp_path / "o", "b", 0, known=0.5, l2=0.4)
    looks = read_json(other.path / "unseen.json")
    write_json(other.path / "unseen.json", {"x": looks["last"] | {"strengths": {"l2": 0.9}}})
    (missing,) = gather(claim("unseen/l2"), [*usual, other], [0, 1, 2]).missing
    assert "b was judged otherwise (attack {'l2': 0.9} and not {'l2': 0.6, 'flow': 0.2})" in missing

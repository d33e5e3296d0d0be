"""Models that answer at random: what they meet, what their randomness is worth, and what unseen attacks leave of them."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import norm
from torch import Tensor, nn

from robustlib.attacks import APGD, FGSM, PGD, PGDEOT, AutoAttack, StAdv, Threat
from robustlib.data import Split
from robustlib.errors import InputError
from robustlib.evaluation import evaluate, evaluate_run, measure_unseen, protocols, stochastic, summarise
from robustlib.evaluation.metrics import predict
from robustlib.evaluation.protocols import StochasticProtocol, UnseenStrengths, standard_attacks
from robustlib.methods import make_method
from robustlib.models import build_model
from robustlib.runs import Run, read_json, save_weights, write_json
from robustlib.training import fit
from robustlib.workbook import cli, tables
from tests.training_fixtures import altered

THREAT = Threat("linf", 0.2)
PAIRS = {"pgd_eot": (2, 2), "autoattack": (1, 2), "stadv": (1, 2), "full": (3, 2), "bpda": (1, 3)}
TINY = StochasticProtocol(images=6, queries=2, votes=2, curve=4, defence=5, **PAIRS)


class Noisy(nn.Module):
    """A linear model of two classes, margin w x + b for class 0, with Gaussian noise on the margin alone."""

    def __init__(self, sigma: float = 0.5, shift: float | None = None) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(16, generator=torch.Generator().manual_seed(1)) / 2)
        self.sigma, self.shift, self.stochastic = sigma, shift, shift is None

    def margin(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.w + 0.5

    def margins(self, split: Split) -> tuple[Tensor, Tensor]:
        """Without noise: of clean images and of those that the best attack makes."""
        margin = self.margin(split.images.float() / 255)
        return margin, margin - THREAT.eps * self.w.abs().sum()

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x)) if self.shift is None else self.shift
        margin = self.margin(x) + self.sigma * noise
        return torch.stack([margin, 0 * margin], 1)

    def fixed(self, seed: int) -> "Noisy":
        return Noisy(self.sigma, float(torch.randn((), generator=torch.Generator().manual_seed(seed))))


def images(n: int) -> Split:
    """Images of class 0 that no clipping touches within 0.2."""
    grey = torch.randint(64, 192, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Split(grey, torch.zeros(n, dtype=torch.int64), torch.arange(n))


@pytest.mark.parametrize("mixed", [False, True])
def test_draws_are_counted_as_written_out(mixed):
    """Restated with loops: chosen by the odd draws of the image and of all images, counted on the even ones; or the single attack
    that leaves less, on all draws."""
    rng, n = np.random.default_rng(0), 40
    shares = {"clean": [0.9] * n, "strong": [0.3] * n} | {f"weak {k}": [0.5] * n for k in range(9)}
    if mixed:  # each attack is the strong one on half of the images
        shares = {"clean": [0.9] * n, "a": [0.1, 0.7] * (n // 2), "b": [0.7, 0.1] * (n // 2)}
    right = {a: (rng.random((n, 20)) < np.array(share)[:, None]) for a, share in shares.items()}
    margin = {a: rng.normal(size=(n, 20)) for a in shares}
    base: dict[str, Any] = {"label": 0, "surrogate": "", "component": "", "eps": 0.2, "valid": True}
    index, draw = (grid.ravel() for grid in np.mgrid[:n, :20])
    columns = {a: {"prediction": ~right[a].ravel() * 1, "margin": margin[a].ravel()} for a in shares}
    records = pd.concat([pd.DataFrame(base | {"index": index, "draw": draw, "attack": a} | columns[a]) for a in shares])
    counted = stochastic.draw_statistics(records)
    chosen = []
    for i in range(n):
        sums = {a: right[a][:, 1::2].mean() + right[a][i, 1::2].mean() for a in shares}
        attack = min(shares, key=lambda a: (sums[a], margin[a][i, 1::2].mean()))
        chosen.append(right[attack][i, ::2])
    attacked = min([chosen, *right.values()], key=lambda stood: float(np.mean(stood)))
    assert (attacked is chosen) is mixed
    for kind, stood in (("clean", right["clean"]), ("attacked", attacked)):
        expected = [sum(map(np.mean, stood)), sum(one[0] for one in stood), sum(all(one[:10]) for one in stood)]
        assert [counted[kind][name]["correct"] for name in ("expected", "single", "worst")] == pytest.approx(expected)
    lost = [one for one in attacked if not one[0]]
    again = 1 - np.mean([np.mean(one[1:]) for one in lost])
    assert (counted["successes"], counted["repeated"]) == (len(lost), pytest.approx(again))
    worst = summarise(records).iloc[-1]
    assert counted["attacked"]["expected"]["correct"] == pytest.approx(worst["correct"]), "the headline, and no other"


def test_too_few_draws_to_take_the_worst_of():
    few = evaluate(Noisy(), images(5), {}, draws=19)
    with pytest.raises(InputError, match="The worst of 10 draws needs 20"):
        stochastic.draw_statistics(few)
    with pytest.raises(InputError, match="evaluate a stochastic model"):
        stochastic.draw_statistics(few.iloc[:0])
    assert stochastic.draw_statistics(evaluate(Noisy(0.0), images(5), {}))["repeated"] is None, "nothing failed"


def test_a_fixed_draw_is_attacked_and_judged_by_itself():
    model, split = Noisy(), images(200)
    rows = stochastic.fixed_accuracies(model, split, THREAT, TINY)
    for row in rows:
        for kind, margin in zip(("clean", "attacked"), model.margins(split), strict=True):
            assert row[kind]["correct"] == int((margin + model.sigma * model.fixed(row["seed"]).shift > 0).sum())
    assert rows[0]["attacked"] != rows[1]["attacked"], "another draw"
    assert 0 < rows[0]["attacked"]["correct"] < rows[0]["clean"]["correct"]


def test_gradient_samples_change_nothing_where_noise_does_not_turn_the_gradient():
    model, split = Noisy(), images(300)
    expected = norm.cdf(model.margins(split)[1] / model.sigma).mean()
    curve = stochastic.eot_curve(model, split, THREAT, [(4, 1), (4, 5)])
    assert [(point["steps"], point["samples"]) for point in curve] == [(4, 1), (4, 5)]
    assert [point["accuracy"] for point in curve] == pytest.approx([expected, expected], abs=0.02)


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
    logits = stochastic.Vote(model, 150)(x)
    torch.manual_seed(5)
    model.forward(x[:1])
    rounds = [model.forward(x.repeat(5, 1, 1, 1)).view(5, 8, 2) for _ in range(30)]
    assert torch.allclose(logits, torch.cat(rounds).mean(0), atol=1e-6)
    assert max(model.asked) == 40, "5 draws of 8 images at a time"
    assert model.training, "left as it was"
    assert not getattr(stochastic.Vote(model, 150), "stochastic", False)


def test_bpda_is_answered_by_a_vote_that_noise_hardly_moves():
    """With 400 draws the noise of 2 on the margin is 0.1, so a linear model's margin alone decides; a single draw would flip many."""
    model, split, budget = Backward(2.0), images(300), replace(TINY, bpda=(4, 2), defence=400)
    voted = stochastic.vote(model, split, THREAT, budget)
    assert voted["draws"] == 400
    assert repr(PGDEOT(THREAT, 4, 2)) in voted["protocol"]
    for kind, margin in zip(("clean", "attacked"), model.margins(split), strict=True):
        expected = norm.cdf(margin / 0.1).mean()
        assert (voted[kind]["accuracy"], voted[kind]["n"]) == (pytest.approx(expected, abs=0.02), 300)
        assert abs(norm.cdf(margin / 2).mean() - expected) > 0.05, "or the test could not fail"
    assert stochastic.vote(Noisy(), split, THREAT, budget) == {}, "nothing is differentiated straight through"


def test_a_preset_says_what_randomised_models_meet():
    budget = protocols.stochastic_protocol("digits")
    preset = yaml.safe_load((protocols.PRESETS / "digits.yaml").read_text())
    assert budget.facts() == StochasticProtocol().facts() | preset["randomised"]
    assert (StochasticProtocol().bpda, StochasticProtocol().defence) == ((50, 15), 150), "Hill et al."
    assert [protocols.stochastic_protocol(name) for name in ("cifar10-paper", "", None)] == [StochasticProtocol()] * 3
    attacks = standard_attacks(THREAT, stochastic=True)
    assert list(attacks) == ["fgsm", "pgd20", "cw50", "pgd_eot", "square", "aa_standard", "autoattack"]
    assert (list(standard_attacks(THREAT))[-1], attacks["pgd_eot"]) == ("autoattack", PGDEOT(THREAT, 200, 20))
    assert all(attacks[name].eot > 1 for name in ("fgsm", "pgd20", "cw50"))
    attacks = standard_attacks(THREAT, stochastic=True, protocol=budget)
    assert attacks["pgd_eot"] == PGDEOT(THREAT, 40, 8)
    assert attacks["aa_standard"] == AutoAttack(THREAT, steps=20, eot=8, queries=1000)
    assert attacks["autoattack"] == replace(attacks["aa_standard"], version="rand")
    assert (attacks["square"].queries, attacks["square"].votes) == (1000, 4)
    assert protocols.unseen_strengths("digits").l2 == preset["unseen"]["l2"] == 0.6
    assert protocols.unseen_strengths("cifar10-paper") == UnseenStrengths(l2=0.5, flow=0.8)


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        *(("pgd_eot", (40, 0), "[1]=0"), ("bpda", (0, 1), "[0]=0"), ("stadv", (3,), "=(3,)")),
        *(("queries", 0, "=0"), ("defence", 0, "=0"), ("l2", 0.0, "=0.0")),
    ],
)
def test_budgets_below_one_are_refused(name, value, where):
    with pytest.raises(InputError, match=re.escape(f"{name}{where}: give a")):
        (UnseenStrengths if name == "l2" else StochasticProtocol)(**{name: value})


def test_a_misspelt_budget_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("robustlib.evaluation.protocols.PRESETS", tmp_path)
    (tmp_path / "odd.yaml").write_text("randomised: {imags: 3}\nunseen: {l3: 1}\n")
    with pytest.raises(InputError, match=r"Unknown entry of randomised in odd\.yaml 'imags'\. Did you mean 'images'"):
        protocols.stochastic_protocol("odd")
    with pytest.raises(InputError, match=r"unseen in odd\.yaml 'l3'"):
        protocols.unseen_strengths("odd")


@pytest.mark.parametrize(("full", "taken"), [(0.50, False), (0.4999, True), (0.6, False)])
def test_a_lower_plateau_becomes_the_headline_beyond_three_points(full, taken):
    rows = [{"attack": "clean", "accuracy": 0.9}, {"attack": "worst", "accuracy": 0.53, "protocol": "all"}]
    row = {"attack": "pgd_eot", "accuracy": full, "protocol": "PGD(200)"}
    checked = stochastic.with_plateau({"rows": rows, "n": 128}, row)
    headline, plateau = checked["rows"][-1], checked["plateau"]
    assert (headline["attack"], headline["accuracy"]) == ("worst", full if taken else 0.53)
    assert (plateau["full"]["accuracy"], plateau["worst"]["accuracy"]) == (full, 0.53), "both are kept"
    assert plateau["taken"] is taken is ("leaves 53.0 %" in headline["protocol"])


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
    step = stochastic.last_step([{"stood": [1.0] * n}, {"stood": before.tolist()}, {"stood": after.tolist()}])
    assert step["lost"] == pytest.approx(lost)
    half = 1.96 * noise / np.sqrt(n)
    assert (step["low"], step["high"]) == pytest.approx((lost - half, lost + half), abs=half / 2)
    assert step["verdict"] == verdict


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory) -> dict[str, Run]:
    """A plain run, and one of the same classifier behind an untrained purifier."""
    root = tmp_path_factory.mktemp("runs")
    method = make_method("standard", "digits", arch="mlp", epochs=1, train_examples=200)
    plain, pure = (fit(method, few, root=root, seed=seed, device="cpu", progress=False) for seed in (0, 1))
    options = {"purified": {"purifier": "gan", "transform": "rt2", "sigma": 0.1, "grid": 4, "width": 2}}
    model = build_model("mlp", few, **options)
    model.load_state_dict(pure.model().state_dict(), strict=False)
    model.deploy()
    pure = altered(pure, model=options)
    for file in ("model.safetensors", "last.safetensors"):
        save_weights(model, pure.path / file)
    pure.finish()
    return {"plain": plain, "pure": pure}


@pytest.fixture
def judged(monkeypatch) -> list[Any]:
    given: list[Any] = []
    monkeypatch.setattr("robustlib.evaluation.schedule.predict", lambda *some: given.append(some) or predict(*some))
    return given


@pytest.fixture
def evaluated(runs, digits, monkeypatch) -> dict[str, Run]:
    fgsm, quick = FGSM(digits.threat), (("apgd-ce", APGD(digits.threat, steps=2)),)
    deterministic = {"fgsm": fgsm, "pgd20": PGD(digits.threat, steps=2), "cw50": fgsm}
    deterministic["autoattack"] = AutoAttack(digits.threat, "custom", quick)

    def attacks(threat: Threat, stochastic: bool = False, budget: StochasticProtocol = TINY) -> Any:
        return standard_attacks(threat, True, budget) if stochastic else deterministic

    def unseen(strengths: UnseenStrengths, stochastic: bool, budget: StochasticProtocol, real=protocols.unseen_attacks):
        kinds, pgd = real(strengths, stochastic, budget), PGD(Threat("l2", strengths.l2), steps=2)
        return kinds if stochastic else kinds | {"l2": {"pgd": pgd}}

    shorter = {"protocols.standard_attacks": attacks, "protocols.EOT": 2, "runs.EOT": 2}
    shorter |= {"measurements.stochastic_protocol": lambda preset: TINY, "measurements.unseen_attacks": unseen}
    shorter |= {"stochastic.PLATEAU_STEPS": (1, 2, 4), "runs.EPS_MULTIPLES": (0, 1), "runs.STEPS": (0, 1)}
    for name, value in shorter.items():
        monkeypatch.setattr(f"robustlib.evaluation.{name}", value)
    for run in runs.values():
        evaluate_run(run, digits, n=8, device="cpu")
    return runs


def forget_plateau(run: Run) -> None:
    write_json(run.path / "results.json", {name: value for name, value in run.results().items() if name != "plateau"})


def test_a_randomised_run_is_evaluated_within_its_budget(evaluated, digits, monkeypatch):
    run, plain = evaluated["pure"], evaluated["plain"].results()
    results = run.results()
    assert (results["n"], results["budget"], plain["n"], "budget" in plain) == (6, TINY.facts(), 8, False)
    rows = {row["attack"]: row["protocol"] for row in results["rows"]}
    assert repr(PGDEOT(digits.threat, 2, 2)) == rows["pgd_eot"]
    assert re.search("version='rand'.*eot=2, steps=1, queries=2", rows["autoattack"])
    assert {"pgd_eot@bpda", "pgd_eot@unclipped", "pgd20@classifier", "aa_standard@classifier"} <= set(rows)
    assert not {"pgd20@bpda", "aa_standard@bpda", "pgd_eot@classifier", "cw50@bpda"} & set(rows)
    assert rows["pgd_eot@bpda"].endswith(", searched on the surrogate bpda, judged by the deployed model")
    worth = run.read("randomness.json")
    assert [row["seed"] for row in worth["fixed"]] == [0, 1, 2]
    assert [(row["steps"], row["samples"]) for row in worth["eot"]] == [(2, 1), (2, 5), (2, 20)]
    assert (worth["vote"]["draws"], worth["vote"]["attacked"]["n"]) == (5, 4)
    assert repr(PGDEOT(digits.threat, 1, 3)) in worth["vote"]["protocol"]
    assert not any("mean logits" in row["protocol"] for row in results["rows"]), "never part of the headline"
    assert worth["attacked"]["single"]["n"] == worth["clean"]["worst"]["n"] == 6
    index, eot = tables.randomness(results, worth).index, "2 steps of 20 gradient samples, 4 images"
    bpda = "BPDA + EOT with 1 step of 3 gradient samples, 4 images, answered by a vote of 5 draws"
    names = {bpda, f"PGD+EOT with {eot}", "mean over fresh draws", "a single draw", "worst of 10 draws"}
    assert names | {"draw fixed by seed 2, known to the attacker"} <= set(index)
    assert any(name.startswith("weak: ") and "classifier" in name for name in index)
    monkeypatch.setattr("robustlib.evaluation.stochastic.draw_statistics", lambda *_: 1 / 0)
    assert evaluate_run(run, digits, n=8, device="cpu") == results
    assert stochastic.measure_randomness(run, digits) == worth
    with pytest.raises(InputError, match="answers the same each time"):
        stochastic.measure_randomness(evaluated["plain"], digits)


def test_the_plateau_is_checked_once(evaluated, digits, monkeypatch, judged):
    run = evaluated["pure"]
    forget_plateau(run)
    before, known = run.results(), stochastic.measure_randomness(run, digits, device="cpu")["eot"]
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
            stochastic.check_plateau(run, digits, device="cpu")
    points = ["2x1", "2x5", "2x20", "2x50", "1x2", "2x2", "4x2"]
    assert asked == ["plateau", *(f"plateau-{point}" for point in points)]
    assert run.results() == before, "nothing is stored by halves"
    judged.clear()
    results = stochastic.check_plateau(run, digits, device="cpu")
    assert results == run.results()
    assert len(judged) == 2, "clean and attacked images of the point that was missing"
    plateau = results["plateau"]
    curves = {"samples": [(2, 1), (2, 5), (2, 20), (2, 50)], "steps": [(1, 2), (2, 2), (4, 2)]}
    for name, pairs in curves.items():
        met, last = plateau[name]["points"], plateau[name]["last"]
        assert ([(point["steps"], point["samples"]) for point in met], last) == (pairs, stochastic.last_step(met))
        assert all(np.mean(point["stood"]) == pytest.approx(point["accuracy"], abs=1e-3) for point in met)
    assert (plateau["full"]["protocol"], plateau["full"]["n"]) == (repr(PGDEOT(digits.threat, 3, 2)), 6)
    assert not run.evaluation.exists()
    monkeypatch.setattr("robustlib.evaluation.stochastic.evaluate", lambda *_, **__: 1 / 0)
    assert stochastic.check_plateau(run, digits, device="cpu") == results
    index = tables.randomness(results, stochastic.measure_randomness(run, digits)).index
    names = {f"PGD+EOT with {words} gradient samples, 6 images" for words in ("2 steps of 50", "1 step of 2")}
    verdict = "its number is the headline" if plateau["taken"] else "the headline stands"
    assert names | {f"PGD+EOT at full strength: {verdict}"} <= set(index)
    assert evaluate_run(run, digits, n=8, device="cpu") == results, "it stays with the results"


def test_what_was_already_at_full_strength_is_not_attacked_again(evaluated, digits, monkeypatch):
    run = evaluated["pure"]
    kept = run.results()
    forget_plateau(run)
    same = replace(TINY, full=TINY.pgd_eot)
    monkeypatch.setattr("robustlib.evaluation.measurements.stochastic_protocol", lambda _: same)
    monkeypatch.setattr("robustlib.evaluation.stochastic.evaluate", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("robustlib.evaluation.stochastic.eot_curve", lambda *a, **_: [{"stood": [1.0]} for _ in a[3]])
    plateau = stochastic.check_plateau(run, digits, device="cpu")["plateau"]
    assert plateau["full"] == next(row for row in kept["rows"] if row["attack"] == "pgd_eot")
    assert not plateau["taken"]
    write_json(run.path / "results.json", kept)


def test_what_randomness_is_worth_goes_on_where_it_was_interrupted(evaluated, digits, monkeypatch, judged):
    run, seen = evaluated["pure"], []
    known = stochastic.measure_randomness(run, digits, device="cpu")
    (run.path / "randomness.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("robustlib.evaluation.stochastic.vote", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stochastic.measure_randomness(run, digits, device="cpu", progress=seen.append)
    assert seen, "progress is told"
    judged.clear()
    assert stochastic.measure_randomness(run, digits, device="cpu") == known
    assert len(judged) == 2, "clean and attacked images of the vote: all before it was kept"
    assert not (run.path / "randomness").exists()


def test_the_command_line_measures_what_is_asked_for(evaluated, monkeypatch, capsys):
    def printed(*arguments: object) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])
        return stop.value.code or 0, "".join(capsys.readouterr())

    monkeypatch.setattr(cli.out, "width", 250)
    code, said = printed(evaluated["pure"].path, "--plateau", "--unseen")
    plateau = "Plateau (flat: the last step surely loses less than 3 points): with 2 steps of 50"
    words = ("What its randomness is worth", "PGD+EOT at full strength", plateau, "Known and unseen", "lost to StAdv")
    assert (code, [part for part in words if part not in said]) == (0, [])
    assert "plateau" in evaluated["pure"].results()
    code, said = printed(evaluated["plain"].path, "--plateau")
    assert (code, "answers the same each time" in said) == (2, True)


def test_unseen_attacks_of_any_run_beside_the_known_ones(evaluated, digits, monkeypatch):
    table = measure_unseen(evaluated, digits, device="cpu")
    kinds = ["clean", "known", "l2", "stadv"]
    assert table.groupby("run")["attack"].agg(list).to_dict() == {"plain": kinds, "pure": kinds}
    assert set(table["n"]) == {6}, "the same images for all"
    for name, run in evaluated.items():
        rows = table[table["run"] == name].set_index("attack")
        records = run.records()
        known = summarise(records[records["index"].isin(digits.test.sample(6).indices.tolist())])["accuracy"].iloc[-1]
        assert rows.loc["known", "accuracy"] == known
        assert rows["loss"].tolist() == pytest.approx([known - share for share in rows["accuracy"]])
        assert ("l2" in rows.loc["l2", "protocol"], "StAdv(bound=0.2" in rows.loc["stadv", "protocol"]) == (True, True)
    stored = {name: list(read_json(run.path / "unseen.json").values())[-1] for name, run in evaluated.items()}
    assert stored["plain"]["bare"] == {}
    bare = evaluated["pure"].model().surrogates()["classifier"]
    (batch,) = digits.test.sample(6).batches(6)
    right = float((bare(batch.x).argmax(1) == batch.y).float().mean())
    assert stored["pure"]["bare"]["accuracy"] == pytest.approx(right)
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
    taken = {"attack": "pgd_eot", "n": 6, "correct": 0.0, "accuracy": 0.0, "protocol": "PGDEOT"}
    plateau = {"full": taken, "worst": taken, "taken": True}
    write_json(pure.path / "results.json", pure.results() | {"plateau": plateau})
    monkeypatch.setattr("robustlib.evaluation.measurements.evaluate", evaluate)
    lower = measure_unseen({"pure": pure}, digits, device="cpu").set_index("attack")
    assert lower.loc["known", "accuracy"] == 0.0, "the headline after its plateau check"
    with pytest.raises(InputError, match="no runs to measure"):
        measure_unseen({}, digits)


def test_the_unseen_attacks_have_the_strengths_of_the_preset():
    strengths, threat = UnseenStrengths(l2=0.6, flow=0.2), Threat("l2", 0.6)
    rand = {"pgd_eot": PGDEOT(threat, 2, 2), "autoattack": AutoAttack(threat, version="rand", steps=1, eot=2)}
    standard = {"autoattack": AutoAttack(threat, queries=2)}
    for random, l2, stadv in ((True, rand, StAdv(0.2, 1, eot=2)), (False, standard, StAdv(0.2, 1))):
        assert protocols.unseen_attacks(strengths, random, TINY) == {"l2": l2, "stadv": {"stadv": stadv}}

"""Claims: intervals that hold what they promise, verdicts that wait for their seeds, runs that are never dropped silently."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from robustlib import figures
from robustlib.attacks import PGD, Threat
from robustlib.errors import InputError
from robustlib.runs import Run, find_runs, read_json, write_json
from robustlib.workbook import tables
from robustlib.workbook.claims import Claim, Finding, evaluate_claims, gather, measure_of, read_claims
from robustlib.workbook.claims.claim import holm, minimal_detectable, p_value, paired_interval
from robustlib.workbook.console import claims_table
from robustlib.workbook.experiments import read_study
from tests.training_fixtures import altered
from tests.workbook import evaluated_run, finished_run

SEEDS = range(8)
SPREAD = [0.004, -0.004, 0.002, -0.002, 0.003, -0.003, 0.001, -0.001]  # of eight seeds about their mean
GROWS = {"measure": "growth/probe/h/relative_l2", "than": ""}
PAPER = {"text": "A beats B.", "source": "A et al. 2020", "measure": "worst", "variant": "trades", "than": "pgd_at"}


def claim(**changes: object) -> Claim:
    return Claim(**{"name": "robust", **PAPER, **changes})  # type: ignore[arg-type]


def judge(runs: list[Run], seeds: Sequence[int] = SEEDS, **changes: object) -> Finding:
    return evaluate_claims([claim(**changes)], runs, seeds)[0]


def store_features(run: Run, gap: float, attack: str = "PGD") -> None:
    """Adds what `measure_runs` stores of a run's feature space."""
    measures = {"conv1": {"relative_l2": gap / 2}, "features": {"relative_l2": gap}}
    file = run.path / "representation.json"
    stored = read_json(file)
    write_json(file, {**stored, str(len(stored)): {"attack": attack, "n": 500, "seed": 0, "measures": measures}})


def pairs_of_runs(root: Path, effect: float, noise: float = 1.0, measure: str = "worst") -> list[Run]:
    """Eight seeds of two variants whose paired difference is `effect` on average; the seeds differ more than the variants."""
    runs = []
    for seed in SEEDS:
        base = 0.6 + 0.02 * seed
        runs.append(evaluated_run(root, "trades", seed, {measure: base + effect + noise * SPREAD[seed]}))
        runs.append(evaluated_run(root, "pgd_at", seed, {measure: base}))
    return runs


def test_the_interval_by_hand_and_its_coverage_on_accuracies_of_shared_images() -> None:
    """Two variants, 8 seeds, 500 images: each training gets an image right with a chance that the image and the variant make."""
    interval = paired_interval([0.01 + part for part in SPREAD])
    half = stats.t.ppf(0.975, 7) * np.std(SPREAD, ddof=1) / math.sqrt(8)
    assert interval[:3] == pytest.approx((0.01, 0.01 - half, 0.01 + half))
    generator = np.random.default_rng(2)
    chances = np.clip(generator.beta(2, 0.8, 500) + np.array([[0.0], [0.02]]), 0, 1)  # (variants, images)
    right = (generator.random((1000, 8, 2, 500), dtype=np.float32) < chances).mean(-1)
    truth = float(chances[1].mean() - chances[0].mean())
    intervals = [paired_interval(row) for row in (right[..., 1] - right[..., 0]).tolist()]
    assert abs(np.mean([part.low <= truth <= part.high for part in intervals]) - 0.95) <= 0.015


def test_p_values_agree_with_the_interval_and_with_scipy() -> None:
    for values in np.random.default_rng(4).normal(0.01, 0.01, (50, 5)).tolist():
        interval = paired_interval(values)
        assert (p_value(values) <= 0.05) == (not interval.low <= 0 <= interval.high)
        assert p_value(values, 0.01) == pytest.approx(stats.ttest_1samp(values, 0.01).pvalue)


def test_degenerate_differences() -> None:
    assert paired_interval([0.01])[1:3] == (-math.inf, math.inf)
    assert p_value([0.01]) == 1.0
    assert paired_interval([0.012] * 8)[1:3] == pytest.approx((0.012, 0.012))
    assert p_value([0.1, 0.1, 0.1]) == 0.0  # 0.1 + 0.1 + 0.1 is not 0.3: rounding is no deviation
    assert p_value([0.0] * 8) == 1.0
    assert paired_interval([0.012] * 8, step=0.002).sd == pytest.approx(0.002 / math.sqrt(12)), "rounding"
    assert paired_interval([0.0, 0.1], step=0.002) == paired_interval([0.0, 0.1])
    assert p_value([0.002] * 2, step=0.002) > 0.05 > p_value([0.002] * 2)
    for values in ([], [0.1, math.nan]):
        with pytest.raises(InputError, match="at least one number"):
            paired_interval(values)


def test_holm_by_hand_and_on_studies_of_false_claims() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    draws = np.random.default_rng(6).normal(0, 0.01, (400, 10, 8))
    plain = [[p_value(row) for row in study.tolist()] for study in draws]
    assert 0.02 <= np.mean([min(holm(study)) <= 0.05 for study in plain]) <= 0.08, "one in twenty supports anything"
    assert np.mean([min(study) <= 0.05 for study in plain]) > 0.3, "what Holm is for"


def test_the_minimal_detectable_effect_is_found_in_four_of_five_studies() -> None:
    sd, seeds, level = 0.02, 8, 0.05 / 4
    effect = minimal_detectable(sd, seeds, level=level)
    draws = np.random.default_rng(5).normal(effect, sd, (4000, seeds))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue <= level) == pytest.approx(0.8, abs=0.02)
    by_seeds = [minimal_detectable(sd, n, level=level) for n in (1, 2, 3, seeds)]
    assert math.inf == by_seeds[0] > by_seeds[1] > by_seeds[2] > by_seeds[3]


@pytest.mark.parametrize(
    ("effect", "noise", "words"),
    [
        (0.03, 1.0, "supported"),
        (0.005, 0.5, "supported: but by less than 1 points"),
        (0.001, 1.0, "not supported"),
        (-0.02, 1.0, "not supported: the opposite holds"),
        (0.01, 6.0, "undecided: effects below"),
        (0.006, 3.0, "undecided: effects below"),
        (0.012, 0.0, "supported"),  # equal differences are no certainty
    ],
)
def test_verdicts(tmp_path: Path, effect: float, noise: float, words: str) -> None:
    finding = judge(pairs_of_runs(tmp_path, effect, noise))
    assert finding.summary.startswith(words)
    assert finding.interval.effect == pytest.approx(effect)
    assert finding.interval.low < effect < finding.interval.high
    assert (finding.evidence.step, finding.detectable > 0) == (1 / 500, True)
    mirrored = judge(find_runs(tmp_path), variant="pgd_at", than="trades", direction="lower")
    assert mirrored.summary == finding.summary, "B is lower than A says the same"
    assert mirrored.interval.effect == pytest.approx(-effect), "effects are shown as they are measured"
    drawn, row = ([one.in_direction()[name] for name in ("effect", "low", "high")] for one in (mirrored, finding))
    assert drawn == pytest.approx(row)


def test_verdicts_wait_for_all_seeds(tmp_path: Path) -> None:
    runs = pairs_of_runs(tmp_path, 0.05)
    for there in (0, 1, 7):
        assert judge(runs[: 2 * there]).summary == f"undecided: {there} of 8 seeds"
    assert judge(runs[:14]).interval.low > 0.04, "what is there is shown"
    assert judge(runs, range(7)).evidence.wanted == 7, "seeds that the study did not ask for do not count"


def test_claims_without_runs_count_in_the_correction(tmp_path: Path) -> None:
    runs = pairs_of_runs(tmp_path, 0.003)
    alone = judge(runs)
    many = evaluate_claims([claim(), *(claim(name=str(k), variant="standard") for k in range(9))], runs, SEEDS)[0]
    assert alone.verdict == "supported" != many.verdict
    assert many.p == pytest.approx(10 * alone.p)
    assert many.detectable > alone.detectable
    # Seven seeds of a huge effect: were their p-value counted, the other claim would pass Holm's last, easiest step.
    huge = [evaluated_run(tmp_path / "huge", "trades beta=1.0", seed, 0.9 + SPREAD[seed]) for seed in range(7)]
    small, incomplete = evaluate_claims([claim(), claim(name="b", variant="trades beta=1.0")], [*runs, *huge], SEEDS)
    assert (incomplete.summary, incomplete.p) == ("undecided: 7 of 8 seeds", 1.0)
    assert small.p == pytest.approx(2 * alone.p)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    pairs_of_runs(tmp_path, 0.02)
    runs = {(run.params()["method"], run.params()["seed"]): run for run in find_runs(tmp_path)}
    (runs["trades", 1].path / "params.json").unlink()
    (runs["trades", 2].path / "results.json").unlink()
    write_json(runs["pgd_at", 3].path / "status.json", {"state": "failed"})
    changes = {("pgd_at", 4): {"n": 200}}
    for seed, (attack, accuracy) in {5: ("autoattack", 0.1), 6: ("worst", 0.6)}.items():
        changes["trades", seed] = {"rows": [{"attack": attack, "accuracy": accuracy}]}
    for key, change in changes.items():
        write_json(runs[key].path / "results.json", runs[key].results() | change)
    evidence = gather(claim(), find_runs(tmp_path, finished=False), SEEDS)
    assert sorted(evidence.differences) == [0, 7]
    assert evidence.missing == (
        "seed 1: no run of trades",
        "seed 2: trades is not evaluated",
        "seed 3: pgd_at is failed",
        "seed 4: pgd_at was judged otherwise (images 200 and not 500)",
        "seed 5: trades has no worst",
        "seed 6: trades was judged otherwise (met AutoAttack False and not True)",
    )


def test_variants_are_told_apart_by_their_changes(tmp_path: Path) -> None:
    runs = [evaluated_run(tmp_path, "trades", 0, 0.7), evaluated_run(tmp_path, "trades beta=1.0", 0, 0.6)]
    assert gather(claim(than="trades beta=1.0"), runs, [0]).differences == {0: pytest.approx(0.1)}
    runs.append(evaluated_run(tmp_path / "gpu", "trades compiled", 0, 0.9))
    assert gather(claim(than="trades beta=1.0"), runs[::-1], [0]).differences == {0: pytest.approx(0.3)}


def test_relative_differences_and_all_kinds_of_measures(tmp_path: Path) -> None:
    shared = {"last": {"rows": [{"attack": "pgd20", "accuracy": 0.7}]}}
    accuracies = {"pgd20": 0.75, "worst": 0.6}
    run = evaluated_run(tmp_path, "trades", 0, accuracies, **shared)
    than = evaluated_run(tmp_path, "pgd_at", 0, accuracies, numerics={"attacks/pgd": 2}, **shared)
    store_features(run, 0.9, attack="an older look")
    store_features(run, 0.3)
    store_features(than, 0.4)
    measures = {"pgd20": 0.75, "last/pgd20": 0.7, "overfitting/pgd20": 0.05, "overstated/pgd20": 0.15}
    measures |= {"representation/relative_l2": 0.3, "representation/conv1/relative_l2": 0.15}
    assert {name: measure_of(run, name) for name in measures} == pytest.approx(measures)
    for name in ("clean", "last/worst", "representation/cka", "overfitting/worst", "what/ever"):
        with pytest.raises(InputError, match=f"no measure '{name}': it has autoattack, pgd20, worst, last/pgd20"):
            measure_of(run, name)
    gap = claim(measure="representation/relative_l2", relative=True, direction="lower")
    evidence = gather(gap, [run, than], [0])
    assert evidence.differences == {0: pytest.approx(-0.25)}
    assert evidence.notes == ("evaluated by 2 versions of attacks or measures",)
    assert (gap.interest, gap.unit, claim().interest, claim().unit) == (0.05, "%", 0.01, "points")
    store_features(than, 0.0)
    assert "nothing is a share of it" in gather(gap, [run, than], [0]).missing[0]
    store_features(than, 0.4, attack="FGSM")
    assert "features of attack" in gather(gap, [run, than], [0]).missing[0], "gaps under two attacks make no pair"


def test_a_pair_trained_in_two_precisions_says_so(tmp_path: Path) -> None:
    runs = pairs_of_runs(tmp_path / "any", 0.03)[:4]
    for run, precision in zip(runs, ("32-true", "bf16-mixed", "32-true", "32-true"), strict=True):
        params = run.params()
        finished_run(
            tmp_path / "told", params["method"], params["seed"], {"results": run.results()}, precision=precision
        )
    notes = gather(claim(), find_runs(tmp_path / "told"), SEEDS).notes
    assert notes == ("seed 0: trained in 32-true and in bf16-mixed",)


def test_the_table_of_claims(tmp_path: Path) -> None:
    runs = pairs_of_runs(tmp_path, 0.03, measure="pgd20")
    write_json(runs[2].path / "audit.json", {"badges": {"headline": {"verdict": "red", "text": "7. black-box"}}})
    claims = [claim(measure="pgd20"), claim(name="b", measure="overfitting/pgd20")]
    findings = evaluate_claims(claims, runs, SEEDS)
    table = tables.claims(findings)
    shown = table[["compared", "effect", "p (Holm)", "verdict"]].to_numpy().tolist()
    assert shown[0] == ["trades − pgd_at: PGD-20", "+3.0 points (+2.8 to +3.2)", "< 0.001", "✓ supported"]
    assert shown[1][0].endswith("PGD-20, best less last epoch")
    assert (shown[1][1], shown[1][3], table["detectable"][1]) == ("–", "– undecided: 0 of 8 seeds", "–")
    assert table["notes"][0] == "the audit doubts 1 of 16 headlines"
    early = evaluate_claims(claims[:1], runs[:2], SEEDS)
    lone = tables.claims(early).iloc[0]
    assert lone["effect"] == "+3.4 points (one seed)"
    assert lone["notes"] == "seeds 1–7: no run of trades, no run of pgd_at"
    beside = tables.claims(evaluate_claims(claims, runs[:2], SEEDS), findings)
    assert beside["what the study found"].tolist() == [f"✓ supported · {shown[0][1]}", "– undecided: 0 of 8 seeds · –"]
    assert beside["these runs"].tolist() == ["1 of 8 seeds: +3.4 points", "–"]
    assert beside["p (Holm)"].tolist() == table["p (Holm)"].tolist(), "of what the study found"
    assert "seeds" not in "".join(beside.get("notes", [])), "that most seeds were not trained here is no news"
    again = evaluate_claims([*claims, *(claim(name=str(k)) for k in range(30))], runs, SEEDS)
    assert tables.claims(again, findings)["these runs"][0] == "the same", "though Holm has more claims to correct for"
    other = evaluate_claims(claims, pairs_of_runs(tmp_path / "other", 0.05, measure="pgd20"), SEEDS)
    assert tables.claims(other, findings)["these runs"][0].startswith("✓ supported · +5.0 points")
    assert not any("these runs" in tables.claims(findings, nothing) for nothing in (None, []))
    assert tables.claims([]).empty


def test_claims_of_two_presets_side_by_side(tmp_path: Path) -> None:
    good, bad = (pairs_of_runs(tmp_path / name, effect) for name, effect in (("good", 0.03), ("bad", -0.03)))
    asked = [claim(), claim(name="b", measure="autoattack"), claim(name="c", measure="overfitting/pgd20")]
    found = {name: evaluate_claims(asked, runs, SEEDS) for name, runs in (("digits", good), ("cifar10-small", bad))}
    table = tables.claims_by_preset(found)
    assert list(table) == ["claim", "digits", "cifar10-small", "verdicts"]
    assert table["digits"][0].startswith("✓ supported · +3.0 points (+2.8 to +3.2)")
    assert table["cifar10-small"][0].startswith("✕ not supported: the opposite holds · −3.0 points")
    assert table["verdicts"].tolist() == ["differ", "agree"], "what neither measures is no row"
    other = evaluate_claims([claim(text="The same name, another sentence.")], bad, SEEDS)
    assert tables.claims_by_preset({"digits": found["digits"], "cifar10-small": other}).empty
    one = evaluate_claims(asked, bad[:2], SEEDS)
    assert tables.claims_by_preset({"digits": found["digits"], "cifar10-small": one})["verdicts"][0] == "open", (
        "one seed"
    )
    assert tables.claims_by_preset({"digits": found["digits"]}).empty


def trained_run(root: Path, variant: str, seed: int, column: list[float], name: str = "probe/h/relative_l2") -> Run:
    """A finished run of two stages, never evaluated; `column` over the last one, from the model before it on."""
    run = finished_run(root, variant, seed, threat={"norm": "linf", "eps": 0.2})
    rows: list[dict[str, object]] = [{"stage": "natural", "epoch": k, name: 9.0} for k in range(4)]
    rows += [{"stage": variant, "epoch": k, name: value} for k, value in enumerate(column)]
    rows = [{**row, "epoch_total": k, "warnings": []} for k, row in enumerate(rows)]
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return run


def test_features_under_another_threat_are_passed_over(tmp_path: Path) -> None:
    """A notebook of a run with another eps may have measured this one, later."""
    run = evaluated_run(tmp_path, "trades", 0, 0.6)
    run = altered(run, threat={"norm": "linf", "eps": 0.2})
    for gap, eps, steps, last in ((0.3, 0.2, 10, 0.3), (0.9, 0.1, 10, 0.3), (0.4, 0.2, 20, 0.4)):
        store_features(run, gap, attack=repr(PGD(Threat("linf", eps), steps=steps)))
        assert measure_of(run, "representation/relative_l2") == last, "the last of its own"


def test_growth_is_the_slope_over_the_last_stage_from_epoch_two_on(tmp_path: Path) -> None:
    """By hand, whatever happened at epochs 0 and 1."""
    noisy, offsets = np.array([0.31, 0.4, 0.38, 0.47, 0.5]), np.arange(-2, 3)
    slope = (offsets * (noisy - noisy.mean())).sum() / (offsets**2).sum()
    run = trained_run(tmp_path, "vaft", 0, [7.0, 5.0, *noisy])
    assert measure_of(run, "growth/probe/h/relative_l2") == pytest.approx(4 * slope / noisy.mean())
    assert measure_of(run, "metrics/probe/h/relative_l2") == noisy[-1]


def test_a_column_is_looked_for_in_the_last_stage_that_has_it(tmp_path: Path) -> None:
    """The last stage of a contrastive training is a mere head: what was watched before it is told all the same."""
    run = trained_run(tmp_path, "claf", 0, [0.9, 0.5, 0.6, 0.7], "probe/head_end/clean")
    head = [{"stage": "slf", "epoch": e, "epoch_total": e, "warnings": [], "loss": 0.1 * e} for e in range(3)]
    lines = [*(run.path / "metrics.jsonl").read_text().splitlines(), *map(json.dumps, head)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    assert measure_of(run, "metrics/probe/head_end/clean") == pytest.approx(0.7)
    assert measure_of(run, "growth/probe/head_end/clean") == pytest.approx(0.1 / 0.65)
    assert measure_of(run, "metrics/loss") == pytest.approx(0.2)
    with pytest.raises(InputError, match=r"of its last stage it has metrics/epoch, .*metrics/loss"):
        measure_of(run, "metrics/probe/f1")


def test_what_metrics_do_not_hold_is_a_sentence(tmp_path: Path) -> None:
    for column, measure, sentence in (
        ([1, 2, 3, 4], "growth/f1", "no measure 'growth/f1': of its last stage it has growth/epoch, growth/gap"),
        ([1, 2, 3, 4], "metrics/warnings", "no measure 'metrics/warnings'"),
        ([1, 2, math.nan, 4], "metrics/gap", "no measure 'metrics/gap'"),
        ([1, 2, 3], "growth/gap", r"1 epoch\(s\) from 2 on, and growth needs two: train at least 3 epochs"),
        ([1, 2, -3, -4], "growth/gap", "is -3.5 on average, and nothing grows as a share of it"),
    ):
        with pytest.raises(InputError, match=sentence):
            measure_of(trained_run(tmp_path, "vaft", 0, column, "gap"), measure)
    with pytest.raises(InputError, match="of its last stage it has no finished epoch"):
        measure_of(Run(tmp_path), "growth/gap")


def test_a_claim_about_one_variant_needs_only_its_trainings(tmp_path: Path) -> None:
    """The gap of one variant grows by b (k - 1) / mean: that value itself is the evidence, against zero."""
    runs = [trained_run(tmp_path, "vaft", s, [1, 1, *(1 + (0.1 + SPREAD[s]) * e for e in range(4))]) for s in SEEDS]
    grows = claim(variant="vaft", **GROWS)
    finding = judge(runs, variant="vaft", **GROWS)
    assert finding.evidence.differences[0] == pytest.approx(3 * 0.104 / (1 + 1.5 * 0.104))
    assert (finding.summary, grows.unit, grows.interest, finding.evidence.step) == ("supported", "%", 0.05, 0.0)
    assert gather(grows, runs[:7], SEEDS).missing == ("seed 7: no run of vaft",)
    row = tables.claims([finding]).iloc[0]
    assert row["compared"] == "vaft − zero: relative L2 feature gap of h, growth over the epochs from 2 on"
    assert row["effect"].startswith("+26.1 % (")
    assert "26.1 %, interval" in figures.claim_effects([finding.in_direction()]).alt
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(claims_table([grows], runs, SEEDS))
    assert "✓ supported" in console.export_text()


def test_trainings_are_paired_where_their_threats_agree(tmp_path: Path) -> None:
    less = claim(variant="afd", than="vaft", measure="metrics/probe/h/relative_l2", relative=True, direction="lower")
    runs = [trained_run(tmp_path, variant, 0, [1, 1, last]) for variant, last in (("afd", 0.3), ("vaft", 0.4))]
    assert gather(less, runs, [0]).differences == {0: pytest.approx(-0.25)}
    runs[0] = altered(runs[0], threat={"norm": "linf", "eps": 0.1})
    assert "threat linf 0.2 and not linf 0.1" in gather(less, runs, [0]).missing[0]


def test_a_study_claims_only_what_it_trains(tmp_path: Path) -> None:
    def claims(methods: dict[str, object], **changes: object) -> list[Claim]:
        content = {"methods": methods, "claims": [{"name": "x", **PAPER, **changes}]}
        (tmp_path / "study.yaml").write_text(json.dumps(content))
        return read_study(tmp_path / "study.yaml").claims

    grid: dict[str, object] = {"pgd_at": None, "trades": {"beta": [1, 6]}}
    assert claims(grid) == [claim(name="x")]
    assert claims(grid, variant="trades beta=1.0")[0].variant == "trades beta=1.0"
    assert claims({"trades": None}, than="", measure="overfitting/pgd20")[0].variants == ("trades",)
    with pytest.raises(InputError, match=r"of the claim 'x'.*'trades beta=2.0'. Did you mean 'trades beta=1.0'"):
        claims(grid, variant="trades beta=2.0")
    with pytest.raises(InputError, match="'pgd_at'"):
        claims({"trades": None})


def test_a_study_may_ask_another_ones_claims_of_its_own_runs(tmp_path: Path) -> None:
    theirs, file = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    both = [{"name": name, **PAPER, "variant": "trades", "than": "pgd_at epochs=2"} for name in ("x", "y")]
    theirs.write_text(json.dumps({"methods": {"trades": None, "pgd_at": {"epochs": 2}}, "claims": both}))

    def claims(*own: object, **facts: object) -> list[Claim]:
        rows = [{"study": str(theirs), **facts}, *own]
        file.write_text(json.dumps({"methods": ["trades", "pgd_at"], "claims": rows}))
        return read_study(file).claims

    own, instead = {"name": "y", **PAPER, "variant": "pgd_at", "than": "trades"}, {"pgd_at epochs=2": "pgd_at"}
    first = claim(name="x", variant="trades", than="pgd_at")
    assert claims(own, instead=instead, without=["y"]) == [first, claim(**own)]
    for facts, said in (
        ({"without": ["y"]}, "Unknown variant of the claim 'x'"),
        ({"instead": instead, "without": ["z"]}, "Unknown claim of .*theirs.yaml.*'z'"),
        ({"instead": ["pgd_at"]}, "without as a list of claims, instead as variant: variant"),
        ({"istead": instead}, "Did you mean 'instead'"),
        ({"study": 3}, "write study as a name"),
        ({"study": str(file)}, "which leads back to it"),
        ({"instead": {"pgd_at epochs=3": "pgd_at"}}, "Did you mean 'pgd_at epochs=2'"),
        ({"instead": instead}, "two claims called 'y'"),
    ):
        with pytest.raises(InputError, match=said):
            claims(own, **facts)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("worst", "a list of mappings with name, text, source, measure, variant"),
        ([{"name": "x", **PAPER, "direktion": "lower"}], "Did you mean 'direction'?"),
        ([{"name": "x", **PAPER, "direction": "less"}], "direction 'less'"),
        ([{"name": "x", **PAPER, "than": "trades"}], "compares 'trades' with itself"),
        ([{"name": "x", **PAPER, "than": ""}], "compares 'worst', which is never below zero, with zero: give the"),
        ([{"name": "x", **PAPER, **GROWS, "relative": True}], "compares differences as shares with zero"),
        ([{"name": "x", **PAPER, "than": None}], "than=None"),
        ([{"name": "x", **PAPER, "smallest": 0}], "smallest=0.0: give an effect above 0"),
        ([{"name": "x", **PAPER, "smallest": "1 %"}], "smallest='1 %'"),
        ([{"name": "x", **PAPER, "relative": 1}], "relative=1"),
        ([{"name": "x", "text": "A beats B."}], "the claim 'x' has no 'source'"),
        ([{"name": 3, **PAPER}], "name=3"),
        ([{"name": "x", **PAPER}] * 2, "two claims called 'x'"),
    ],
)
def test_bad_claims_are_a_sentence(rows: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_claims(rows, "study.yaml")

"""Tables: every number with its interval, every hyper-parameter with its meaning."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from mistune import HTMLRenderer, Markdown
from mistune.plugins.formatting import strikethrough
from mistune.plugins.table import table

from robustlib import figures
from robustlib.methods import make_method
from robustlib.runs.files import NO_WEIGHTS
from robustlib.workbook import tables
from robustlib.workbook.experiments import attack_table, purifier_grid, randomness_table
from tests import fixtures

RESULTS = {
    "rows": [
        {"attack": "clean", "accuracy": 0.99, "low": 0.98, "high": 0.995, "n": 500, "protocol": "no attack"},
        {"attack": "worst", "accuracy": 0.735, "low": 0.69, "high": 0.77, "n": 500, "protocol": "PGD(steps=20)"},
    ],
    "last": {"rows": [{"attack": "clean", "accuracy": 1.0, "low": 0.99, "high": 1.0, "n": 500}]},
}


def test_hyperparameters_carry_their_comments() -> None:
    table = tables.hyperparameters(make_method("vaft", lr=0.2))
    assert table.loc["lr"].tolist() == ["0.2", "0.025", "its peak learning rate"], "and not its base's words"
    assert table.loc["momentum"].tolist() == ["0.9", "0.9", "of SGD"]
    assert table.loc["norm", "value"] == "–"


def test_accuracies_best_beside_last_and_of_one_draw() -> None:
    table = tables.accuracies(RESULTS)
    worst = {"best epoch": "73.5 % (69.0–77.0)", "last epoch": "–", "protocol": "PGD(steps=20)"}
    assert table.loc["worst case", list(worst)].to_dict() == worst
    assert table.loc["clean", "last epoch"] == "100.0 % (99.0–100.0)"
    noisy = {"attack": "pgd20", "accuracy": 0.5, "single": 0.25, "low": 0.4, "high": 0.6, "n": 500}
    shown = tables.accuracies({"rows": [*RESULTS["rows"], noisy]}).loc["PGD-20"]
    assert (shown["one draw"], shown["best epoch"]) == ("25.0 %", "50.0 % (40.0–60.0)")
    assert "one draw" not in table


def test_passes_stand_beside_the_number_that_they_bought() -> None:
    column = "passes per image (forward + backward)"
    counted = [row | {"passes": 0 if row["attack"] == "clean" else 1234.56} for row in RESULTS["rows"]]
    table = tables.accuracies({"rows": counted})
    assert table.loc["worst case", column] == "1,235"
    assert table.loc["clean", column] == "–"
    assert column not in tables.accuracies(RESULTS), "an older evaluation counted nothing"
    steps = tables.autoattack_steps([{**row, "passes": 7.0} for row in fixtures.cascade()])
    assert steps[column].unique().tolist() == ["7"]


def test_the_papers_protocol_and_the_adaptive_minimum_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    results, sent = fixtures.adaptive(), []
    assert list(tables.accuracies(results).index) == ["clean", "PGD-20", "CW-50", "AutoAttack", "worst case"]
    table = tables.adaptive(results)
    assert list(table.columns) == ["PGD-20", "CW-50", "AutoAttack", "everything so far"]
    rows = {
        "the deployed logits": ["82.0 %", "81.5 %", "81.0 % (78.0–84.0)", "–"],
        "head 1": ["60.0 %", "55.0 %", "–", "–"],
        "gate of each class": ["–", "50.0 %", "–", "–"],
        "adaptive minimum": ["–", "–", "–", "43.5 % (40.5–46.5)"],
    }
    assert {name: table.loc[name].tolist() for name in rows} == rows
    assert table.loc["PGD-100×5 on surrogates", "everything so far"] == "45.0 %", "what was left after the last"
    assert tables.adaptive_summary(results) == (
        "The paper's protocol (AutoAttack on the deployed logits) leaves 81.0 %, the adaptive minimum 43.5 %: overstated by "
        "37.5 points."
    )
    elsewhere = tables.adaptive_summary(results | {"checkpoint": "given"})
    assert elsewhere.startswith("AutoAttack on the deployed logits alone leaves 81.0 %, the adaptive minimum 43.5 %")
    monkeypatch.setattr("IPython.display.display", lambda data, raw: sent.append(data["text/plain"]))
    tables.show_adaptive(RESULTS)
    assert sent == [], "a plain model has nothing to show"
    tables.show_adaptive(results)
    assert len(sent) == 2
    assert "overstated by" in sent[0]


def test_what_a_view_of_a_stochastic_model_met_in_full_is_not_called_everything_so_far() -> None:
    left = {"pgd20": 0.3, "aa_standard": 0.4, "autoattack": 0.31, "aa_standard@classifier": 0.38, "worst": 0.23}
    rows = [{"attack": name, "accuracy": share, "low": share, "high": share} for name, share in left.items()]
    table = tables.adaptive({"rows": rows})
    standard = table["AutoAttack, standard version"]
    assert (standard["the deployed logits"], standard["classifier"]) == ("40.0 %", "38.0 %")
    assert table["everything so far"].tolist() == ["–", "–", "23.0 % (23.0–23.0)"]


def test_cascade_says_what_each_step_took() -> None:
    table = tables.autoattack_steps(fixtures.cascade())
    assert table["attack"].unique().tolist() == ["AutoAttack", "AutoAttack on denoiser"]
    assert "attack" not in tables.autoattack_steps(fixtures.cascade()[:4]), "one cascade needs no name"
    shown = table[["images attacked", "broken", "accuracy after it"]][:3].to_numpy().tolist()
    assert shown == [["–", "10", "98.0 %"], [490, "110", "76.0 %"], [380, "30", "70.0 %"]]


def test_checks_carry_value_threshold_and_meaning() -> None:
    table = tables.checks(fixtures.audit()).set_index("check")[["verdict", "value", "threshold"]]
    assert table.loc["3. more steps"].tolist() == ["▲ amber", "4.1 points", "3 points"]
    assert table.loc["9. gradients", "value"] == "0.78"
    assert table.loc["14. published window"].tolist()[:2] == ["– n/a", "–"]
    assert tables.checks({}).empty
    assert tables.worst_verdict(["pass", "amber", "red"]) == "red"
    assert tables.worst_verdict(["pass", "", "n/a"]) == "", "who was not examined has not passed"
    assert tables.verdict_label(float("nan")) == "– not audited"


def test_badges_are_signs_words_and_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: sent.append(data))
    tables.show_badges(fixtures.audit())
    tables.show_badges({}, "runs/x")
    said, none = (data["text/html"] for data in sent)
    assert said.startswith('<p><span class="badge red">headline: ✕ red</span>')
    assert '<span class="badge amber">protocol: ▲ amber</span> The paper&#x27;s protocol overstates by 4.2' in said
    assert "&lt;could&gt;" in said, "what a check says is text, not markup"
    assert "robustlib audit runs/x" in none
    assert sent[0]["text/plain"].splitlines()[1] == "protocol: ▲ amber The paper's protocol overstates by 4.2 points."


def test_what_files_say_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a_b <i>`x`</i>\n# c [d](e) $f$ **g** | ~~h~~ &amp; \\"
    shown = HTMLRenderer(escape=False)
    assert shown.text("") == ""
    drawn = Markdown(shown, plugins=[strikethrough, table])(f"**x**: {tables.as_markdown(text)}")
    assert BeautifulSoup(drawn, "html.parser").get_text() == f"x: {' '.join(text.split())}\n"
    assert drawn.count("<") == 4, "a paragraph, and our own bold"
    rows = fixtures.leaderboard().assign(method="<b>", headline_text="`a`", headline_badge="red")
    said = [tables.objections(rows), tables.warnings(pd.DataFrame({"epoch_total": [1], "warnings": [["<script>"]]}))]
    assert r"**\<b\>, headline**" in said[0]
    assert r"\`a\`" in said[0]
    assert r"epoch 1: \<script\>" in said[1]
    sent: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: sent.append(data))
    tables.show_badges({"badges": {"<i>": {"verdict": "'><script>", "text": 3}}})
    tables.show_badges({}, "a b;`c`")
    assert sent[0]["text/html"] == '<p><span class="badge ">&lt;i&gt;: – not audited</span> 3</p>'
    assert "`robustlib audit 'a b;`c`'`" in sent[1]["text/plain"]


def test_badges_stand_beside_the_worst_case() -> None:
    rows = fixtures.leaderboard()
    table = tables.leaderboard(rows)
    assert list(table)[2:6] == ["clean", "worst case", "headline", "protocol"]
    assert table["headline"].tolist() == ["– not audited", "✓ pass", "▲ amber", "✕ red"]
    assert "CW-50" not in table, "nothing was measured"
    assert "AutoAttack" in table
    said = tables.objections(rows)
    assert "**trades, protocol**: ▲ amber, seed 0: The paper's protocol overstates by 4.2 points. ✕ red, seed 1" in said
    assert "1 of 4 runs are not audited" in said
    assert "no check objects" in tables.objections(rows[1:2])


def test_leaderboard_leaves_out_what_is_alike() -> None:
    numbers = {"clean": [0.9, 0.8], "clean_low": [0.88, 0.7], "clean_high": [0.92, 0.9], "worst": [0.5, float("nan")]}
    board = pd.DataFrame({"method": ["trades", "pgd_at"], "seed": [0, 1], "minutes": 1.25, **numbers})
    table = tables.leaderboard(board.assign(arch="mlp", stale=False, warnings=[[], []]))
    assert list(table) == ["method", "seed", "clean", "worst case", "minutes"]
    assert table["clean"].tolist() == ["90.0 % (88.0–92.0)", "80.0 % (70.0–90.0)"]
    noted = board.assign(arch=["mlp", "resnet18"], stale=[True, False], warnings=[["robust overfitting"], []])
    assert tables.leaderboard(noted)["notes"].tolist() == ["stale; robust overfitting", ""]
    assert "arch" in tables.leaderboard(noted)


def test_over_seeds_shows_the_gravest_badge_and_a_dash_for_an_attack_that_a_method_did_not_meet() -> None:
    numbers = {"clean_mean": [0.9, 0.8], "clean_std": [0.012, float("nan")], "pgd_eot_mean": [float("nan"), 0.2]}
    means = pd.DataFrame({"method": ["standard", "trades"], "arch": "small_cnn", "seeds": [2, 1], **numbers})
    table = tables.over_seeds(means, fixtures.leaderboard())
    assert table["headline"].tolist() == ["– not audited", "✕ red"]
    assert table["clean"].tolist() == ["90.0 ± 1.2 %", "80.0 %"], "one seed has no deviation"
    assert table["PGD+EOT"].tolist() == ["–", "20.0 %"]
    assert "headline" not in tables.over_seeds(means)


def test_warnings_and_provenance() -> None:
    for texts, words in (([], "No catastrophic or robust overfitting"), (["it fell"], "- epoch 7: it fell")):
        assert words in tables.warnings(pd.DataFrame({"epoch_total": [7], "warnings": [texts]}))
    card = tables.provenance({"command": "robustlib run trades", "wall_seconds": 90})["this run"]
    assert card[["repeat it with", "training time"]].tolist() == ["robustlib run trades", "1.5 minutes"]
    assert not {"training time", "peak memory"} & {*tables.provenance({}).index}, "nothing was trained here"


def test_show_does_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(pd.DataFrame({"protocol": ["x" * 200]}))
    assert "x" * 200 in capsys.readouterr().out


def test_geometry_has_means_over_seeds_of_a_variant_and_layer_then_each_run() -> None:
    who = {"method": ["trades", "trades", "standard"], "title": ["TRADES", "TRADES", "Standard training"]}
    numbers = {"relative_l2": [0.2, 0.4, 0.9], "margin": [-0.1, -0.3, float("nan")], "effective_rank": [9.0, 10, 11]}
    measured = pd.DataFrame({**who, "seed": [0, 1, 0], "changed": "", "layer": "features", **numbers})
    table = tables.geometry(measured)
    assert list(table) == ["method", "seed", "relative L2 gap", "exclusion margin, clean", "effective rank, clean"]
    assert table.to_numpy().tolist() == [
        ["TRADES", "mean of 2", "0.300 ± 0.141", "−0.200 ± 0.141", "9.5 ± 0.7"],
        ["TRADES", "0", "0.200", "−0.100", "9.0"],
        ["TRADES", "1", "0.400", "−0.300", "10.0"],
        ["Standard training", "0", "0.900", "–", "11.0"],
    ]
    apart = tables.geometry(measured.assign(changed=["beta=1.0", "", ""], layer=["features", "features", "stem"]))
    assert list(apart)[:4] == ["method", "changed", "layer", "seed"]
    assert "mean" not in "".join(apart["seed"]), "no two runs are of one kind"
    assert list(tables.geometry(measured.drop(columns=["title", "changed", "layer"])))[:2] == ["method", "seed"]


def test_incomplete_runs_are_listed() -> None:
    lacking = {"run": ["a", "b"], "preset": "digits", "dataset": "digits", "path": "x", "missing": "not evaluated"}
    table = tables.incomplete(pd.DataFrame(lacking))
    assert table.to_dict("records")[0] == {"run": "a", "what is missing": "not evaluated"}
    assert "preset" in tables.incomplete(pd.DataFrame(lacking | {"preset": ["digits", "cifar10-short"]}))
    assert tables.incomplete(pd.DataFrame(columns=list(lacking))).empty


def test_what_many_runs_lack_is_one_sentence_a_reason() -> None:
    again = ": robustlib run trades --rerun"
    rows = [(f"runs/{k}", f"{NO_WEIGHTS}{again} {k}") for k in range(97)]
    rows += [(f"runs/{k}", f"a file cannot be read (runs/{k}/records_1.parquet: cut short){again}") for k in "ab"]
    lacking = pd.DataFrame(rows, columns=["path", "missing"])
    weights, records = "97 runs have no weights; their numbers are shown.", "2 runs: a file cannot be read"
    assert tables.lacks(lacking) == f"{weights} {records} (…/records\\_1.parquet: cut short)."
    assert tables.lacks(lacking[:1]) == "1 run has no weights; its numbers are shown."
    assert tables.lacks(lacking[:0]) == ""


def run(least: float = 0.4, *, method="atop", random: bool = True, changes: Any = None, n: int = 128, **values) -> Any:
    """An evaluated run as the grid sees it; `least` is left by the strong attack."""
    left = {"clean": 0.95, "pgd_eot" if random else "pgd50x10": least, "pgd20@classifier": 0.7, "worst": least - 0.1}
    rows = [{"attack": name, "accuracy": x, "low": x - 0.05, "high": x + 0.05} for name, x in left.items()]
    facts = {"method": method, "hyperparameters": {"purifier": "gan", "transform": "rt2", "fine_tune": True, **values}}
    results = {"n": n, "rows": rows}
    return SimpleNamespace(params=lambda: facts, changes=lambda: changes or {}, results=lambda: results)


def test_the_grid_sets_the_weak_attack_beside_the_strong_one():
    runs = [run(), run(0.5), run(0.1, transform="none", random=False, changes={"transform": "none", "cls_weight": 2.0})]
    runs += [run(0.3, fine_tune=False, changes={"fine_tune": False}), run(purifier="none", fine_tune=False)]
    grid = purifier_grid([run(method="pgd_at"), *runs])
    tuned = "GAN, no transform, fine-tuned, cls_weight=2.0"
    assert grid["row"].tolist() == ["no purifier, RT2", "GAN, RT2", "GAN, RT2, fine-tuned", tuned]
    mean = grid.set_index("row").loc["GAN, RT2, fine-tuned"]
    assert (mean["seeds"], mean["strong"]) == (2, pytest.approx(0.45))
    half = 12.7062 * np.std([0.4, 0.5], ddof=1) / math.sqrt(2)
    assert mean["strong_low"] == pytest.approx(max(0.45 - half, 0), abs=1e-4)
    assert grid.set_index("row").loc[tuned, "strong_high"] == pytest.approx(0.15)
    table = tables.inflation(grid).set_index("model")
    assert table.loc["GAN, RT2", "weak less strong"] == "+40.0 points"
    assert table.loc[tuned, "strong"] == "10.0 % (5.0–15.0)"
    drawn = figures.accuracy_dots(attack_table(grid), "Weak and strong")
    assert len(drawn.data) == 8
    assert "GAN, RT2: weak: gradients of the bare classifier 70.0 %, strong" in drawn.alt
    alone = run(0.1, transform="none", random=False, n=500)
    names = attack_table(purifier_grid([run(), alone]))["row"].unique().tolist()
    assert names == ["GAN, no transform, fine-tuned\n(500 images)", "GAN, RT2, fine-tuned"], "more than the others"
    alone.results = dict
    assert purifier_grid([alone, run(method="pgd_at")]).empty


def test_draws_are_told_apart_with_their_control():
    share = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 8, "correct": 4}
    both = {"expected": share, "single": share, "worst": {**share, "accuracy": 0.3}}
    fixed = [{"seed": 0, "clean": share, "attacked": {**share, "accuracy": 0.2}}]
    measured = {"draws": 10, "clean": both, "attacked": both, "fixed": fixed}
    table = randomness_table(measured).set_index(["row", "series"])
    assert table.loc[("worst of 10 draws", "clean"), "accuracy"] == 0.3
    assert table.loc[("draw fixed by seed 0,\nknown to the attacker", "attacked"), "accuracy"] == 0.2
    assert len(table) == 8

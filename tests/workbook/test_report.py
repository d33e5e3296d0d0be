"""Reports: pages that stand alone, with equations every browser draws, and an index that tells the truth."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustlib import figures
from robustlib.errors import InputError
from robustlib.workbook import tables
from robustlib.workbook.report import formulas, render, to_mathml, write_atlas, write_index
from robustlib.workbook.report.mathml import replace_formulas
from robustlib.workbook.report.page import parse, tidy
from tests import ROOT
from tests.fixtures import CSV, FORMULAS, audit, compared, incomplete, leaderboard, notebook, write_made_up_atlas

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PNG = figures.to_png(figures.accuracy_bars([{"attack": "clean", "accuracy": 0.5}]), dpi=40)


def page_of(tmp_path, **kinds) -> BeautifulSoup:
    nbformat.write(notebook(png=PNG, **kinds), tmp_path / "run.ipynb")
    made = render(tmp_path / "run.ipynb", tmp_path / "run.html", title="TRADES < all", index="../index.html")
    return BeautifulSoup(made.read_text(), "html.parser")


def index_of(tmp_path, rows, pages=None, **more) -> BeautifulSoup:
    return BeautifulSoup(write_index(tmp_path, rows, pages or {}, **more).read_text(), "html.parser")


# ---- equations


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("display", [False, True])
def test_formulas_become_well_formed_mathml(formula, display):
    tree = ET.fromstring(to_mathml(formula, display=display))
    assert tree.tag == "math"
    assert tree.get("display") == ("block" if display else "inline")
    assert tree.get("alttext") == formula
    assert "\\" not in "".join(tree.itertext())
    assert not [node for node in tree.iter() if node.tag == "mo" and len(node)]


def test_displayed_limits_stand_below_and_words_are_upright():
    assert "<munder><mo>max</mo>" in to_mathml(r"\max_{x} y", display=True)
    assert "<msub><mo>max</mo>" in to_mathml(r"\max_{x} y")
    assert '<mi mathvariant="normal">argmax</mi>' in to_mathml(r"\mathrm{argmax}")
    assert "<mo>∼</mo>" in to_mathml(r"x \sim D").replace(' stretchy="false"', "")
    assert to_mathml(r"\begin{align*} a &= b \end{align*}").count("text-align:") == 2
    assert "𝟙" in to_mathml(r"\mathbb{1}[a]")


WRONG = [r"\nosuch x", r"\frac{a}", "a}", "{a", "a & b", " ", r"\left( a", "a_", r"\begin{foo}a\end{foo}", r"\sqrt"]


@pytest.mark.parametrize("formula", WRONG)
def test_a_formula_that_cannot_be_drawn_is_named(formula):
    with pytest.raises(InputError, match="cannot be drawn") as raised:
        to_mathml(formula)
    assert repr(formula.strip()) in str(raised.value)


def test_formulas_are_found_and_code_and_money_are_not():
    text = (
        "a $x$ costs $5 and $10, `$y$`, ``a ` $n$`` \\$3 and $\\beta$-TRADES ($a$,\n$b$)\n"
        "```python\n$no$\n```\n$$z\n= 1$$\n\n- \\begin{align*}a&=b\\end{align*}\n\n`open $q$\n\nparagraph` $r$"
    )
    found = [("x", False), ("\\beta", False), ("a", False), ("b", False), ("z\n= 1", True)]
    found += [("\\begin{align*}a&=b\\end{align*}", True), ("q", False), ("r", False)]
    assert formulas(text) == found


@given(st.text(alphabet="ab$`\\ \n{}x1", max_size=40))
def test_what_is_no_formula_is_left_alone(text):
    assert replace_formulas(text, lambda formula, display: f"${formula}$" if not display else f"$${formula}$$") == text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_our_notebooks_can_be_drawn(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for formula, display in formulas(cell.source) if cell.cell_type == "markdown" else []:
            ET.fromstring(to_mathml(formula, display=display))


# ---- pages


def test_a_page_stands_alone(tmp_path):
    text = str(page_of(tmp_path))
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    page = page_of(tmp_path)
    assert not page.find_all(["script", "iframe", "object"])
    assert {link["href"] for link in page.find_all("link")} == {"data:,"}
    assert all(image["src"].startswith("data:") for image in page.find_all("img"))
    assert "default-src 'none'" in page.find("meta", attrs={"http-equiv": True})["content"]
    assert "arxiv.org/abs/1901.08573" in page.get_text(), "the address of a paper stays readable"


def test_a_page_reads_well_for_everyone(tmp_path):
    page = page_of(tmp_path)
    assert page.html["lang"] == "en"
    assert [h.get_text() for h in page.find_all("h1")] == ["TRADES < all"]
    assert page.select_one(".lede").get_text() == "Baselines & more"
    assert [image["alt"] for image in page.find_all("img")] == ['Loss "falls"', "Figure in “A second title”"]
    assert page.find("img")["width"] == "400"
    ids = [node["id"] for node in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert all(page.find(id=link["href"][1:]) for link in page.select("nav a, a.skip"))
    assert page.select_one(".eyebrow a")["href"] == "../index.html"
    style = page.style.get_text()
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_code_is_folded_and_outputs_are_shown(tmp_path):
    page = page_of(tmp_path)
    folds = page.select("details.code")
    assert [fold.summary.get_text() for fold in folds] == ["Parameters and their defaults", "Code", "Code"]
    assert not [fold for fold in page.find_all("details") if fold.has_attr("open")]
    printed = [text.get_text().strip() for text in page.select("pre.output")]
    assert printed[0] == "epoch 1/2\nepoch 2/2"
    assert printed[-1] == "a slider", "scripts and widgets are dead in a page; their words are not"
    warned = page.select_one("details.warned")
    assert "UserWarning: eight <threads>" in warned.get_text()
    assert not page.select(".failed")
    cells = page.select("table.dataframe td")
    assert [cell.get_text() for cell in cells] == ["clean", "0.99", "PGD", "0.75"]
    assert [cell.get("class") for cell in cells] == [None, ["num"], None, ["num"]]
    assert page.select_one("table.dataframe").parent["class"] == ["scroll"]


def test_columns_of_sentences_keep_a_width():
    """Beside many columns a claim would be a word wide."""
    claim = "A sentence that says what is claimed of two arms."
    rows = "".join(f"<tr><td>{words}</td><td>{p}</td></tr>" for words, p in ((claim, 0.1), ("short", 0.2)))
    soup = parse(f"<table><thead><tr><th>claim</th><th>p</th></tr></thead><tbody>{rows}</tbody></table>")
    tidy(soup)
    assert [cell["class"] for cell in soup.find_all(["th", "td"])] == ["words", "num"] * 3


def test_equations_are_drawn_and_code_spans_are_not(tmp_path):
    page = page_of(tmp_path)
    assert [math["alttext"] for math in page.find_all("math")] == ["p^*q^*", *FORMULAS]
    assert len(page.select(".equation")) == len(FORMULAS)
    assert "$not a formula$" in [code.get_text() for code in page.find_all("code")]
    assert "\ue000" not in page.get_text()


def test_the_footer_says_how_the_page_was_made(tmp_path):
    facts = page_of(tmp_path).select_one("footer.provenance")
    said = dict(zip(*[[n.get_text() for n in facts.find_all(tag)] for tag in ("dt", "dd")], strict=True))
    assert said["Notebook"] == "baselines.ipynb"
    assert said["Parameters"] == "seed = 3"
    assert said["Time"] == "1 min 01 s"
    assert said["Command"] == "robustlib run trades"


def test_a_failed_notebook_says_so_first(tmp_path):
    page = page_of(tmp_path, failed=True)
    notes = page.select(".failed")
    assert "stopped early" in notes[0].get_text()
    assert "ValueError: no <run>" in notes[0].get_text()
    assert notes[1]["id"] == "failure"
    assert "\x1b" not in page.get_text()


def test_rendering_twice_gives_the_same_bytes(tmp_path):
    page_of(tmp_path)
    first = (tmp_path / "run.html").read_bytes()
    page_of(tmp_path)
    assert (tmp_path / "run.html").read_bytes() == first


def test_a_picture_beside_the_notebook_is_embedded(tmp_path):
    (tmp_path / "plan.png").write_bytes(PNG)
    images = page_of(tmp_path, markdown="![The plan](plan.png)").find_all("img")
    assert images[0]["alt"] == "The plan"
    assert images[0]["src"].startswith("data:image/png")


@pytest.mark.parametrize(
    ("markdown", "named"),
    [
        ("![x](https://example.org/x.png)", "https://example.org/x.png"),
        ("![x](missing.png)", "missing.png"),
        ("<script src='//cdn.example.org/a.js'></script>", "//cdn.example.org/a.js"),
        ("<style>@import 'a.css';</style>", "@import"),
        ("<p style='background: url(b.png)'>x</p>", "url(b.png)"),
    ],
)
def test_what_would_be_loaded_is_refused(tmp_path, markdown, named):
    with pytest.raises(InputError, match=re.escape(named)):
        page_of(tmp_path, markdown=markdown)
    assert not (tmp_path / "run.html").exists()


def test_a_bad_formula_or_notebook_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"nosuch.*cannot be drawn"):
        page_of(tmp_path, markdown=r"$\nosuch$")
    with pytest.raises(InputError, match="no notebook"):
        render(tmp_path / "none.ipynb", tmp_path / "x.html", title="x")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(InputError, match="no readable notebook"):
        render(tmp_path / "bad.ipynb", tmp_path / "x.html", title="x")


def test_the_numbers_of_a_figure_are_offered_below_it(tmp_path):
    nbformat.write(compared(PNG), tmp_path / "compare.ipynb")
    render(tmp_path / "compare.ipynb", tmp_path / "compare.html", title="Comparison")
    page = BeautifulSoup((tmp_path / "compare.html").read_text(), "html.parser")
    links = page.select("figure figcaption a")
    assert [link["download"] for link in links] == [f"compare-figure-{k}.csv" for k in (1, 2, 3, 4)]
    assert [link.get_text() for link in links] == [f"Data (CSV) of figure {k}" for k in (1, 2, 3, 4)]
    kind, _, content = links[0]["href"].partition(",")
    assert (kind, base64.b64decode(content).decode()) == ("data:text/csv;charset=utf-8;base64", CSV)
    assert not page.select("[data-csv]")
    assert not page_of(tmp_path).select("figcaption"), "a figure without numbers offers none"


# ---- the index


def test_the_index_lists_runs_best_first_with_intervals_and_links(tmp_path):
    rows = leaderboard()
    pages = {rows["path"][2]: "digits/trades.html"}
    page = index_of(tmp_path, rows, pages, compare=[("digits", "digits/compare.html")])
    labels = [head.get_text(strip=True) for head in page.select("thead th")]
    assert labels[0] == "Method"
    assert "CW-50" not in labels, "a column without a single number is not shown"
    worst = labels.index("Worst case")
    cells = [row.find_all(["th", "td"])[worst] for row in page.select("tbody tr")]
    assert [cell.contents[0] for cell in cells] == ["72.0 %", "10.5 %", "9.5 %", "2.0 %"]
    assert cells[0].select_one(".interval").get_text() == "71.0–75.0"
    assert page.select_one("tbody a")["href"] == "digits/trades.html"
    assert len(page.select("tbody a")) == 1
    assert page.select_one("nav a")["href"] == "digits/compare.html"
    assert len(page.find_all("h1")) == 1
    assert "https://" not in str(page)


def test_the_index_shows_what_is_stale_and_what_was_warned(tmp_path):
    page = index_of(tmp_path, leaderboard())
    assert len([badge for badge in page.select(".badge") if badge.get_text().startswith("stale")]) == 1
    warned = page.select(".badge.warn")
    assert [badge["title"] for badge in warned] == ["robust overfitting <b>here</b>"] * 2
    assert not page.find_all("b"), "warnings are text, not markup"


def test_badges_stand_beside_the_worst_case(tmp_path):
    page = index_of(tmp_path, leaderboard())
    labels = [head.get_text(strip=True) for head in page.select("thead th")]
    assert labels.index("Audit") == labels.index("Worst case") + 1 == labels.index("Clean") + 2
    cells = {cell["data-value"]: cell.select(".badge") for cell in page.select("td.audit")}
    assert [[badge["class"][1] for badge in cells[key]] for key in "0123"] == [
        ["red", "red"],
        ["amber", "amber"],
        ["none"],
        ["pass", "pass"],
    ]
    amber = cells["1"][1]
    assert amber.contents[0] == "▲ protocol"
    assert amber["title"] == "amber: The paper's protocol overstates by 4.2 points."
    assert amber["title"] in amber.select_one(".sr-only").get_text(), "those who cannot hover hear it"
    assert "– not audited" in cells["2"][0].get_text()
    assert not page.find_all("i"), "what a check says is text, not markup"


def test_cards_carry_the_gravest_badges_of_their_runs(tmp_path):
    cards = index_of(tmp_path, leaderboard()).select(".cards li")
    assert [badge["class"][1] for badge in cards[0].select(".badge")] == ["red", "red"]
    assert cards[0].select_one(".badge")["title"].startswith("1 of 2 runs red: 7. black-box")
    assert [badge["class"][1] for badge in cards[1].select(".badge")] == ["none"], "one run of two has no audit"


def test_boards_without_audits_have_no_audit_column(tmp_path):
    rows = leaderboard()
    page = index_of(tmp_path, rows.drop(columns=[name for name in rows if "_badge" in name or "_text" in name]))
    assert "Audit" not in [head.get_text(strip=True) for head in page.select("thead th")]
    assert not page.select(".cards .badge")


def test_verdicts_of_a_run_are_coloured(tmp_path):
    page = page_of(tmp_path, html=tables.badges(audit()) + tables.checks(audit()).to_html(index=False))
    badges = page.select(".badge")
    assert [badge["class"][1] for badge in badges] == ["red", "amber"]
    assert badges[0].get_text() == "headline: ✕ red", "the words stand inside the badge"
    verdicts = {cell.get_text(): cell["class"][1] for cell in page.select("td.verdict")}
    assert verdicts == {"✓ pass": "pass", "▲ amber": "amber", "✕ red": "red", "– n/a": "na"}


def test_the_cards_are_means_over_seeds(tmp_path):
    cards = [card.get_text(" ", strip=True) for card in index_of(tmp_path, leaderboard()).select(".cards li")]
    assert cards[0].startswith("TRADES 40.8 % worst case ± 44.2")
    assert "98.5 % clean · mean ± sd of 2 seeds · 6.5 min each" in cards[0]
    (alone,) = index_of(tmp_path, leaderboard()[2:3]).select(".cards li")
    assert alone.get_text(" ", strip=True).startswith("TRADES 72.0 % worst case (71.0–75.0)")
    assert cards[1].startswith("STANDARD 6.2 %")


def test_presets_do_not_share_a_board(tmp_path):
    other = leaderboard().assign(preset="cifar10-short", dataset="cifar10")
    page = index_of(tmp_path, pd.concat([leaderboard(), other]))
    assert [h.get_text() for h in page.find_all("h2")][:2] == ["digits", "cifar10-short (cifar10)"]
    assert [len(board.select("tbody tr")) for board in page.select(".leaderboard")] == [4, 4]


def test_missing_numbers_are_dashes_and_sort_last(tmp_path):
    rows = leaderboard()
    rows.loc[2, ["worst", "worst_low", "worst_high"]] = float("nan")
    last = index_of(tmp_path, rows).select("tbody tr")[-1]
    cell = last.select_one(".worst")
    assert (cell.get_text(), cell["data-value"]) == ("–", "")


def test_presets_have_contents_links_of_their_own_and_filters(tmp_path):
    other = leaderboard().assign(preset="cifar10-short", dataset="cifar10", threat="Linf 0.0314")
    links = [("A", "digits/compare.html"), ("B", "cifar10-short/atlas.html"), ("C", "elsewhere.html")]
    page = index_of(tmp_path, pd.concat([leaderboard().assign(threat="Linf 0.2", n=500), other]), compare=links)
    assert [link["href"] for link in page.select(".contents a")] == ["#board-1", "#board-2"]
    assert [[link.get_text() for link in board.select("nav a")] for board in page.select(".board")] == [["A"], ["B"]]
    assert page.select_one("nav[aria-label=Comparisons] a")["href"] == "elsewhere.html"
    choices = {select["name"]: [o.get_text() for o in select.find_all("option")] for select in page.find_all("select")}
    assert choices == {"dataset": ["all", "cifar10", "digits"], "threat": ["all", "Linf 0.0314", "Linf 0.2"]}
    assert page.select_one(".filters").has_attr("hidden"), "only a script can filter, so only a script shows it"
    assert page.select_one(".board .facts").get_text() == "4 runs · Linf 0.2 · 500 test images"
    assert "Threat" not in [head.get_text(strip=True) for head in page.select("thead th")], "one threat in each board"
    assert not index_of(tmp_path, leaderboard()).select(".contents, .filters")


def test_a_board_of_several_threats_names_them(tmp_path):
    page = index_of(tmp_path, leaderboard().assign(threat=["Linf 0.2", "Linf 0.2", "L2 1", "L2 1"]))
    assert "Threat" in [head.get_text(strip=True) for head in page.select("thead th")]
    assert page.select_one(".facts").get_text() == "4 runs · L2 1 and Linf 0.2"
    assert [row["data-threat"] for row in page.select("tbody tr")] == ["L2 1", "Linf 0.2", "L2 1", "Linf 0.2"]


def test_the_index_shows_what_a_comparison_tagged_for_it(tmp_path):
    for name in ("digits", "cifar10-short"):
        nbformat.write(compared(PNG), tmp_path / f"{name}.ipynb")
    other = leaderboard().assign(preset="cifar10-short", dataset="cifar10")
    views = {name: tmp_path / f"{name}.ipynb" for name in ("cifar10-short", "digits", "unheard-of")}
    page = index_of(tmp_path, pd.concat([leaderboard(), other]), views=views)
    first, second = page.select(".board")
    sections = first.select(".view")
    titles = [section.h3.get_text() for section in sections]
    assert titles[0].startswith("Accuracy and")
    assert titles[1:] == ["Curves", "Maps", "Claims"], "sections without output are left out"
    assert sections[0].p.get_text() == "Up is better."
    assert sections[0].h3.math["alttext"] == "\\varepsilon"
    assert [section["class"][1] for section in sections] == ["half", "half", "wide", "full"]
    assert [image["alt"] for image in first.select(".view img")] == ["A trade-off", "Some curves", "A map"]
    assert [cell["class"] for cell in sections[3].select("td.num")] == [["num"]]
    assert sections[3].strong.get_text() == "8"
    assert not page.select(".view pre, .view details"), "neither code nor what was printed"
    files = [link["download"] for link in page.select("figcaption a")]
    assert files == [f"index-figure-{k}.csv" for k in range(1, 7)]
    assert len(second.select(".view")) == 4
    assert [h.name for h in page.select("h1, h2, h3")][:2] == ["h1", "h2"]


def test_incomplete_runs_are_listed_with_the_command_that_helps(tmp_path):
    for rows in (leaderboard(), pd.DataFrame()):
        page = index_of(tmp_path, rows, incomplete=incomplete())
        part = page.find("section", attrs={"aria-labelledby": "incomplete"})
        assert [row.th.get_text() for row in part.select("tbody tr")] == ["trades · seed 8", "trades · <9>"]
        assert [code.get_text() for code in part.select("code")] == [
            "robustlib evaluate runs/a",
            "robustlib run trades --rerun",
        ]
        assert part.select("td")[-1].get_text() == "records of pgd20 are incomplete: robustlib run trades --rerun"
        assert "2 runs lack something" in part.get_text()
    assert "Incomplete" not in index_of(tmp_path, leaderboard(), incomplete=incomplete()[:0]).get_text()


def test_an_empty_leaderboard_says_which_command_makes_runs(tmp_path):
    page = index_of(tmp_path, pd.DataFrame())
    assert "robustlib run standard pgd_at trades --preset digits" in page.get_text()
    assert not page.find_all(["table", "script"])


def test_a_foreign_frame_is_refused(tmp_path):
    with pytest.raises(InputError, match="'worst'"):
        write_index(tmp_path, leaderboard().drop(columns="worst"), {})


# ---- the atlas


def contents(path: Path) -> tuple[BeautifulSoup, dict, np.ndarray]:
    page = BeautifulSoup(path.read_text(), "html.parser")
    sprite = page.find(id="sprite")["src"].removeprefix("data:image/png;base64,")
    return (
        page,
        json.loads(page.find(id="data").get_text()),
        np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite)))),
    )


def test_the_atlas_stands_alone_and_keeps_images_exactly(tmp_path):
    clean, adversarial = write_made_up_atlas(tmp_path / "atlas.html", shape=(3, 8, 8))
    page, data, sprite = contents(tmp_path / "atlas.html")
    assert not re.search(r"https?://|//cdn|@import|url\(", str(page))
    assert len(page.find_all("h1")) == 1
    assert page.select_one(".eyebrow a")["href"] == "index.html"
    assert [run["name"] for run in data["runs"]] == ["Standard · seed 0", "Standard · seed 1"]
    rows = -(-len(data["labels"]) // data["columns"])
    first, change = sprite[:8, :8], sprite[8 * rows : 8 * rows + 8, :8]
    assert (first == clean.permute(1, 2, 0).numpy()).all()
    assert ((first + change) == adversarial.permute(1, 2, 0).numpy()).all(), "differences are kept modulo 256"
    assert "images are shown" not in page.get_text()


def test_an_atlas_too_large_shows_fewer_images_and_says_so(tmp_path):
    write_made_up_atlas(tmp_path / "atlas.html", shape=(3, 32, 32), n=500, runs=3)
    page, data, _ = contents(tmp_path / "atlas.html")
    shown = len(data["labels"])
    assert (tmp_path / "atlas.html").stat().st_size < 3_000_000
    assert 100 < shown < 500, "noise does not compress"
    assert f"{shown} of 500 images are shown" in page.get_text()
    assert {len(run["maps"]["PCA"]) for run in data["runs"]} == {4 * shown}


def test_eight_methods_of_digits_fit_into_an_atlas(tmp_path):
    write_made_up_atlas(tmp_path / "atlas.html", n=500, runs=8)
    assert len(contents(tmp_path / "atlas.html")[1]["labels"]) == 500


def test_an_atlas_of_a_trained_run(tmp_path, digits, monkeypatch):
    from robustlib.attacks import FGSM
    from robustlib.methods import make_method
    from robustlib.training import fit

    monkeypatch.setattr("robustlib.representation.embedding._umap", lambda u, start, _: start.copy())
    run = fit(make_method("standard", "digits", epochs=1, train_examples=100), digits, root=tmp_path, device="cpu")
    write_atlas(tmp_path / "atlas.html", [run], digits, FGSM(digits.threat), title="Map", n=20)
    page, data, sprite = contents(tmp_path / "atlas.html")
    assert "eps=0.2), steps=1" in page.footer.get_text()
    assert data["labels"] == digits.test.sample(20).labels.tolist()
    assert (sprite[:8, :8] == digits.test.sample(20).images[0, 0].numpy()).all()
    both = np.array(data["runs"][0]["maps"]["PCA"])
    assert (both.min(), both.max()) == (0, 9999)
    assert not page.select(".eyebrow a")
    with pytest.raises(InputError, match="no runs"):
        write_atlas(tmp_path / "none.html", [], digits, FGSM(digits.threat), title="Map", n=20)

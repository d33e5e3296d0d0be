"""Reports: pages that stand alone, with equations every browser draws, and an index that tells the truth."""

import base64
import hashlib
import io
import json
import os
import re
import time
import xml.etree.ElementTree as ET

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from robustlib import figures
from robustlib.attacks import FGSM
from robustlib.errors import InputError
from robustlib.methods import make_method
from robustlib.training import fit
from robustlib.workbook import tables
from robustlib.workbook.report import is_current, render, to_mathml, write_atlas, write_index
from robustlib.workbook.report.clean import clean, parse
from tests import ROOT
from tests.fixtures import FORMULAS, audit, compared, incomplete, leaderboard, notebook, write_fixture_atlas

PNG = figures.to_png(figures.accuracy_bars([{"attack": "clean", "accuracy": 0.5}]), dpi=40)
OUTSIDE = re.compile(r"https?://|//cdn|@import|url\(")


def page_of(folder, **kinds) -> BeautifulSoup:
    nbformat.write(notebook(png=PNG, **kinds), file := folder / "run.ipynb")
    return parse(render(file, folder / "run.html", title="TRADES < all", index="../index.html").read_text())


def index_of(folder, rows, pages=None, **more) -> BeautifulSoup:
    return parse(write_index(folder, rows, pages or {}, **more).read_text())


def texts(nodes) -> list[str]:
    return [node.get_text(" ", strip=True) for node in nodes]


def kinds(nodes) -> list[str]:
    return [node["class"][1] for node in nodes]


def labels(page) -> list[str]:
    return texts(page.select("thead th"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rows = leaderboard()
    pages, compare = {rows["path"][2]: "digits/trades.html"}, [("digits", "digits/compare.html")]
    return index_of(tmp_path_factory.mktemp("index"), rows, pages, compare=compare)


def test_of_very_many_runs_the_best_are_shown_and_all_are_in_a_file(tmp_path):
    one = leaderboard().iloc[[0]]
    rows = pd.concat([one.assign(worst=k / 1000, path=f"runs/{k}") for k in range(250)])
    page = index_of(tmp_path, rows, {"runs/249": "a.html"})
    shown = page.select(".leaderboard tbody tr")
    assert len(shown) == 200
    assert "24.9 %" in shown[0].get_text()
    assert "250 runs" in page.select_one(".facts").get_text()
    (link,) = page.select(".facts a")
    stored = pd.read_csv(tmp_path / link["href"])
    assert (len(stored), stored["page"].tolist()[-1]) == (250, "a.html")


def test_the_index_says_where_verdicts_change_with_the_data(tmp_path):
    rows = [("A < B.", "✓ supported", "✕ not supported", "differ"), ("C.", "–", "–", "agree")]
    page = index_of(
        tmp_path, leaderboard(), claims=pd.DataFrame(rows, columns=["claim", "digits", "cifar10", "verdicts"])
    )
    (section,) = [node for node in page.select("section") if node.get("aria-labelledby") == "claims"]
    assert texts(section.select("thead th")) == ["Claim", "digits", "cifar10", "Verdicts"]
    assert [texts(row.select("th, td"))[:3] for row in section.select("tbody tr")] == [list(row[:3]) for row in rows]
    assert [bool(row.select(".badge")) for row in section.select("tbody tr")] == [True, False]
    assert "1 of 2 verdicts differ" in section.get_text()
    for none in (None, pd.DataFrame()):
        assert not index_of(tmp_path, leaderboard(), claims=none).select("#claims")


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("display", [False, True])
def test_formulas_become_well_formed_mathml(formula, display):
    tree = ET.fromstring(to_mathml(formula, display=display))
    assert (tree.tag, tree.get("alttext")) == ("math", formula)
    assert tree.get("display") == ("block" if display else "inline")
    assert "\\" not in "".join(tree.itertext())
    assert not [node for node in tree.iter() if node.tag == "mo" and len(node)]


@pytest.mark.parametrize(
    ("formula", "display", "drawn"),
    [
        (r"\max_{x} y", True, "<munder><mo>max</mo>"),
        (r"\max_{x} y", False, "<msub><mo>max</mo>"),
        (r"\mathrm{argmax}", False, '<mi mathvariant="normal">argmax</mi>'),
        (r"x \sim D", False, "<mo>∼</mo>"),
        (r"\begin{align*} a &= b \end{align*}", False, "math-"),
        (r"\mathbb{1}[a]", False, "𝟙"),
    ],
)
def test_displayed_limits_stand_below_and_words_are_upright(formula, display, drawn):
    assert drawn in to_mathml(formula, display=display).replace(' stretchy="false"', "")


@pytest.mark.parametrize(
    "formula",
    [r"\nosuch x", r"\frac{a}", "a}", "{a", "a & b", " ", r"\left( a", "a_", r"\begin{foo}a\end{foo}", r"\sqrt"],
)
def test_a_formula_that_cannot_be_drawn_is_named(formula):
    with pytest.raises(InputError, match=f"^The formula {re.escape(repr(formula.strip()))} cannot be drawn"):
        to_mathml(formula)


def test_formulas_are_found_and_code_and_money_are_not(tmp_path, page):
    assert [math["alttext"] for math in page.find_all("math")] == ["p^*q^*", *FORMULAS]
    assert len(page.select(".equation")) == len(FORMULAS)
    assert "$not a formula$" in texts(page.find_all("code"))
    text = (
        "a $x$ costs $5 and $10, `$y$`, ``a ` $n$`` \\$3 and $\\beta$-TRADES ($a$,\n$b$)\n"
        "```python\n$no$\n```\n$$z\n= 1$$\n\n- \\begin{align*}a&=b\\end{align*}\n\n`open $q$\n\nparagraph` $r$"
    )
    drawn = page_of(tmp_path, markdown=text).find_all("math")[1 + len(FORMULAS) :]
    blocks = ["z\n= 1", "\\begin{align*}a&=b\\end{align*}"]
    expected = {part: "block" if part in blocks else "inline" for part in ("x", "\\beta", "a", "b", *blocks, "q", "r")}
    assert [(math["alttext"], math["display"]) for math in drawn] == list(expected.items())


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_formula_of_our_notebooks_can_be_drawn(path, tmp_path):
    render(path, tmp_path / "page.html", title="Page")


def test_a_page_stands_alone_and_reads_well_for_everyone(page):
    assert not OUTSIDE.search(str(page))
    assert not page.find_all(["script", "iframe", "object"])
    assert "default-src 'none'" in page.find("meta", attrs={"http-equiv": True})["content"]
    assert "arxiv.org/abs/1901.08573" in page.get_text(), "the address of a paper stays readable"
    assert texts(page.select("h1, .lede")) == ["TRADES < all", "Baselines & more"]
    images = page.find_all("img")
    assert all(image["src"].startswith("data:") for image in images)
    assert [image["alt"] for image in images] == ['Loss "falls"', "Figure in “A second title”"]
    assert images[0]["width"] == "400"
    assert not page.select("figcaption"), "a figure without numbers offers none"
    ids = [node["id"] for node in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.select("nav a, a.skip")} <= set(ids)
    assert page.select_one(".eyebrow a")["href"] == "../index.html"
    said = dict(zip(*[texts(page.footer.find_all(tag)) for tag in ("dt", "dd")], strict=True))
    facts = {"Notebook": "baselines.ipynb", "Parameters": "seed = 3", "Time": "1 min 01 s"}
    assert said.items() >= (facts | {"Command": "robustlib run trades"}).items()


def test_code_is_folded_and_outputs_are_shown(page):
    assert texts(page.select("details.code summary")) == ["Parameters and their defaults", "Code", "Code"]
    assert not page.select("details[open], .failed")
    printed = texts(page.select("pre.output"))
    assert printed[0] == "epoch 1/2\nepoch 2/2"
    assert printed[-1] == "a slider", "scripts and widgets are dead in a page; their words are not"
    assert "UserWarning: eight <threads>" in page.select_one("details.warned").get_text()
    cells = page.select("div.scroll > table.dataframe td")
    assert texts(cells) == ["clean", "0.99", "PGD", "0.75"]
    assert [cell.get("class") for cell in cells] == [None, ["num"], None, ["num"]]


def test_a_page_begins_with_the_result_and_links_to_no_notebook(tmp_path):
    book = nbformat.v4.new_notebook()
    outputs = [nbformat.v4.new_output("display_data", {"text/html": html}) for html in ("<p>71.2 %</p>", "<p>pass</p>")]
    book.cells = [
        nbformat.v4.new_markdown_cell("# Title\n\nMotivation. Next: [other.ipynb](other.ipynb)."),
        nbformat.v4.new_code_cell("judge(run)", outputs=outputs, metadata={"tags": ["result"]}),
    ]
    nbformat.write(book, tmp_path / "run.ipynb")
    page = parse(render(tmp_path / "run.ipynb", tmp_path / "run.html", title="Run").read_text())
    result = page.select_one("header.masthead").find_next_sibling()
    assert (result["class"], texts(result.select("p"))) == (["result"], ["71.2 %", "pass"])
    assert [node.get_text(strip=True) for node in page.select("main .cell pre")] == ["judge(run)"], (
        "its code stays where it was"
    )
    assert texts(page.select("main em")) == ["other.ipynb"]
    assert not page.select("a[href$=ipynb]")


def test_a_failed_notebook_says_so_first(tmp_path):
    page = page_of(tmp_path, failed=True)
    first, second = page.select(".failed")
    assert re.search("stopped early.*ValueError: no <run>", first.get_text(), re.DOTALL)
    assert second["id"] == "failure"
    assert "\x1b" not in page.get_text()


def test_rendering_twice_gives_the_same_bytes_and_a_picture_beside_the_notebook_is_embedded(tmp_path):
    (tmp_path / "plan.png").write_bytes(PNG)
    page = page_of(tmp_path, markdown="![The plan](plan.png)")
    again = parse(
        render(tmp_path / "run.ipynb", tmp_path / "run.html", title="TRADES < all", index="../index.html").read_text()
    )
    assert str(page) == str(again)
    image = page.find("img")
    assert (image["alt"], image["src"][:14]) == ("The plan", "data:image/png")


@pytest.mark.parametrize(
    ("markdown", "named"),
    [
        ("![x](https://example.org/x.png)", "https://example.org/x.png"),
        ("![x](missing.png)", "missing.png"),
        ("<p><img src='//cdn.example.org/a.png'></p>", "//cdn.example.org/a.png"),
        (r"$\nosuch$", "cannot be drawn"),
    ],
)
def test_what_would_be_loaded_or_cannot_be_drawn_is_refused(tmp_path, markdown, named):
    with pytest.raises(InputError, match=re.escape(named)):
        page_of(tmp_path, markdown=markdown)
    assert not (tmp_path / "run.html").exists()


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ("<b onclick='x()'>a</b>", "<b>a</b>"),
        ("<script>x()</script><ScRiPt>x()</sCrIpT>a", "a"),
        ("<script>x()", ""),
        ("<p style='color: red' id='main' class='badge red'>a", '<p class="badge red">a</p>'),
        ("<meta http-equiv=refresh content='0'><base href='//x'><link href='x'>a", "a"),
        ("<form action='//x'><input name='a'><button>a</button></form>", "a"),
        ("<iframe srcdoc='<b>x</b>'></iframe><object data='x'>x</object><embed src='x'>a", "a"),
        ("<a href='javascript:x()'>a</a>", "<a>a</a>"),
        ("<a href=' java\tscript:x()'>a</a>", "<a>a</a>"),
        ("<a href='\x01javascript:x()'>a</a>", "<a>a</a>"),
        ("<a href='data:text/html,x' target='_top'>a</a>", "<a>a</a>"),
        ("<a href='b.html#c'>a</a><a href='https://b.c/d?e'>f</a>", None),
        ("<img src='http://x/y.png'><img src='y.png'><img src='data:text/html,x'>", "<img/><img/><img/>"),
        (
            "<img src='data:image/png;base64,AA+/=' alt='a' srcset='y.png'>",
            '<img alt="a" src="data:image/png;base64,AA+/="/>',
        ),
        ("<!-- a --><![CDATA[<script>x()</script>]]><?php x() ?><!doctype html>b", "x()]]&gt;b"),  # as browsers read it
        ("<svg onload='x()'><script>x()</script></svg>a", "a"),
        (
            "<math href='javascript:x()'><mi>a</mi><annotation-xml encoding='text/html'><style>x",
            "<math><mi>a</mi></math>",
        ),
        ("</div></main></body><td>a", "a"),
        ("<textarea><img src=x onerror='x()'></textarea>", None),
        ("<a <b", None),
        ("<![x", None),
    ],
)
def test_html_of_outputs_shows_itself_and_does_nothing(html, kept):
    made = clean(html)
    left = {(node.name, name) for node in parse(made).find_all(True) for name in node.attrs}
    assert not {name for _, name in left} & {"style", "srcset", "srcdoc", "action", "id"}
    assert not [name for _, name in left if name.startswith("on")]
    assert not re.search(r"<(script|style|svg|meta|base|link|form|iframe|main|!)|javascript:", made)
    assert clean(made) == made
    if kept is not None:
        assert parse(made) == parse(kept)


def test_what_a_cell_says_can_neither_stop_nor_load_nor_read_anything(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    markdown = r"![a](secret.png) ![b](//x/y.png) ![c](attachment:none) <b>d</b> $\nosuch$ $\text{<script>}$ \<b\>"
    outputs = [
        nbformat.v4.new_output("display_data", data={"text/markdown": markdown}),
        nbformat.v4.new_output(
            "display_data", data={"text/html": "<img src='http://x/y.png' alt='e'><p class='masthead'>f"}
        ),
    ]
    book = notebook(png=PNG)
    book.cells.append(nbformat.v4.new_code_cell("", outputs=outputs))
    nbformat.write(book, file := tmp_path / "run.ipynb")
    page = parse(render(file, tmp_path / "run.html", title="x").read_text())
    last = page.select(".cell")[-1]
    assert not last.find_all(["b", "script"])
    assert [image.get("src") for image in last.find_all("img")] == [None]
    assert "a b c <b>d</b>" in last.get_text()
    assert r"\nosuch" in texts(last.find_all("code"))


def test_the_policy_of_a_page_names_the_hashes_of_its_own_style_sheet_and_script(page, index, tmp_path):
    write_fixture_atlas(tmp_path / "atlas.html")
    for one in (page, index, parse((tmp_path / "atlas.html").read_text())):
        policy = one.find("meta", attrs={"http-equiv": True})["content"]
        assert "unsafe" not in policy
        blocks = [node for node in one.find_all(["style", "script"]) if node.get("type") != "application/json"]
        hashes = [base64.b64encode(hashlib.sha256(node.string.encode()).digest()).decode() for node in blocks]
        assert re.findall("'sha256-(.*?)'", policy) == hashes
        assert not one.select("[style]")
        assert not [name for node in one.find_all(True) for name in node.attrs if name.startswith("on")]


def test_a_page_is_current_by_what_it_was_made_from(tmp_path):
    nbformat.write(notebook(png=PNG), file := tmp_path / "run.ipynb")
    html, words = tmp_path / "run.html", {"title": "TRADES", "index": "../index.html"}
    assert not is_current(file, html, **words)
    whole = render(file, html, **words).read_text()
    os.utime(html, (0, 0))
    assert is_current(file, html, **words), "whatever the clock says"
    assert not is_current(file, html, title="MART", index="../index.html")
    html.write_text(whole[: len(whole) // 2])
    assert not is_current(file, html, **words), "cut short"
    html.write_text(whole)
    nbformat.write(notebook(png=PNG, failed=True), file)
    os.utime(file, (0, 0))
    assert not is_current(file, html, **words)


def test_lines_printed_one_by_one_are_one_text_and_a_long_one_costs_nothing(tmp_path):
    said = ["1 %\r", "2 %\r", "done\r\n", "x" * 400_000, "\ry" * 1000, "\n", "end"]
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in said]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    nbformat.write(book, file := tmp_path / "run.ipynb")
    began = time.process_time()
    page = parse(render(file, tmp_path / "run.html", title="x").read_text())
    assert texts(page.select("pre.output")) == ["done\ny\nend"]
    outputs[4].text = ""
    nbformat.write(book, file)
    assert len(parse(render(file, tmp_path / "run.html", title="x").read_text()).pre.get_text()) > 400_000
    assert time.process_time() - began < 10


def test_a_bad_notebook_is_a_sentence(tmp_path):
    (tmp_path / "bad.ipynb").write_text("{")
    for name, sentence in (("none", "no notebook"), ("bad", "no readable notebook")):
        with pytest.raises(InputError, match=sentence):
            render(tmp_path / f"{name}.ipynb", tmp_path / "x.html", title="x")


def test_verdicts_of_a_run_are_coloured_and_sentences_keep_a_width(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: sent.append(data["text/html"]))
    tables.show_badges(audit())
    tables.show(tables.checks(audit()))
    page = page_of(tmp_path, html="".join(sent))
    badges, verdicts = page.select(".badge"), page.select("td.verdict")
    assert {"stacks", "of-4"} < set(page.select_one("table:has(th.words)")["class"]), "a telephone stacks it"
    assert {cell["data-label"] for cell in page.select("td.words")} == {"meaning"}
    assert texts(page.select("th.words")) == ["meaning"], "beside many columns it would be a word wide"
    assert kinds(badges) == ["red", "amber"]
    assert badges[0].get_text() == "headline: ✕ red", "the words stand inside the badge"
    colours = dict(zip(texts(verdicts), kinds(verdicts), strict=True))
    assert colours == {"✓ pass": "pass", "▲ amber": "amber", "✕ red": "red", "– n/a": "na"}


def test_the_index_lists_runs_best_first_with_intervals_links_and_warnings(index):
    assert labels(index)[:5] == ["Method", "Seed", "Clean", "Worst case", "Audit"]
    assert "CW-50" not in labels(index), "a column without a single number is not shown"
    cells = index.select("td.worst")
    assert [cell.contents[0] for cell in cells] == ["72.0 %", "10.5 %", "9.5 %", "2.0 %"]
    assert cells[0].select_one(".interval").get_text() == "71.0–75.0"
    assert [link["href"] for link in index.select("tbody a, nav a")] == ["digits/compare.html", "digits/trades.html"]
    assert len(index.find_all("h1")) == 1
    assert not OUTSIDE.search(str(index))
    assert not index.select(".contents, .filters"), "one data set and one threat"
    assert sum(text.startswith("stale") for text in texts(index.select(".badge"))) == 1
    assert [badge["title"] for badge in index.select(".badge.warn")] == ["robust overfitting <b>here</b>"] * 2
    assert not index.find_all(["b", "i"]), "warnings and what a check says are text, not markup"


def test_badges_stand_beside_the_worst_case(index, tmp_path):
    cells = {cell["data-value"]: cell.select(".badge") for cell in index.select("td.audit")}
    by_gravity = {"0": ["red"] * 2, "1": ["amber"] * 2, "2": ["none"], "3": ["pass"] * 2}
    assert {key: kinds(badges) for key, badges in cells.items()} == by_gravity
    amber = cells["1"][1]
    assert amber.contents[0] == "▲ protocol"
    assert amber["title"] == "amber: The paper's protocol overstates by 4.2 points."
    assert amber["title"] in amber.select_one(".sr-only").get_text(), "those who cannot hover hear it"
    assert "– not audited" in cells["2"][0].get_text()
    bare = index_of(tmp_path, leaderboard().filter(regex="^(?!.*(_badge|_text))"))
    assert "Audit" not in labels(bare)
    assert not bare.select(".cards .badge")
    strange = index_of(tmp_path, leaderboard().assign(headline_badge="purple", protocol_badge=None))
    assert kinds(strange.select("td.audit .badge")) == ["none"] * 4, "a verdict that nobody knows is none"


def test_cards_are_means_over_seeds_and_carry_the_gravest_badges(tmp_path, index):
    first, second = index.select(".cards li")
    trades, standard = texts((first, second))
    assert trades.startswith("TRADES 40.8 % worst case ± 44.2")
    assert "98.5 % clean · mean ± sd of 2 seeds · 6.5 min each" in trades
    assert standard.startswith("STANDARD 6.2 %")
    assert kinds(first.select(".badge")) == ["red", "red"]
    assert first.select_one(".badge")["title"].startswith("1 of 2 runs red: 7. black-box")
    assert kinds(second.select(".badge")) == ["none"], "one run of two has no audit"
    (alone,) = texts(index_of(tmp_path, leaderboard()[2:3].assign(minutes=0.5)).select(".cards li"))
    assert alone.startswith("TRADES 72.0 % worst case (71.0–75.0)")
    assert alone.endswith("99.0 % clean · 1 seed · 30 s each")


def test_presets_have_leaderboards_contents_links_of_their_own_and_filters(tmp_path):
    other = leaderboard().assign(preset="cifar10-short", dataset="cifar10", threat="Linf 0.0314")
    links = [("A", "digits/compare.html"), ("B", "cifar10-short/atlas.html"), ("C", "elsewhere.html")]
    page = index_of(tmp_path, pd.concat([leaderboard().assign(threat="Linf 0.2", n=500), other]), compare=links)
    assert texts(page.find_all("h2"))[:2] == ["digits", "cifar10-short (cifar10)"]
    assert [len(board.select("tbody tr")) for board in page.select(".leaderboard")] == [4, 4]
    assert [link["href"] for link in page.select(".contents a")] == ["#board-1", "#board-2"]
    assert [texts(board.select("nav a")) for board in page.select(".board")] == [["A"], ["B"]]
    assert page.select_one("nav[aria-label=Comparisons] a")["href"] == "elsewhere.html"
    choices = {select["name"]: texts(select.find_all("option")) for select in page.find_all("select")}
    assert choices == {"dataset": ["all", "cifar10", "digits"], "threat": ["all", "Linf 0.0314", "Linf 0.2"]}
    assert page.select_one(".board .facts").get_text() == "4 runs · Linf 0.2 · 500 test images"
    assert "Threat" not in labels(page), "one threat in each board"


def test_a_leaderboard_of_several_threats_names_them_and_missing_numbers_are_dashes(tmp_path):
    rows = leaderboard().assign(threat=["Linf 0.2", "Linf 0.2", "L2 1", "L2 1"])
    rows.loc[2, ["worst", "worst_low", "worst_high"]] = float("nan")
    page = index_of(tmp_path, rows)
    assert "Threat" in labels(page)
    assert page.select_one(".facts").get_text() == "4 runs · L2 1 and Linf 0.2"
    assert [row["data-threat"] for row in page.select("tbody tr")] == ["Linf 0.2", "L2 1", "Linf 0.2", "L2 1"]
    last = page.select(".worst")[-1]
    assert (last.get_text(), last["data-value"]) == ("–", "")


def test_the_index_shows_what_a_comparison_tagged_for_it(tmp_path):
    nbformat.write(compared(PNG), tmp_path / "compare.ipynb")
    other = leaderboard().assign(preset="cifar10-short", dataset="cifar10")
    views = dict.fromkeys(("cifar10-short", "digits", "unheard-of"), tmp_path / "compare.ipynb")
    page = index_of(tmp_path, pd.concat([leaderboard(), other]), views=views)
    first, second = page.select(".board")
    sections = first.select(".view")
    titles = [section.h3.get_text() for section in sections]
    assert titles[0].startswith("Accuracy and")
    assert titles[1:] == ["Curves", "Maps", "Claims"], "sections without output are left out"
    assert sections[0].p.get_text() == "Up is better."
    assert sections[0].h3.math["alttext"] == "\\varepsilon"
    assert kinds(sections) == ["half", "half", "wide", "full"]
    assert [image["alt"] for image in first.select(".view img")] == ["A trade-off", "Some curves", "A map"]
    assert [cell["class"] for cell in sections[3].select("td.num")] == [["num"]]
    assert sections[3].strong.get_text() == "8"
    assert not page.select(".view pre, .view details"), "neither code nor what was printed"
    files = [link["download"] for link in page.select("figcaption a")]
    assert files == [f"index-figure-{k}.csv" for k in range(1, 7)]
    assert texts(page.select("figcaption"))[5] == "Data (CSV) of figure 6"
    assert len(second.select(".view")) == 4
    assert [h.name for h in page.select("h1, h2, h3")][:2] == ["h1", "h2"]


def test_a_sentence_on_what_is_not_there_makes_no_section_of_the_index(tmp_path):
    book = compared(PNG)
    words = nbformat.v4.new_output("display_data", {"text/markdown": "Not shown: no weights."})
    book.cells += [nbformat.v4.new_markdown_cell("## Gaps"), nbformat.v4.new_code_cell("1", outputs=[words])]
    book.cells[-1].metadata["tags"] = ["index"]
    nbformat.write(book, tmp_path / "compare.ipynb")
    page = index_of(tmp_path, leaderboard(), views={"digits": tmp_path / "compare.ipynb"})
    assert [h3.get_text() for h3 in page.select(".view h3")][1:] == ["Curves", "Maps", "Claims"]


@pytest.mark.parametrize("rows", [leaderboard(), pd.DataFrame()], ids=["runs", "none"])
def test_incomplete_runs_and_an_empty_index_name_the_command_that_helps(tmp_path, rows):
    part = index_of(tmp_path, rows, incomplete=incomplete()).select_one("section[aria-labelledby=incomplete]")
    assert texts(part.select("tbody th")) == ["trades · seed 8", "trades · <9>"]
    assert texts(part.select("code")) == ["robustlib evaluate runs/a", "robustlib run trades --rerun"]
    assert part.select("td")[-1].get_text() == "records of pgd20 are incomplete: robustlib run trades --rerun"
    assert "2 runs lack something" in part.get_text()
    bare = index_of(tmp_path, rows, incomplete=incomplete()[:0])
    assert "Incomplete" not in bare.get_text()
    makes_runs = "robustlib run standard pgd_at trades --preset digits" in bare.get_text()
    assert (makes_runs, not bare.find_all(["table", "script"])) == (rows.empty,) * 2
    alone = index_of(tmp_path, rows, incomplete=incomplete()[:1].assign(preset=None, dataset=None))
    assert "–" in texts(alone.select("[aria-labelledby=incomplete] td")), "a run by hand has no preset"


def contents(path) -> tuple[BeautifulSoup, dict, np.ndarray]:
    page = parse(path.read_text())
    sprite = base64.b64decode(page.find(id="sprite")["src"].removeprefix("data:image/png;base64,"))
    return page, json.loads(page.find(id="data").get_text()), np.asarray(Image.open(io.BytesIO(sprite)))


def test_the_atlas_stands_alone_and_keeps_images_exactly(tmp_path):
    clean, adversarial = write_fixture_atlas(tmp_path / "atlas.html", shape=(3, 8, 8))
    page, data, sprite = contents(tmp_path / "atlas.html")
    assert not OUTSIDE.search(str(page))
    assert len(page.find_all("h1")) == 1
    assert page.select_one(".eyebrow a")["href"] == "index.html"
    assert [run["name"] for run in data["runs"]] == ["Standard · seed 0", "Standard · seed 1"]
    rows = -(-len(data["labels"]) // data["columns"])
    first, change = sprite[:8, :8], sprite[8 * rows : 8 * rows + 8, :8]
    assert (first == clean.permute(1, 2, 0).numpy()).all()
    assert ((first + change) == adversarial.permute(1, 2, 0).numpy()).all(), "differences are kept modulo 256"
    assert "images are shown" not in page.get_text()


def test_an_atlas_too_large_shows_fewer_images_and_says_so(tmp_path):
    write_fixture_atlas(tmp_path / "atlas.html", n=500, runs=8)
    assert len(contents(tmp_path / "atlas.html")[1]["labels"]) == 500, "eight methods of digits fit"
    write_fixture_atlas(tmp_path / "atlas.html", shape=(3, 32, 32), n=500, runs=3)
    page, data, _ = contents(tmp_path / "atlas.html")
    shown = len(data["labels"])
    assert (tmp_path / "atlas.html").stat().st_size < 3_000_000
    assert 100 < shown < 500, "noise does not compress"
    assert f"{shown} of 500 images are shown" in page.get_text()
    assert {len(run["maps"]["PCA"]) for run in data["runs"]} == {4 * shown}


def test_an_atlas_of_a_trained_run(tmp_path, digits, monkeypatch):
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

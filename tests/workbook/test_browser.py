"""Reports in a real browser (Debian's headless Chromium): they sort and filter, load nothing, turn dark, and can be read by all."""

import base64
import json
import os
import urllib.parse
from pathlib import Path
from typing import Any

import lab
import nbformat
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from robustlib import evaluation, figures
from robustlib.runs import Run
from robustlib.workbook import tables
from robustlib.workbook.report import render, write_index
from tests.fixtures import CSV, adaptive, audit, compared, incomplete, leaderboard, notebook, write_fixture_atlas
from tests.workbook import finished_run

pytestmark = pytest.mark.browser
KINDS = ("index", "run", "comparison", "atlas")


@pytest.fixture(scope="module")
def browser():
    if lab.chromium() is None:
        reason = "chromium not found: install Debian's chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with lab.browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    rows = leaderboard()
    rows.loc[0, ["worst", "worst_low", "worst_high"]] = float("nan")
    png = figures.to_png(figures.accuracy_bars([{"attack": "clean", "accuracy": 0.5}]))
    nbformat.write(notebook(png=png, failed=True), folder / "run.ipynb")
    nbformat.write(compared(png), folder / "compare.ipynb")
    address = {name: folder / f"{name}.html" for name in KINDS}
    render(folder / "run.ipynb", address["run"], title="TRADES", index="index.html")
    render(folder / "compare.ipynb", address["comparison"], title="Comparison", index="index.html")
    write_fixture_atlas(address["atlas"])
    links = [("Comparison", "comparison.html"), ("Map", "atlas.html")]
    views = {"digits": folder / "compare.ipynb"}
    write_index(folder, rows, {rows["path"][2]: "run.html"}, compare=links, incomplete=incomplete(), views=views)
    return address


@pytest.fixture
def page(browser):
    """A fresh page that remembers what it asked for and what it complained about."""
    with browser.new_context(accept_downloads=True) as context:
        made = context.new_page()
        made.asked, made.complaints = [], []
        made.on("request", lambda request: made.asked.append(urllib.parse.unquote(request.url)))
        made.on("console", lambda message: made.complaints.append(message.text))
        made.on("pageerror", lambda error: made.complaints.append(str(error)))
        yield made


def opened(page: Page, path: Path) -> Page:
    page.goto(path.as_uri())
    return page


@pytest.fixture
def index(page, pages):
    return opened(page, pages["index"])


@pytest.fixture
def atlas(page, pages):
    return opened(page, pages["atlas"])


@pytest.fixture(params=KINDS)
def any_page(page, pages, request):
    return opened(page, pages[request.param])


def column(page: Page, label: str) -> list[str]:
    """What the visible rows of the leaderboard say in a column."""
    place = page.locator(".leaderboard thead th").all_inner_texts().index(label) + 1
    cells = page.locator(f".leaderboard tbody tr > :nth-child({place}):visible")
    return [text.splitlines()[0] for text in cells.all_inner_texts()]


def sort(page: Page, label: str, key: str = "") -> tuple[dict[str, str], list[str]]:
    """Sorts by a column, by click or by key: which columns say that they are sorted, and how; what the column says then."""
    button = page.locator(".leaderboard thead th").filter(has_text=label).first.locator("button")
    button.press(key) if key else button.click()
    heads = page.locator(".leaderboard thead th:not([aria-sort=none])").all()
    return {th.inner_text(): th.get_attribute("aria-sort") for th in heads}, column(page, label)


def test_a_click_or_a_key_sorts_numbers_as_numbers_and_a_second_one_turns_them(index):
    best_first = ["72.0 %", "10.5 %", "9.5 %", "–"]  # what is missing stays last
    assert column(index, "Worst case") == best_first
    assert index.locator("[aria-sort=descending]").all_inner_texts() == ["Worst case"]
    assert sort(index, "Worst case") == ({"Worst case": "ascending"}, ["9.5 %", "10.5 %", "72.0 %", "–"])
    assert sort(index, "Worst case") == ({"Worst case": "descending"}, best_first)
    assert sort(index, "Minutes") == ({"Minutes": "ascending"}, ["1.5", "1.5", "11.5", "11.5"])
    by_gravity = ["✕ headline", "▲ headline", "– not audited", "✓ headline"]
    assert sort(index, "Audit") == ({"Audit": "ascending"}, by_gravity)
    order, names = sort(index, "Method", "Enter")
    assert [name.split()[0] for name in names] == ["STANDARD", "STANDARD", "TRADES", "TRADES"]
    order, _ = sort(index, "Method", "Space")
    assert order == {"Method": "descending"}
    assert "Sorted by Method, descending" in index.locator(".leaderboard [role=status]").text_content()


# ---- filters


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    other = leaderboard().assign(preset="cifar10-short", dataset="cifar10", threat="Linf 0.0314")
    rows = leaderboard().assign(threat=["Linf 0.2", "Linf 0.2", "L2 1", "L2 1"])
    return write_index(tmp_path_factory.mktemp("several"), pd.concat([rows, other]), {}, incomplete=incomplete())


def test_filters_hide_runs_and_say_how_many_are_left(page, several):
    def left() -> tuple[str, list[str]]:
        status = page.locator(".filters [role=status]").inner_text()
        return status.removesuffix(" of 8 runs shown."), page.locator(".board:visible h2").all_inner_texts()

    opened(page, several)
    assert left() == ("8", ["digits", "cifar10-short (cifar10)"])
    page.get_by_label("Data set").focus()
    page.keyboard.press("ArrowDown")
    assert left() == ("4", ["cifar10-short (cifar10)"])
    page.keyboard.press("ArrowDown")
    assert left() == ("4", ["digits"])
    assert page.locator(".contents li:visible").all_inner_texts() == ["digits", "Incomplete runs"]
    page.get_by_label("Threat").select_option("L2 1")
    assert left() == ("2", ["digits"])
    assert [name.split()[0] for name in column(page, "Method")] == ["TRADES", "TRADES"]
    assert page.locator(".cards li:visible h3").all_inner_texts() == ["TRADES"]
    page.get_by_label("Threat").select_option("Linf 0.0314")
    assert left() == ("0", [])
    assert page.get_by_role("heading", name="Incomplete runs").is_visible(), "never dropped silently"


def test_without_scripts_everything_is_shown_and_no_filter(browser, several):
    with browser.new_context(java_script_enabled=False) as context:
        page = opened(context.new_page(), several)
        assert page.locator(".leaderboard tbody tr:visible").count() == 8
        assert not page.locator(".filters").is_visible()


# ---- the atlas


def test_the_atlas_shows_a_pair_and_follows_keyboard_and_mouse(atlas):
    title, slider = atlas.locator("#example"), atlas.get_by_label("Example", exact=True)
    assert title.inner_text() == "Example 2 of 40, labelled one", "it begins with an image that the attack turned"
    slider.press("ArrowRight")
    assert title.inner_text() == "Example 3 of 40, labelled two"
    words = "3 of 40, labelled two: clean called two ✓, adversarial called two ✓"
    assert slider.get_attribute("aria-valuetext") == words
    atlas.get_by_label("Class").select_option("one")
    assert title.inner_text() == "Example 1 of 10, labelled one"
    assert atlas.locator(".pair .wrong").inner_text().split() == ["adversarial", "called", "two", "✕"]
    assert "50.0\u00a0% after this attack" in atlas.locator("#summary").inner_text()
    atlas.get_by_label("Network").select_option("Standard · seed 1")
    assert "Standard · seed 1: of 10 images" in atlas.locator("#summary").inner_text()
    assert title.inner_text() == "Example 1 of 10, labelled one", "the same image of another network"
    atlas.get_by_label("Class").select_option("all")
    canvas = atlas.locator("canvas.map")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    half = min(box["width"], box["height"]) / 2 - 18  # the first example stands in the lower left corner of a square
    atlas.mouse.move(box["x"] + box["width"] / 2 - half, box["y"] + box["height"] / 2 + half)
    assert title.inner_text() == "Example 1 of 40, labelled zero"


def test_the_images_are_those_of_the_run(atlas):
    """What the canvases show: the clean image, and exactly the adversarial one."""
    atlas.get_by_label("Example", exact=True).press("Home")
    pixels = "node => [...node.getContext('2d').getImageData(0, 0, node.width, node.height).data]"
    for k, image in zip((0, 2), write_fixture_atlas(None), strict=True):
        side = atlas.locator(".pair canvas").nth(k).evaluate(pixels)
        assert [side[k::4] for k in range(3)] == [image[0].flatten().tolist()] * 3


# ---- every page


def faults(page: Page) -> list[tuple[str, list[str]]]:
    found = Axe().run(page).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in grave]


def unfold(page: Page) -> None:
    for fold in page.locator("summary").all():
        fold.click()


@pytest.mark.parametrize("width", [1400, 360])
def test_axe_finds_no_serious_fault_and_a_telephone_needs_no_sideways_scrolling(any_page, width):
    any_page.set_viewport_size({"width": width, "height": 900})
    assert any_page.evaluate("document.documentElement.scrollWidth") <= width
    unfold(any_page)
    for scheme in ("light", "dark"):
        any_page.emulate_media(color_scheme=scheme)
        assert not faults(any_page)


def test_tables_of_a_comparison_and_the_index_fit_a_screen(page, pages, tmp_path):
    named = [("method", "rep_spectral"), ("arch", "small_cnn"), ("seed", 0), ("clean", "98.4 % (94.5–99.6)")]
    named += [("worst case", "73.4 % (65.2–80.3)"), ("headline", "✓ pass"), ("protocol", "▲ amber")]
    named += [(name, "85.9 %") for name in ("FGSM", "PGD-20", "PGD-50×10", "CW-50", "PGD+EOT", "AutoAttack")]
    named += [("changed", "reverse_attention=False, negative_contrast=False"), ("minutes", "12.3")]
    named += [("notes", "stale; robust overfitting: worst case fell by 3.2 points after epoch 12")]
    html = pd.DataFrame([dict(named)] * 3).to_html(index=False, border=0)
    shown = nbformat.v4.new_output("display_data", {"text/html": html})
    cells = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("1", outputs=[shown])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wide.ipynb")
    render(tmp_path / "wide.ipynb", tmp_path / "wide.html", title="Wide", index="index.html")
    page.set_viewport_size({"width": 1400, "height": 900})
    for path in (tmp_path / "wide.html", pages["index"]):
        opened(page, path)
        hidden = "[...document.querySelectorAll('.scroll')].map(one => one.scrollWidth - one.clientWidth)"
        assert page.evaluate(hidden)[0] <= 0, "nothing is cut at the right"


def test_a_telephone_shows_sentences_below_their_row_and_figures_large_enough_to_read(page, tmp_path):
    text = {"protocol": "a sentence of more than forty letters " * 3}
    rows = [{"attack": "PGD-50×10", "accuracy": "93.8 % (79.9–98.3)", "passes": "200", "images": "32", **text}] * 2
    shown = [nbformat.v4.new_output("display_data", {"text/html": pd.DataFrame(rows).to_html(index=False, border=0)})]
    png = base64.b64encode(figures.to_png(figures.accuracy_bars([{"attack": "clean", "accuracy": 0.5}]))).decode()
    width = {"image/png": {"alt": "A figure", "width": 768}}
    shown.append(nbformat.v4.new_output("display_data", {"image/png": png}, metadata=width))
    cells = [nbformat.v4.new_code_cell("1", outputs=shown)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "tall.ipynb")
    render(tmp_path / "tall.ipynb", tmp_path / "tall.html", title="Tall")
    page.set_viewport_size({"width": 400, "height": 900})
    opened(page, tmp_path / "tall.html")
    box = page.locator("td.words").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 400
    above = page.locator("tbody tr").first.locator("td").nth(1).bounding_box()
    assert above["y"] + above["height"] <= box["y"] + 1, "the sentence stands below the numbers"
    assert page.locator("figure img").bounding_box()["width"] >= 640
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not faults(page)


def test_no_request_leaves_the_page_and_the_console_is_silent(any_page):
    unfold(any_page)
    assert [url for url in any_page.asked if not url.startswith("data:")] == [urllib.parse.unquote(any_page.url)]
    assert any_page.complaints == []


def test_faults_and_requests_would_be_noticed_and_the_page_forbids_requests(page, pages, tmp_path):
    bad = "<img src='http://127.0.0.1:9/leak.png'><p style='color: #ccc; background: #ddd'>pale</p>"
    (tmp_path / "bad.html").write_text(bad)
    seen = {name for name, _ in faults(opened(page, tmp_path / "bad.html"))}
    assert {"image-alt", "color-contrast"} <= seen
    assert "http://127.0.0.1:9/leak.png" in page.asked
    opened(page, pages["run"])
    page.complaints.clear()
    page.evaluate("const i = new Image(); i.src = 'http://127.0.0.1:9/leak.png'; document.body.append(i)")
    page.wait_for_timeout(200)
    assert "Content Security Policy" in " ".join(page.complaints)


# ---- runs of strangers


AWAY = "http://127.0.0.1:9/"
HOSTILE = (
    f"""'"><script>hit = 1; location = '{AWAY}script'</script><img src="{AWAY}img" onerror="hit = 2"><svg onload="hit = 3">"""
    f"""<meta http-equiv="refresh" content="0; url={AWAY}meta"><base href="{AWAY}"><form action="{AWAY}"><input name="a"></form>"""
    f"""<iframe src="javascript:hit = 4"></iframe><style>body {{ background: url({AWAY}css) }}</style><p style="position: fixed" onclick="hit = 5">"""
    f"""[x](javascript:hit=6) ![x]({AWAY}md) <a href=" java\tscript:hit = 7">x</a> $\\text{{<script>hit = 8</script>}}$ $\\nosuch$"""
    """ </script></td></table></main></body>`{{ 7 * 7 }}`<math><mtext><mglyph><style><img src onerror="hit = 9"></style>"""
)


def strangers_run(root: Path, method: str) -> Run:
    """A run each of whose files says HOSTILE wherever it says words."""
    judged, results = audit(), adaptive()
    for said in (*judged["checks"], *judged["badges"].values()):
        said |= {name: HOSTILE for name in ("name", "meaning", "text") if name in said}
    ends = {"low": 0.1, "high": 0.9, "n": 4}
    results |= {"threat": HOSTILE, "n": 4, "checkpoint": HOSTILE, "split": HOSTILE, "last": {"rows": results["rows"]}}
    results["rows"] = [*results["rows"], {"attack": HOSTILE, "accuracy": 0.5, "protocol": HOSTILE, **ends}]
    facts = {
        "command": f"robustlib run; {HOSTILE}",
        "git": HOSTILE,
        "device_name": HOSTILE,
        "packages": {HOSTILE: HOSTILE},
    }
    files = {"results": results, "audit": judged, "provenance": facts}
    spec = {"num_classes": 10, "image_shape": [1, 8, 8], "mean": [0.5], "std": [0.5]}
    run = finished_run(root, method, 0, files, title=HOSTILE, spec=spec, changes={"beta": HOSTILE})
    rows = [{"epoch": k, "epoch_total": k, "stage": HOSTILE, "warnings": [HOSTILE]} for k in range(2)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def said_of(runs: list[Run]) -> Any:
    """A notebook that shows what ours show of runs, and outputs that are hostile themselves."""
    shown: list[dict[str, str]] = []
    board = evaluation.leaderboard(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
        for run in runs:
            tables.show_badges(run.audit(), run.path)
            facts = tables.provenance(run.provenance(), run.path)
            for table in (tables.accuracies(run.results()), tables.checks(run.audit()), facts):
                tables.show(table)
        for table in (
            tables.leaderboard(board),
            tables.inventory(runs),
            tables.incomplete(evaluation.incomplete(runs)),
        ):
            tables.show(table)
    texts = [tables.objections(board), *(tables.warnings(run.metrics()) for run in runs), HOSTILE]
    shown += [{"text/markdown": text} for text in texts] + [{"text/html": HOSTILE}, {"text/latex": HOSTILE}]
    shown += [{"text/html": f"<div class='masthead board leaderboard filters'>{HOSTILE}<table><tr><td>x"}]
    shown += [{"image/png": HOSTILE}, {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{HOSTILE}"}]
    book = compared(b"")
    for data in shown:
        output = nbformat.v4.new_output(
            "display_data", data=data, metadata={"image/png": {"alt": HOSTILE, "csv": HOSTILE}}
        )
        book.cells.append(nbformat.v4.new_code_cell(HOSTILE, metadata={"tags": ["index"]}, outputs=[output]))
    error = nbformat.v4.new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE])
    printed = [nbformat.v4.new_output("stream", name=name, text=HOSTILE) for name in ("stdout", "stderr")]
    book.cells.append(nbformat.v4.new_code_cell("", outputs=[*printed, error]))
    book.metadata["papermill"] = {"parameters": {HOSTILE: HOSTILE}, "input_path": HOSTILE}
    return book


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """One page of each kind made of two strangers' runs, and how many scripts each has."""
    folder = tmp_path_factory.mktemp("strange")
    runs = [strangers_run(folder / "runs", method) for method in ("trades", "mart")]
    rows, lacking = evaluation.leaderboard(runs), evaluation.incomplete(runs)
    nbformat.write(said_of(runs), book := folder / "compare.ipynb")
    render(book, folder / "run.html", title=HOSTILE, index="index.html")
    write_fixture_atlas(folder / "atlas.html", title=HOSTILE)
    address = {rows["path"][0]: "run.html"}
    write_index(folder, rows, address, compare=[(HOSTILE, "run.html")], incomplete=lacking, views={"digits": book})
    return {folder / "index.html": 1, folder / "run.html": 0, folder / "atlas.html": 2}


def test_nothing_that_files_say_runs_loads_or_leads_away(page, strange):
    for path, scripts in strange.items():
        page.asked.clear()
        opened(page, path)
        unfold(page)
        for node in page.locator("main p, main td").all()[:40]:
            node.dispatch_event("click")
        page.wait_for_timeout(300)
        assert page.evaluate("typeof hit") == "undefined"
        assert [url for url in page.asked if not url.startswith("data:")] == [urllib.parse.unquote(path.as_uri())]
        assert not [text for text in page.complaints if "Policy" in text], "nothing was left to the policy"
        assert page.locator("script").count() == scripts
        assert (
            page.locator("base, form[action], iframe, meta[http-equiv=refresh], main style, main [style]").count() == 0
        )
        assert page.locator("html").evaluate(HANDLERS) == []
        assert "hit = 1" in page.locator("body").text_content(), "it is shown as text"


HANDLERS = """root => [...root.querySelectorAll('*')].flatMap(node => [...node.attributes].map(a => [a.name, a.value]))
    .filter(([name, value]) => name.startsWith('on') || name !== 'alt' && /^\\s*javascript/i.test(value)).map(String)"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_alone_stops_scripts_handlers_and_styles(page, pages, tmp_path, kind):
    bad = "<script>hit = 1</script><style>main { color: red }</style><p style='color: red' id='bad'>x</p><img src onerror='hit = 2'>"
    (tmp_path / "bad.html").write_text(pages[kind].read_text().replace("</main>", bad + "</main>"))
    opened(page, tmp_path / "bad.html")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof hit") == "undefined"
    assert page.locator("#bad").evaluate("node => getComputedStyle(node).color") != "rgb(255, 0, 0)"
    assert len([text for text in page.complaints if "Content Security Policy" in text]) >= 4


def test_pictures_have_words_and_are_drawn(page, pages):
    opened(page, pages["run"])
    images = page.locator("img").all()
    assert images
    assert all(image.evaluate("node => node.alt && node.naturalWidth > 100") for image in images)
    equations = page.locator(".equation math").all()
    assert all(math.bounding_box()["height"] > 15 for math in equations), "MathML is drawn, not dropped"


@pytest.mark.parametrize("kind", ["index", "comparison"])
def test_the_numbers_of_a_figure_can_be_saved(page, pages, kind):
    opened(page, pages[kind])
    with page.expect_download() as saved:
        page.get_by_role("link", name="Data (CSV) of figure 1").click()
    assert saved.value.suggested_filename == f"{kind}-figure-1.csv"
    assert Path(saved.value.path()).read_text() == CSV


def test_dark_and_light_follow_the_reader(any_page):
    brightness = {}
    for scheme in ("light", "dark"):
        any_page.emulate_media(color_scheme=scheme)
        style = "n => [getComputedStyle(n).backgroundColor, getComputedStyle(n).color]"
        colours = any_page.locator("body").evaluate(style)
        brightness[scheme] = [sum(int(part) for part in colour[4:-1].split(",")) / 3 for colour in colours]
    (paper, ink), (night, chalk) = brightness.values()
    assert paper > 240 > 80 > ink
    assert night < 40 < 200 < chalk


def test_everything_that_can_be_used_can_be_reached_by_keyboard(any_page):
    usable = any_page.locator("a, button, select, input, summary, [tabindex='0']").locator("visible=true").count()
    reached = set()
    for _ in range(usable + 2):
        any_page.keyboard.press("Tab")
        reached.add(any_page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert len(reached - {-1}) >= usable


def test_paper_has_no_controls_and_no_code_but_every_message(any_page, pages):
    any_page.emulate_media(media="print")
    assert not any_page.locator("select:visible, [download]:visible, input:visible, details.code:visible").count()
    if any_page.url == pages["run"].as_uri():
        assert any_page.locator("details.warned pre").bounding_box()["height"] > 10

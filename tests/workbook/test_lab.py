"""The explorer in a real JupyterLab and Debian's headless Chromium: it opens, it moves, it is clicked, nothing complains."""

import os

import lab as laboratory
import pytest
from axe_playwright_python.sync_playwright import Axe

from robustlib.methods import make_method
from robustlib.training import fit
from tests import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A place with the notebook and two tiny runs, where JupyterLab shall live."""
    if laboratory.chromium() is None:
        reason = "chromium not found: install Debian's chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    place = tmp_path_factory.mktemp("lab")
    source = (ROOT / "notebooks" / "explore.ipynb").read_text()
    (place / "explore.ipynb").write_text(source.replace("examples: int = 200", "examples: int = 50"))
    for name in ("standard", "pgd_at"):
        method = make_method(name, "digits", epochs=2, train_examples=300)
        fit(method, digits, root=place / "runs", progress=False, threads=1)
    return place


@pytest.fixture(scope="module")
def complaints():
    """Errors on the console, and addresses outside this machine that were asked for."""
    return []


@pytest.fixture(scope="module")
def page(folder, complaints):

    def request(asked):
        if not asked.url.startswith(("data:", "blob:")) and "//127.0.0.1:" not in asked.url:
            complaints.append(f"asked for {asked.url}")

    with laboratory.lab(folder) as address, laboratory.browser() as chromium:
        made = chromium.new_page(viewport={"width": 1400, "height": 1000})
        made.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on("request", request)
        laboratory.run_notebook(made, address, "explore.ipynb", ".rl-near img")
        made.wait_for_selector(".rl-scatter .ends path")
        yield made
        made.close()


PICTURE = ".rl-three figure:nth-child(3) img"


def on_screen(page):
    """What is on the screen: the adversarial image, where its cross is, and the last line."""
    image = page.locator(PICTURE).get_attribute("src")
    cross = page.locator(".rl-scatter .crosses path").first.get_attribute("style")
    return image, cross, page.locator("[role=status]").inner_text()


def wait_for_another(page, sentence):
    page.wait_for_function("old => document.querySelector('[role=status]').innerText !== old", arg=sentence)


def test_the_eps_slider_moves_the_picture_and_the_map(page):
    before = on_screen(page)
    handle = page.get_by_role("slider", name="eps")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")  # the keyboard is enough
    page.wait_for_function(f"document.querySelector('{PICTURE}').alt.includes('eps 0.35')")
    after = on_screen(page)
    assert all(now != then for now, then in zip(after, before, strict=True))
    assert "at eps 0.35" in after[2]
    assert handle.get_attribute("aria-valuetext") == "0.35"


def test_a_click_on_a_point_shows_its_image(page):
    before = on_screen(page)
    page.locator(".rl-scatter").scroll_into_view_if_needed()
    box = page.locator(".rl-scatter .circles path").nth(17).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    wait_for_another(page, before[2])
    after = on_screen(page)
    assert after[0] != before[0]
    chosen = page.locator(".rl-explorer select").last.evaluate("node => node.selectedOptions[0].text")
    assert after[2].startswith(f"Image {chosen.split(':')[0]},")


def test_every_control_has_a_name(page):
    controls = "document.querySelectorAll('.rl-explorer :is(select, button, input, progress)')"
    name = "node.innerText || node.labels?.[0]?.innerText || node.getAttribute('aria-label') || ''"
    names = page.evaluate(f"Array.from({controls}).map(node => {name})")
    assert len(names) >= 13
    assert all(names)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_axe_finds_no_serious_fault(page, theme):
    laboratory.change_theme(page, theme)
    found = Axe().run(page, ".rl-explorer").response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert not grave, [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in grave]


@pytest.mark.parametrize(("control", "key"), [("Image", "ArrowDown"), ("Layer", "ArrowUp")])
def test_arrow_keys_choose_and_leave_the_cells_alone(page, control, key):
    chosen = page.get_by_label(control, exact=True)
    before = chosen.input_value()
    chosen.press(key)
    assert chosen.input_value() != before
    assert chosen.evaluate("node => node === document.activeElement")


def test_the_sentence_is_a_live_region(page):
    page.evaluate("window.kept = document.querySelector('[role=status]')")
    before = on_screen(page)
    page.get_by_role("slider", name="eps").press("ArrowDown")
    wait_for_another(page, before[2])
    assert page.evaluate("window.kept === document.querySelector('[role=status]')")


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_wider_than_its_place(page, width):
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(500)
    wide = "card => card.scrollWidth > card.clientWidth + 1"
    assert page.evaluate(f"Array.from(document.querySelectorAll('.rl-card')).filter({wide}).length") == 0
    dots = page.locator(".rl-scatter .crosses path")
    place = page.locator(".rl-scatter").bounding_box()
    for box in (dots.nth(k).bounding_box() for k in range(0, dots.count(), 10)):
        assert place["x"] - 1 <= box["x"] <= place["x"] + place["width"] + 1


def test_a_run_that_cannot_be_loaded_is_not_shown_as_chosen(page, folder):
    weights = sorted(folder.glob("runs/digits/standard/*/model.safetensors"))[0]
    weights.write_bytes(weights.read_bytes()[:1000])
    runs = page.get_by_label("Run", exact=True)
    before = runs.input_value()
    runs.select_option(index=1)
    page.wait_for_function("document.querySelector('[role=status]').innerText.match(/weights|safetensors/i)")
    assert runs.input_value() == before


def test_nothing_complains_and_nothing_is_fetched(page, complaints):
    assert complaints == []  # JupyterLab's own errors would be filtered here, each with its reason: it has none

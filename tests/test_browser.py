"""Reports in a real browser (Debian's headless Chromium): they sort, they load nothing, they turn dark."""

import json
import os
import shutil

import nbformat
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from robustlib import figures
from robustlib.report import render, write_index
from tests.made_up import leaderboard, notebook

pytestmark = pytest.mark.browser
PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    absent = [name for name, path in PROGRAMS.items() if path is None]
    if absent:
        reason = f"{' and '.join(absent)} not found: install Debian's chromium and chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(PROGRAMS["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """An index and one run's page, as they lie on disk."""
    folder = tmp_path_factory.mktemp("reports")
    rows = leaderboard()
    rows.loc[0, ["worst", "worst_low", "worst_high"]] = float("nan")
    png = figures.to_png(figures.accuracy_bars([{"attack": "clean", "accuracy": 0.5}]))
    nbformat.write(notebook(png=png, failed=True), folder / "run.ipynb")
    run = render(folder / "run.ipynb", folder / "run.html", title="TRADES", index="index.html")
    return {"index": write_index(folder, rows, {rows["path"][2]: "run.html"}), "run": run}


@pytest.fixture(autouse=True)
def fresh(browser):
    """Forget earlier pages, their messages, and what they emulated."""
    browser.get("about:blank")
    for log in ("performance", "browser"):
        browser.get_log(log)
    yield
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def requests(browser) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def head(browser, label):
    return next(th for th in browser.find_elements(By.CSS_SELECTOR, "thead th") if th.text.startswith(label))


def column(browser, label) -> list[str]:
    place = [th.text for th in browser.find_elements(By.CSS_SELECTOR, "thead th")].index(label)
    rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[place].text.splitlines()[0] for row in rows]


def sorting(browser) -> dict[str, str]:
    heads = browser.find_elements(By.CSS_SELECTOR, "thead th")
    return {th.text: th.get_attribute("aria-sort") for th in heads if th.get_attribute("aria-sort") != "none"}


def test_a_click_sorts_numbers_as_numbers_and_a_second_one_turns_them(browser, pages):
    browser.get(pages["index"].as_uri())
    assert sorting(browser) == {"Worst case": "descending"}
    assert column(browser, "Worst case") == ["72.0 %", "10.5 %", "9.5 %", "–"]
    head(browser, "Worst case").click()
    assert column(browser, "Worst case") == ["9.5 %", "10.5 %", "72.0 %", "–"], "what is missing stays last"
    assert sorting(browser) == {"Worst case": "ascending"}
    head(browser, "Worst case").click()
    assert column(browser, "Worst case") == ["72.0 %", "10.5 %", "9.5 %", "–"]
    head(browser, "Minutes").click()
    assert column(browser, "Minutes") == ["1.5", "1.5", "11.5", "11.5"]
    assert sorting(browser) == {"Minutes": "ascending"}


def test_words_sort_too_and_the_keyboard_is_enough(browser, pages):
    browser.get(pages["index"].as_uri())
    button = head(browser, "Method").find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert [name.split()[0] for name in column(browser, "Method")] == ["STANDARD", "STANDARD", "TRADES", "TRADES"]
    button.send_keys(Keys.SPACE)
    assert sorting(browser) == {"Method": "descending"}
    assert "Sorted by Method, descending" in browser.find_element(By.CSS_SELECTOR, "[role=status]").get_attribute(
        "textContent"
    )


def test_audits_sort_by_gravity(browser, pages):
    browser.get(pages["index"].as_uri())
    head(browser, "Audit").click()
    assert column(browser, "Audit") == ["✕ headline", "▲ headline", "– not audited", "✓ headline"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_badges_can_be_read(browser, pages, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(pages["index"].as_uri())
    for kind in ("pass", "amber", "red"):
        badge = browser.find_element(By.CSS_SELECTOR, f"td .badge.{kind}")
        ink, paper = (badge.value_of_css_property(name) for name in ("color", "background-color"))
        assert contrast(ink, paper) >= 4.5, kind


def contrast(*colours: str) -> float:
    """The contrast ratio of two CSS colours (WCAG 2.1)."""
    lights = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_links_lead_to_the_run_and_back(browser, pages):
    browser.get(pages["index"].as_uri())
    browser.find_element(By.CSS_SELECTOR, "tbody a").click()
    assert browser.current_url == pages["run"].as_uri()
    browser.find_element(By.LINK_TEXT, "All runs").click()
    assert browser.current_url == pages["index"].as_uri()


@pytest.mark.parametrize("name", ["index", "run"])
def test_no_request_leaves_the_page_and_the_console_is_silent(browser, pages, name):
    browser.get(pages[name].as_uri())
    for fold in browser.find_elements(By.TAG_NAME, "summary"):
        fold.click()
    asked = requests(browser)
    assert pages[name].as_uri() in asked
    assert not [url for url in asked if not url.startswith("data:") and url != pages[name].as_uri()]
    assert browser.get_log("browser") == []


def test_a_request_would_be_noticed_and_the_page_forbids_it(browser, pages, tmp_path):
    (tmp_path / "leak.html").write_text("<img src='http://127.0.0.1:9/leak.png'>")
    browser.get((tmp_path / "leak.html").as_uri())
    assert "http://127.0.0.1:9/leak.png" in requests(browser)
    browser.get(pages["run"].as_uri())
    requests(browser)
    browser.execute_script("const i = new Image(); i.src = 'http://127.0.0.1:9/leak.png'; document.body.append(i)")
    assert "Content Security Policy" in " ".join(entry["message"] for entry in browser.get_log("browser"))


def test_pictures_have_words_and_are_drawn(browser, pages):
    browser.get(pages["run"].as_uri())
    images = browser.find_elements(By.TAG_NAME, "img")
    assert images
    assert all(image.get_attribute("alt") for image in images)
    assert all(browser.execute_script("return arguments[0].naturalWidth", image) > 100 for image in images)
    equations = browser.find_elements(By.CSS_SELECTOR, ".equation math")
    assert all(math.size["height"] > 15 for math in equations), "MathML is drawn, not dropped"


@pytest.mark.parametrize("name", ["index", "run"])
def test_dark_and_light_follow_the_reader(browser, pages, name):
    light = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(pages[name].as_uri())
        for what in ("backgroundColor", "color"):
            colour = browser.execute_script(f"return getComputedStyle(document.body).{what}")
            light[scheme, what] = sum(int(part) for part in colour[4:-1].split(",")) / 3
    assert light["light", "backgroundColor"] > 240
    assert light["dark", "backgroundColor"] < 40
    assert light["light", "color"] < 80
    assert light["dark", "color"] > 200


@pytest.mark.parametrize("name", ["index", "run"])
def test_a_telephone_needs_no_sideways_scrolling(browser, pages, name):
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(pages[name].as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


def test_paper_shows_no_code_and_every_message(browser, pages):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.get(pages["run"].as_uri())
    assert not [fold for fold in browser.find_elements(By.CSS_SELECTOR, "details.code") if fold.is_displayed()]
    assert browser.find_element(By.CSS_SELECTOR, "details.warned pre").size["height"] > 10

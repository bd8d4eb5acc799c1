"""The page in Chromium: it draws, reacts, obeys the keyboard, fits a phone and paper, asks for nothing."""

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from fedproxy_secure.report.html.page import write_page
from tests.support.sample_report import sample_comparison, sample_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_S = 60

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("CI"), reason="needs Chromium and its driver"
)


class Browser:
    """One headless Chromium, and what it was asked to load."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def show(
        self, page: Path, *, width: int = 1280, scheme: str = "light", media: str = "", script: bool = True
    ) -> None:
        cdp = self.driver.execute_cdp_cmd
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        phone = width < 500
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
        cdp("Emulation.setDeviceMetricsOverride", metrics)
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        cdp("Emulation.setEmulatedMedia", {"media": media, "features": features})
        cdp("Emulation.setScriptExecutionDisabled", {"value": not script})
        self.driver.get(page.as_uri())
        if script:
            self.wait("return document.documentElement.dataset.charts === 'drawn'")

    def wait(self, script: str) -> None:
        WebDriverWait(self.driver, WAIT_S).until(lambda d: d.execute_script(script), script)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def requests(self) -> list[str]:
        """Addresses asked for since the last page was shown."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "CI has no Chromium"
    assert DRIVER is not None, "CI has no driver of Chromium"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        driver.set_script_timeout(WAIT_S)
        try:
            yield Browser(driver)
        finally:
            driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(sample_report(rounds=3), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(sample_comparison(), tmp_path_factory.mktemp("comparison"))


def test_the_page_loads_nothing_but_itself_and_says_nothing_in_the_console(browser: Browser, page: Path):
    browser.show(page)
    Select(browser.find('select[data-for="front-ip"]')).select_by_index(1)
    browser.wait("return document.querySelector('[data-chart=front-ip]').dataset.drawn !== ''")
    own = ("data:", "chrome://")  # pictures in the page, and what the browser shows before it
    assert [u for u in browser.requests() if not u.startswith(own)] == [page.as_uri()]
    assert browser.driver.get_log("browser") == []


def test_its_policy_stops_what_would_load_or_run(browser: Browser, page: Path, tmp_path: Path):
    planted = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "run"</script>'
    bad = tmp_path / "planted.html"
    text = page.read_text(encoding="utf-8")
    bad.write_text(text.replace('<main id="main">', f'<main id="main">{planted}', 1), encoding="utf-8")
    browser.show(bad)
    assert browser.driver.title != "run"
    said = " ".join(entry["message"] for entry in browser.driver.get_log("browser"))
    assert "Content Security Policy" in said


def test_every_chart_is_drawn_with_a_point_for_each_of_its_numbers(browser: Browser, page: Path):
    browser.show(page)
    drawn = browser.run(
        "return [...document.querySelectorAll('[data-chart]')].map(b =>"
        " [b.dataset.chart, b.querySelectorAll('.mark-symbol.role-mark path[aria-label]').length])"
    )
    specs = json.loads(browser.run("return document.getElementById('specs').textContent"))
    assert len(drawn) == 10
    assert {id: len(specs[id][0]["data"]["values"]) for id, _ in drawn} == dict(drawn)


def test_another_measure_redraws_the_front(browser: Browser, page: Path):
    browser.show(page)
    text = "return document.querySelector('[data-chart=front-privacy] svg').textContent"
    assert "vocabulary AUC" not in browser.run(text)
    Select(browser.find('select[data-for="front-privacy"]')).select_by_visible_text("vocabulary AUC")
    browser.wait(f"{text}.includes('vocabulary AUC')")
    said = browser.run("return document.getElementById('front-privacy-says').textContent")
    assert "vocabulary AUC" in said
    assert said.endswith("The numbers are in the table below.")


def test_an_unticked_kind_fades_in_every_chart(browser: Browser, page: Path):
    browser.show(page)
    faint = (
        "return [...document.querySelectorAll('[data-chart]')].map(b =>"
        " [...b.querySelectorAll('.mark-symbol.role-mark path[aria-label]')]"
        ".filter(p => Number(p.getAttribute('opacity')) < 0.5).length)"
    )
    assert set(browser.run(faint)) == {0}
    browser.find('#fronts .kinds input[data-kind="masking"]').click()
    browser.wait(f"return (() => {{ {faint} }})().every(n => n > 0)")
    ticked = "return [...document.querySelectorAll('input[data-kind=masking]')].map(i => i.checked)"
    assert browser.run(ticked) == [False] * 4


def test_outcomes_can_be_hidden(browser: Browser, page: Path):
    browser.show(page)
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
    rows = "return [...document.querySelectorAll('.row-{}')].filter(r => r.checkVisibility()).length"
    assert browser.run(rows.format("RESISTED")) > 0
    browser.find("#show-RESISTED").click()
    assert browser.run(rows.format("RESISTED")) == 0
    assert browser.run(rows.format("SUCCEEDED")) > 0


def test_a_number_tells_what_it_rests_on_when_tapped(browser: Browser, page: Path):
    browser.show(page)
    browser.find("#trilemma .num").click()
    told = browser.find("#about-number").text
    assert "95 % interval" in told
    assert "seeds 0, 1, 2" in told
    assert ".json#/" in told  # where it stands
    browser.press(Keys.ESCAPE)
    assert not browser.find("#about-number").is_displayed()


def test_the_keyboard_alone_reaches_everything_that_reacts(browser: Browser, page: Path):
    browser.show(page)
    reached: list[str] = []
    where = (
        "const e = document.activeElement; return e.dataset.for || e.dataset.kind || e.id ||"
        " e.closest('[data-chart]')?.dataset.chart || e.getAttribute('href') || e.tagName"
    )
    for _ in range(90):
        browser.press(Keys.TAB)
        reached.append(browser.run(where))
        if reached[-1].startswith("curve-step_norm"):
            break
    assert reached[0] == "#main"  # past everything else
    assert {"#findings", "masking", "front-privacy", "front-ip", "glance-privacy"} <= set(reached)
    assert reached.count("front-privacy") == 2  # the list and one stop for all points


def test_arrow_keys_walk_over_the_points_and_show_their_intervals(browser: Browser, page: Path):
    browser.show(page)
    browser.run("document.querySelector('[data-chart=front-privacy] path[tabindex=\"0\"]').focus()")
    shown = "(document.querySelector('#vg-tooltip-element.visible')?.textContent ?? '')"
    browser.wait(f"return {shown}.includes('gap closed')")
    first = browser.run(f"return {shown}")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait(f"return {shown}.includes('gap closed') && {shown} !== {json.dumps(first)}")
    second = browser.run(f"return {shown}")
    assert "±" in second
    assert second.split("gap closed")[0] != first.split("gap closed")[0]


def test_dark_and_light_differ_and_so_do_the_charts(browser: Browser, page: Path):
    colours = {}
    for scheme in ("light", "dark"):
        browser.show(page, scheme=scheme)
        colours[scheme] = browser.run(
            "const c = (e, what) => getComputedStyle(e)[what];"
            "return [c(document.body, 'backgroundColor'), c(document.body, 'color'),"
            " c(document.querySelector('.canvas .role-axis-label text'), 'fill'),"
            " c(document.querySelector('.canvas .mark-symbol.role-mark path'), 'fill')]"
        )
    assert all(a != b for a, b in zip(colours["light"], colours["dark"], strict=True))


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_a_phone_shows_it_without_scrolling_sideways(
    browser: Browser, which: str, request: pytest.FixtureRequest
):
    browser.show(request.getfixturevalue(which), width=375)
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.run("return document.documentElement.scrollWidth") == 375
    wide = (
        "return [...document.querySelectorAll('.canvas svg')].filter(s =>"
        " s.getBoundingClientRect().right > 376).length"
    )
    assert browser.run(wide) == 0
    names = "return document.querySelectorAll('.canvas')[1]?.querySelector('.role-axis-label') !== null"
    assert browser.run(names)  # stacked panels name their rows themselves


@pytest.mark.slow
def test_paper_shows_what_is_folded_but_the_records(browser: Browser, page: Path):
    browser.show(page, scheme="dark")
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"])[:5] == b"%PDF-"
    browser.show(page, scheme="dark", media="print")
    seen = "return [...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run(seen.format(".contents")) == 0
    assert browser.run(seen.format("table.records")) == 0
    assert browser.run(seen.format("table.findings")) == 6


def test_without_scripts_the_charts_are_pictures_and_the_text_is_whole(browser: Browser, page: Path):
    browser.show(page, script=False)
    stills = browser.driver.find_elements(By.CSS_SELECTOR, "noscript .still svg")
    assert len(stills) == 5
    assert all(s.size["height"] > 100 for s in stills)
    assert "closes" in browser.find("#summary").text
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_about(browser: Browser, scheme: str, tmp_path: Path):
    small = sample_report(ratios=(0.5,), seeds=(0,), rounds=1)  # axe is slow
    browser.show(write_page(small, tmp_path), scheme=scheme)
    browser.run("for (const d of document.querySelectorAll('details:not(.drawn)')) d.open = true")
    browser.run((resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = browser.driver.execute_async_script(
        "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(done)"
    )
    assert len(found["passes"]) > 20
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []

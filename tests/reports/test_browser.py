"""The page in a real browser: charts are drawn, nothing complains, no sample runs, nothing is fetched."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from tests.reports.example import bare, summary
from trueward.reports import render_report

pytestmark = pytest.mark.browser
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,2000",
]
COUNT_MARKS = """
const marks = (chart) => chart.querySelectorAll("svg path, svg text").length;
return [...document.querySelectorAll(".chart")].map(marks);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver here: install the packages chromium and chromium-driver")
    options = Options()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_page_load_timeout(60)
    chrome.get("about:blank")
    yield chrome
    chrome.quit()


def logged(browser: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    """Entries of one of the browser's logs since they were last read."""
    entries: list[dict[str, Any]] = browser.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def opened(browser: webdriver.Chrome, path: Path, body: dict[str, Any]) -> list[str]:
    """Render and open a report, wait for its charts, and return the addresses it requested."""
    render_report(body, path)
    logged(browser, "performance")
    logged(browser, "browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(
        lambda driver: driver.execute_script("return document.documentElement.dataset.charts")
    )
    events = [json.loads(entry["message"])["message"] for entry in logged(browser, "performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if one["documentURL"].startswith("file:")]


def test_charts_are_drawn_and_nothing_else_happens(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    requested = opened(browser, path, summary())
    assert browser.execute_script("return document.documentElement.dataset.charts") == "drawn"
    marks = browser.execute_script(COUNT_MARKS)
    assert len(marks) == 16 and min(marks) > 10
    assert browser.execute_script("return window.hacked") is None
    assert logged(browser, "browser") == []
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]


def test_no_sample_became_an_element(browser: webdriver.Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path / "report.html", summary())
    assert browser.execute_script("return document.querySelectorAll('main img, pre *').length") == 0
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.answers pre')].map(p => p.textContent)"
    )
    assert "<script>window.hacked = 1; alert(1)</script>" in shown
    assert max(map(len, shown)) > 8000


def test_both_themes_and_nothing_overflows(browser: webdriver.Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path / "report.html", summary())
    colour = "return getComputedStyle(document.body).backgroundColor"
    label = "return getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill"
    before, ink = browser.execute_script(colour), browser.execute_script(label)
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script(colour) != before and browser.execute_script(label) != ink
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]


def test_a_bare_run_opens_without_complaint(browser: webdriver.Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path / "report.html", bare())
    assert logged(browser, "browser") == []
    assert browser.execute_script("return document.querySelectorAll('.nothing').length") >= 8

"""The page in a real browser: nothing loads, nothing runs, nothing overflows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.report import write_report
from tests.make_run import make_run

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    runs = tmp_path_factory.mktemp("runs")
    return write_report(make_run(runs, hostile=True)).path.as_uri()


def look(browser: Any, page: str, width: int, *, dark: bool = False) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)


def ask(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def test_nothing_runs_and_nothing_is_requested(browser: Any, page: str) -> None:
    look(browser, page, 1280)
    assert ask(browser, "window.pwned") is None
    assert ask(browser, "document.querySelectorAll('script, main img').length") == 0
    urls = [entry["message"] for entry in browser.get_log("performance")]
    asked = [u for u in urls if '"Network.requestWillBeSent"' in u and '"url":"http' in u]
    assert asked == []
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, page: str, width: int) -> None:
    look(browser, page, width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert ask(browser, "document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 1280])
def test_charts_fit_and_only_one_drawing_shows(browser: Any, page: str, width: int) -> None:
    look(browser, page, width)
    shown = ask(
        browser,
        "[...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect())"
        ".filter(r => r.width).map(r => [r.left, r.right])",
    )
    assert len(shown) == 6
    assert all(left >= 0 and right <= width for left, right in shown)
    sizes = ask(
        browser,
        "[...document.querySelectorAll('svg.chart text')].filter(t => t.getBoundingClientRect()"
        ".width).map(t => t.getBoundingClientRect().height)",
    )
    assert min(sizes) >= 11


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_schemes(browser: Any, page: str, dark: bool) -> None:
    look(browser, page, 1280, dark=dark)
    style = "getComputedStyle(document.documentElement)"
    paper = luminance(ask(browser, f"{style}.backgroundColor"))
    assert (paper < 0.2) == dark
    # WCAG 2.1, level AA: 4.5 to 1 for text.
    for selector in ("main", ".quiet", "a[href='#data']", ".figure", ".strong td"):
        colour = f'getComputedStyle(document.querySelector("{selector}")).color'
        light, deep = sorted((luminance(ask(browser, colour)), paper), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, selector
    label = "getComputedStyle(document.querySelector('svg.chart.wide text')).fill"
    light, deep = sorted((luminance(ask(browser, label)), paper), reverse=True)
    assert (light + 0.05) / (deep + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.1)."""
    parts = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_keyboard_reaches_links_and_folds(browser: Any, page: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    look(browser, page, 1280)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert ask(browser, "document.activeElement.className") == "skip"
    fold = browser.find_element(By.CSS_SELECTOR, "#traces summary")
    fold.send_keys(Keys.ENTER)
    assert ask(browser, "document.querySelector('#traces details').open")


def test_it_prints(browser: Any, page: str, tmp_path: Path) -> None:
    look(browser, page, 1280)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(printed["data"]) > 20_000

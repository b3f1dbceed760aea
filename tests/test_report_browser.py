"""The report page in a real browser: nothing is loaded, everything can be reached, read and copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from history_kit.browser import CONTRAST, CONTROLS, FLAGS, FOCUSED, axe, chromium
from history_kit.runs import DAY, SCRIPT, START, nights

from moeproof.verify.report.page import render

pytestmark = pytest.mark.slow

HOSTILE = "own:<script>window.hacked=1</script><img src=http://127.0.0.1:9/x onerror=window.hacked=1>\"'"

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (pip install playwright)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(nights(hostile=HOSTILE), now=START + 9 * DAY), encoding="utf-8")
    return path.as_uri()


def opened(browser: Any, url: str, **options: Any) -> Any:
    """Return a page, which keeps in ``seen`` what it asked for and complained of."""
    page = browser.new_context(**({"reduced_motion": "reduce"} | options)).new_page()
    page.seen = []
    page.on("console", lambda message: page.seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.seen.append(f"error: {error}"))
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("dialog", lambda dialog: page.seen.append(f"dialog: {dialog.message}"))
    page.goto(url)
    return page


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_loads_nothing_and_complains_of_nothing(browser: Any, url: str, scheme: str) -> None:
    page = opened(browser, url, color_scheme=scheme)
    open_all(page)
    page.wait_for_timeout(200)
    assert page.seen == [url]
    assert page.evaluate("window.hacked") is None
    assert HOSTILE in page.inner_text("#matrix")
    page.context.close()


def test_a_script_is_copied_and_that_is_said(browser: Any, url: str) -> None:
    page = opened(browser, url, permissions=["clipboard-read", "clipboard-write"])
    page.locator("summary", has_text="Script").first.click()
    button = page.locator("button[data-copy]").first
    button.click()
    playwright.expect(page.locator("#status")).not_to_be_empty()
    assert page.inner_text("#status") == "Copied the script of finding feedbeef00"
    assert page.evaluate("navigator.clipboard.readText()") == SCRIPT
    assert button.inner_text() == "Copied"
    assert page.get_attribute("#status", "aria-live") == "polite"
    page.context.close()


def test_a_script_is_copied_where_there_is_no_clipboard_to_write_to(browser: Any, url: str) -> None:
    page = opened(browser, url, permissions=["clipboard-read"])
    page.evaluate("Object.defineProperty(navigator.clipboard, 'writeText', {value: () => Promise.reject(Error('no'))})")
    page.locator("summary", has_text="Script").first.click()
    page.locator("button[data-copy]").first.click()
    playwright.expect(page.locator("#status")).not_to_be_empty()
    assert page.evaluate("getSelection().toString()").strip() == SCRIPT.strip()
    assert page.evaluate("navigator.clipboard.readText()").strip() == SCRIPT.strip()
    page.context.close()


def test_every_control_is_reached_with_the_keyboard_and_shows_it(browser: Any, url: str) -> None:
    page = opened(browser, url)
    open_all(page)
    wanted = set(page.evaluate(CONTROLS))
    assert len(wanted) > 40
    reached, hidden = set(), set()
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        control, shown = page.evaluate(FOCUSED)
        reached.add(control)
        if not shown:
            hidden.add(control)
    assert wanted - reached == set()
    assert hidden - {None} == set()
    page.context.close()


def test_keys_skip_to_the_content_open_a_script_and_copy_it(browser: Any, url: str) -> None:
    page = opened(browser, url, permissions=["clipboard-read", "clipboard-write"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#finding-1 summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Copy script of finding feedbeef00"
    page.keyboard.press("Space")
    playwright.expect(page.locator("#status")).not_to_be_empty()
    assert page.evaluate("navigator.clipboard.readText()") == SCRIPT
    page.context.close()


def test_findings_are_filtered_by_words_severity_and_state(browser: Any, url: str) -> None:
    page = opened(browser, url)
    shown = page.locator("#filters output")
    assert shown.inner_text() == "3 of 3 shown"
    page.fill("#filters [name=words]", "TIE_order  vllm")
    assert shown.inner_text() == "1 of 3 shown"
    assert page.locator("article:visible").get_attribute("data-state") == "gone"
    page.select_option("#filters [name=state]", "open")
    assert shown.inner_text() == "0 of 3 shown"
    page.fill("#filters [name=words]", "")
    page.select_option("#filters [name=severity]", "critical")
    assert page.locator("article:visible h3").inner_text().startswith(HOSTILE[:20])
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out_from_what_is_behind_them(browser: Any, url: str, scheme: str) -> None:
    page = opened(browser, url, color_scheme=scheme)
    open_all(page)
    found = page.evaluate(CONTRAST)
    assert found["texts"] > 300
    assert found["low"] == []
    assert found["shapes"] > 20
    assert found["faint"] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 380) is (scheme == "light")
    page.context.close()


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, url: str, width: int) -> None:
    page = opened(browser, url, viewport={"width": width, "height": 700})
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = "[...document.querySelectorAll('section, article, figure, h1, h2, h3')]"
    assert page.evaluate(f"Math.max(...{outside}.map((e) => e.getBoundingClientRect().right))") <= width
    page.context.close()


def test_without_scripts_all_is_there_but_the_helpers(browser: Any, url: str) -> None:
    page = opened(browser, url, java_script_enabled=False)
    assert page.locator("article").count() == 3
    assert page.locator("article").first.is_visible()
    assert not page.locator("#filters").is_visible()
    assert page.locator("button:visible").count() == 0
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, url: str, scheme: str) -> None:
    source = axe()
    if source is None:
        pytest.skip("needs axe-core (npm install --global axe-core)")
    page = opened(browser, url, color_scheme=scheme)
    open_all(page)
    page.evaluate(source)
    results = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in results["violations"]] == []
    assert len(results["passes"]) > 20
    page.context.close()

"""The page in a browser: search, heat map, keyboard alone, a phone, and errors in words."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from simcse_jax.serving.web.guard import Settings
from tests.serving.web.made_model import CAPTIONS, MadeIndex, MadeModel
from tests.serving.web.servers import served

# Playwright's own builds of browsers are a download of their own; any Chromium that is there will do.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]
WAIT_MS = 30_000
QUERY = "a man is playing guitar"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # as containers need it
        with playwright.chromium.launch(executable_path=CHROMIUM, args=options) as browser:
            yield browser


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(MadeModel(MadeIndex()), Settings(name="made", max_characters=5000)) as url:
        yield url


@contextlib.contextmanager
def opened(chromium: Browser, address: str, told: str = "status of 422", **look: Any) -> Iterator[Page]:
    """Yield the page at the address in a new browser; it must load nothing from elsewhere and report no error.

    told: what browsers say of answers that are refusals. look: of the context, such as its colours.
    """
    requested, complaints = [], []
    with chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **look}) as context:
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        yield page
    assert {urlsplit(asked).netloc for asked in requested} == {urlsplit(address).netloc}
    assert [words for words in complaints if told not in words] == []


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Page]:
    """Yield the page, just opened, at a medium size."""
    with opened(chromium, f"{url}/") as page:
        expect(page.locator("#served")).to_have_text(f"made · {len(CAPTIONS)} sentences")
        yield page


def searched(page: Page, count: int = len(CAPTIONS)) -> None:
    """Wait for so many hits."""
    expect(page.locator("#hits:not(.busy) li")).to_have_count(count)
    expect(page.locator("#hits")).to_be_visible()


def width_of_all(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def test_hits_come_while_one_types(page: Page) -> None:
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.insert_text(QUERY)
    searched(page)
    texts = page.locator("#hits li p").all_text_contents()
    assert texts[0] == CAPTIONS[0]
    assert set(texts) == set(CAPTIONS)  # what looks like HTML is text
    assert page.locator("#hits b").first.text_content() == "1.000"
    bars = page.locator(".bar i").evaluate_all("all => all.map((bar) => bar.offsetWidth)")
    assert bars == sorted(bars, reverse=True)
    assert bars[0] > 300
    expect(page.locator("#search-status")).to_have_text(re.compile(r"^8 hits in \d+ ms$"))


def test_hits_show_their_id_and_are_copied(page: Page) -> None:
    page.keyboard.insert_text(QUERY)
    searched(page)
    expect(page.locator("#hits li").first).to_contain_text("id 0")
    for clipboard in ("navigator.clipboard", "undefined"):  # without HTTPS there is none
        page.evaluate(f"Object.defineProperty(navigator, 'clipboard', {{value: {clipboard}, configurable: true}})")
        page.get_by_role("button", name="Copy the text of id 0", exact=True).click()
        expect(page.locator("#hits button").first).to_have_text("Copied")
        page.locator("#query").fill("")
        page.keyboard.press("ControlOrMeta+V")
        expect(page.locator("#query")).to_have_value(CAPTIONS[0])
        searched(page)


def test_behind_a_prefix(chromium: Browser) -> None:
    prefixed = Settings(name="made", path_prefix="/embed")
    with served(MadeModel(MadeIndex()), prefixed) as url, opened(chromium, f"{url}/embed/") as page:
        page.locator("#query").fill(QUERY)
        searched(page)
        page.get_by_role("link", name="The routes of this server").click()
        page.get_by_role("link", name="The page to search").click()
        expect(page.locator("#served")).to_contain_text("made")


def test_searching_by_keyboard_alone(page: Page) -> None:
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    searched(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Search", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#top")).to_be_focused()
    page.keyboard.press("ArrowUp")
    searched(page, 5)
    page.keyboard.press("Tab")
    expect(page.locator("#lowest")).to_be_focused()
    page.keyboard.type("0.5")
    page.keyboard.press("Enter")
    searched(page, 2)
    page.locator("#lowest").fill("3")
    page.evaluate("document.getElementById('search-form').noValidate = true")  # or the browser says it, in its words
    page.keyboard.press("Enter")
    expect(page.locator("#search-wrong")).to_contain_text("The lowest score is a number")


def test_empty_and_very_long_input(page: Page) -> None:
    wrong = page.locator("#search-wrong")
    page.keyboard.type("   ")
    page.keyboard.press("Enter")
    expect(page.locator("#search-status")).to_contain_text("Type a sentence")
    page.keyboard.insert_text("long " * 2000)
    expect(wrong).to_contain_text("5,000")
    expect(page.locator("#search-status")).to_be_empty()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text("x" * 5000)  # one word, as long as may be
    searched(page)
    expect(wrong).to_be_hidden()
    assert width_of_all(page) <= 1100


def test_empty_and_very_long_lists(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    for rows, columns, place, words in (
        ("a", " \n\n ", "#compare-status", "at least one sentence"),
        ("a\n" * 60, "a\n" * 60, "#compare-wrong", "60 times 60 cells"),
        ("x" * 5001, "a", "#compare-wrong", "5,000"),
    ):
        page.locator("#rows").fill(rows)
        page.locator("#columns").fill(columns)
        page.get_by_role("button", name="Compare").click()
        expect(page.locator(place)).to_contain_text(words)
    page.locator("#rows").fill("x" * 5000)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#matrix:not(.busy)")).to_be_visible()
    expect(page.locator("#compare-wrong")).to_be_hidden()
    assert width_of_all(page) <= 1100


def test_the_heat_map_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Compare")).to_be_focused()
    expect(page.locator("#search")).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.insert_text("A man is playing guitar.\n\n It rains. ")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("It rains.\nA man is playing guitar.\nSnow.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#matrix:not(.busy)")).to_be_visible()
    cells = [row.locator("th, td").all_text_contents() for row in page.locator("#table tbody tr").all()]
    assert [row[0] for row in cells] == ["A man is playing guitar.", "It rains."]
    assert [cells[0][2], cells[1][1]] == ["1.00", "1.00"]
    assert all(re.fullmatch(r"\u2212?[01]\.\d\d", cell) for row in cells for cell in row[1:])
    colours = "all => all.map((cell) => getComputedStyle(cell).backgroundColor)"
    assert len(set(page.locator("tbody tr:first-child td").evaluate_all(colours))) == 3
    page.keyboard.press("Tab")  # the button, and then the map itself, which arrow keys scroll
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Cosine similarity")).to_be_focused()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_phone(chromium: Browser, url: str, colours: Any) -> None:
    size = {"width": 360, "height": 740}
    with opened(chromium, f"{url}/", viewport=size, color_scheme=colours, is_mobile=True, has_touch=True) as page:
        page.locator("#query").fill(QUERY)
        searched(page)
        assert width_of_all(page) == 360
        assert page.locator("#query").evaluate("query => query.offsetWidth") > 290
        lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (max(lightness) < 60) == (colours == "dark")
        page.get_by_role("tab", name="Compare").tap()
        page.locator("#rows").fill("\n".join(CAPTIONS))
        page.locator("#columns").fill("\n".join(CAPTIONS))
        page.get_by_role("button", name="Compare").tap()
        expect(page.locator("#matrix:not(.busy)")).to_be_visible()
        assert width_of_all(page) == 360
        assert page.locator(".scroll").evaluate("map => map.scrollWidth") > 360  # the map scrolls by itself
        controls = page.locator("button:visible, select:visible, input:visible, textarea:visible")
        assert min(controls.evaluate_all("all => all.map((one) => one.offsetHeight)")) >= 36  # enough for a finger


@pytest.mark.parametrize(("index", "words"), [(None, "nothing to search"), (MadeIndex(()), "The index is empty")])
def test_nothing_to_search(chromium: Browser, index: MadeIndex | None, words: str) -> None:
    with served(MadeModel(index)) as url, opened(chromium, f"{url}/") as page:
        if index is not None:
            expect(page.locator("#served")).to_contain_text("0 sentences")
            page.locator("#query").fill("guitar")
        else:
            expect(page.locator("#compare")).to_be_visible()
            expect(page.locator("#query")).to_be_disabled()
        expect(page.locator("#search-status")).to_contain_text(words)


def test_the_key_is_asked_for_and_remembered(chromium: Browser) -> None:
    secret = Settings(name="made", api_key="secret")
    with (
        served(MadeModel(MadeIndex()), secret) as url,
        opened(chromium, f"{url}/", told="status of 401") as page,
    ):
        expect(page.locator("#key-form")).to_be_visible()
        page.locator("#query").fill("guitar")
        page.keyboard.press("Enter")
        expect(page.locator("#search-wrong")).to_contain_text("API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        searched(page)
        page.reload()
        expect(page.locator("#served")).to_contain_text("made")
        expect(page.locator("#key-form")).to_be_hidden()


def test_a_server_that_is_gone_is_said(chromium: Browser) -> None:
    with contextlib.ExitStack() as server:
        url = server.enter_context(served(MadeModel(MadeIndex())))
        with opened(chromium, f"{url}/", told="ERR_CONNECTION_REFUSED") as page:
            expect(page.locator("#served")).to_contain_text("made")
            server.close()
            page.keyboard.insert_text("guitar")
            page.keyboard.press("Enter")
            expect(page.locator("#search-wrong")).to_contain_text("cannot be reached")


def test_the_docs_page(chromium: Browser, url: str) -> None:
    with opened(chromium, f"{url}/docs", viewport={"width": 360, "height": 740}) as page:
        expect(page.locator("section").first).to_be_visible()
        assert width_of_all(page) == 360

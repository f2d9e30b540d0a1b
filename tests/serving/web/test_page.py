"""The page in a browser: search, heat map, keyboard alone, a phone, and errors in words."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from simcse_jax.serving.web.settings import Settings
from tests.serving.web.browser import CHROMIUM, Browser, browser
from tests.serving.web.made_model import CAPTIONS, MadeIndex, MadeModel
from tests.serving.web.servers import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]
CTRL, SHIFT = 2, 8
SEARCHED = "!at('hits').hidden && !at('hits').classList.contains('busy')"
COMPARED = "!at('matrix').hidden && !at('matrix').classList.contains('busy')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(MadeModel(MadeIndex()), Settings(name="made", max_characters=5000)) as url:
        yield url


@pytest.fixture
def page(tab: Browser, url: str) -> Iterator[Browser]:
    """The page, just opened, of middling size; it must load nothing from elsewhere and complain of nothing."""
    tab.events.clear()
    tab.look()
    tab.open(f"{url}/")
    yield tab
    assert {re.sub(r"^(https?://[^/]*).*", r"\1", asked) for asked in tab.requested()} == {url}
    complaints = [words for words in tab.complaints() if "status of 422" not in words]  # a refusal is told as well
    assert not complaints


def hits(page: Browser) -> list[str]:
    return page.run("[...document.querySelectorAll('#hits li p')].map((p) => p.textContent)")


def test_hits_come_while_one_types(page: Browser) -> None:
    assert page.run("document.activeElement.id") == "query"
    assert page.run("at('served').textContent") == f"made · {len(CAPTIONS)} sentences"
    page.type("a man is playing guitar")
    page.wait(SEARCHED)
    assert hits(page)[0] == CAPTIONS[0]
    assert set(hits(page)) == set(CAPTIONS)  # what looks like HTML is text
    scores = page.run("[...document.querySelectorAll('#hits b')].map((b) => b.textContent)")
    assert scores[0] == "1.000"
    assert not any(score.startswith("-") for score in scores)
    bars = page.run("[...document.querySelectorAll('.bar i')].map((i) => i.getBoundingClientRect().width)")
    assert bars == sorted(bars, reverse=True)
    assert bars[0] > 300
    assert re.fullmatch(r"8 hits in \d+ ms", page.run("at('search-status').textContent"))
    assert page.run("at('search-status').getAttribute('aria-live')") == "polite"


def test_enter_the_lowest_score_and_the_number_of_hits(page: Browser) -> None:
    page.type("a man is playing guitar")
    page.press("Enter")
    page.wait(SEARCHED)
    page.run("at('top').value = '5', at('top').dispatchEvent(new Event('change'))")
    page.wait("document.querySelectorAll('#hits li').length === 5")
    page.run("at('lowest').focus()")
    page.type("0.5")
    page.press("Enter")
    page.wait("document.querySelectorAll('#hits li').length === 2")
    page.run("at('lowest').value = 3, at('search-form').requestSubmit()")
    page.run("at('search-form').noValidate = true, at('search-form').requestSubmit()")
    page.wait("!at('search-wrong').hidden")
    assert "The lowest score is a number" in page.run("at('search-wrong').textContent")


def test_empty_and_very_long_input_are_answered_in_words(page: Browser) -> None:
    page.press("Enter")
    page.wait("at('search-status').textContent.startsWith('Type a sentence')")
    page.type("long " * 2000)
    page.wait("!at('search-wrong').hidden")
    assert page.run("at('search-wrong').textContent") == "Text 0 has 9,999 characters; the limit is 5,000."
    assert page.run("at('search-wrong').getAttribute('role')") == "alert"
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.run("at('query').value = ''")
    page.type("guitar")
    page.wait(SEARCHED)
    assert page.run("at('search-wrong').hidden")


def test_the_heat_map_by_keyboard_alone(page: Browser) -> None:
    page.press("Tab", SHIFT)
    assert page.run("document.activeElement.id") == "tab-search"
    page.press("ArrowRight")
    assert page.run("[document.activeElement.id, at('search').hidden, at('compare').hidden]") == [
        "tab-compare",
        True,
        False,
    ]
    page.press("Tab")
    assert page.run("document.activeElement.id") == "rows"
    page.type("A man is playing guitar.\n\n It rains. ")
    page.press("Tab")
    page.type("It rains.\nA man is playing guitar.\nSnow.")
    page.press("Enter", CTRL)
    page.wait(COMPARED)
    cells = page.run(
        "[...document.querySelectorAll('#table tbody tr')].map((tr) => [...tr.cells].map((c) => c.textContent))"
    )
    assert [row[0] for row in cells] == ["A man is playing guitar.", "It rains."]
    assert [cells[0][2], cells[1][1]] == ["1.00", "1.00"]
    assert all(re.fullmatch(r"\u2212?[01]\.\d\d", cell) for row in cells for cell in row[1:])
    heads = page.run("[...document.querySelectorAll('#table th')].map((th) => th.scope)")
    assert heads == ["col"] * 3 + ["row"] * 2
    colours = page.run(
        "[...document.querySelectorAll('tbody tr:first-child td')].map((c) => getComputedStyle(c).backgroundColor)"
    )
    assert len(set(colours)) == 3
    page.press("Tab")  # the button, and then the map itself, which arrow keys scroll
    page.press("Tab")
    assert page.run("document.activeElement.className") == "scroll"


def test_too_many_cells_and_empty_lists(page: Browser) -> None:
    page.run("at('tab-compare').click(), at('compare-form').requestSubmit()")
    page.wait("at('compare-status').textContent.startsWith('Put at least one')")
    page.run("at('rows').value = at('columns').value = 'a\\n'.repeat(60), at('compare-form').requestSubmit()")
    page.wait("!at('compare-wrong').hidden")
    assert "60 times 60 cells" in page.run("at('compare-wrong').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(page: Browser, dark: bool) -> None:
    page.look(360, 740, dark)
    page.type("a man is playing guitar")
    page.wait(SEARCHED)
    assert page.run("document.documentElement.scrollWidth") == 360
    lightness = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(lightness) < 60) == dark
    page.run("at('tab-compare').click(), at('rows').value = at('columns').value = " + repr("\n".join(CAPTIONS)))
    page.run("at('compare-form').requestSubmit()")
    page.wait(COMPARED)
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run("document.querySelector('.scroll').scrollWidth") > 360  # the map scrolls by itself
    controls = "[...document.querySelectorAll('button, select, input, textarea')]"
    heights = page.run(f"{controls}.map((e) => e.offsetHeight).filter(Boolean)")
    assert min(heights) >= 36  # large enough for a finger


def test_without_an_index_comparing_is_left(tab: Browser) -> None:
    with served(MadeModel()) as url:
        tab.open(f"{url}/")
        tab.wait("!at('compare').hidden")
        assert "nothing to search" in tab.run("at('search-status').textContent")
        assert tab.run("at('query').disabled")


def test_the_key_is_asked_for_and_remembered(tab: Browser) -> None:
    with served(MadeModel(MadeIndex()), Settings(api_key="secret")) as url:
        tab.open(f"{url}/")
        tab.wait("!at('key-form').hidden")
        tab.run("at('query').value = 'guitar', at('search-form').requestSubmit()")
        tab.wait("!at('search-wrong').hidden")
        assert "asks for its API key" in tab.run("at('search-wrong').textContent")
        assert tab.run("document.activeElement.id") == "key"
        tab.type("secret")
        tab.press("Enter")
        tab.wait(SEARCHED)
        tab.open(f"{url}/")
        assert tab.run("at('key-form').hidden")


def test_a_server_that_is_gone_is_said(tab: Browser) -> None:
    with served(MadeModel(MadeIndex())) as url:
        tab.open(f"{url}/")
    tab.type("guitar")
    tab.press("Enter")
    tab.wait("!at('search-wrong').hidden")
    assert tab.run("at('search-wrong').textContent") == "The server cannot be reached. Is it still running?"


def test_the_docs_page(tab: Browser, url: str, tmp_path: Path) -> None:
    tab.events.clear()
    tab.look(360, 740)
    tab.call("Page.navigate", url=f"{url}/docs")
    tab.wait("document.readyState === 'complete' && document.querySelectorAll('section').length === 5")
    assert tab.run("document.documentElement.scrollWidth") == 360
    assert not tab.complaints()

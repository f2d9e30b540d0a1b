"""Test the report: one file that needs no other, well-formed, escaped, and true to the results."""

import base64
import copy
import dataclasses
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from simcse_jax.evaluation.compare import spread
from simcse_jax.evaluation.report.geometry import change_sentences, describe_changes, describe_pairs, geometry_table
from simcse_jax.evaluation.report.page import PICTURES, render, write_report
from simcse_jax.evaluation.report.tables import score_tables
from simcse_jax.evaluation.results import Difference, Entry, ModelResult, Results, Score
from simcse_jax.system.errors import UserError
from tests.made_results import STS, crowd, model, results, space, usual

VOID = {"meta", "img", "br", "link", "input", "hr"}
SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Parse a page; every element must be closed where it should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def without_pictures(shown: Results) -> Page:
    return Page(render(shown, dict.fromkeys(PICTURES)))


@pytest.fixture(scope="module")
def usual_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page, Path]:
    folder = tmp_path_factory.mktemp("usual")
    text = write_report(usual(), folder, scores_file=True).read_text(encoding="utf-8")
    return text, Page(text), folder


def least() -> Results:
    score = Score("MR", "accuracy", {"accuracy": 81.25}, {})
    return Results((Entry("m", (ModelResult("m", {}, {"MR": score}),)),), {}, (), "2025-01-02T03:04:05+00:00", "0.1.0")


def test_it_is_sound_html_that_needs_nothing_beside_it(usual_page: tuple[str, Page, Path]) -> None:
    text, page, _ = usual_page
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "poster", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,")), target
    assert not re.search(r"https?://|url\(|@import", text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert {f"#{identifier}" for identifier in identifiers} >= {link["href"] for link in page.all("a")}
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1


def test_pictures_are_in_it_and_beside_it(usual_page: tuple[str, Page, Path]) -> None:
    _, page, folder = usual_page
    shown = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    drawn = [name for name in PICTURES if name != "score_by_width"]  # which needs rows of other widths
    assert sorted(shown) == sorted((folder / f"{name}.png").read_bytes() for name in drawn)
    for image in page.all("img"):
        assert "runs/sup" in (image["alt"] or "")
        assert int(image["width"] or 0) > int(image["height"] or 0) / 2 > 100
    assert {path.name for path in folder.iterdir()} == {"report.html", *(f"{name}.png" for name in drawn)}


def test_every_value_is_there(usual_page: tuple[str, Page, Path]) -> None:
    text, page, _ = usual_page
    shown = usual()
    for own in shown.models:
        for score in own.scores.values():
            for value in (*score.values.values(), *(v for part in score.subsets.values() for v in part.values())):
                assert f"{value:.2f}" in page.words or str(value) in page.words
    numbers = spread(shown.entries[2].values(*STS))
    assert f"{numbers['mean']:.2f} ± {numbers['sd']:.2f}" in page.words
    assert f"{numbers['min']:.2f} to {numbers['max']:.2f} 5 runs" in page.words
    for words in ("cls_before_pooler", "512 tokens", f"{3:012x}", "cd" * 16, "scores on 4 tasks", "scores.json"):
        assert words in page.words
    assert page.all("time")[0] == {"datetime": "2025-03-01T12:00:00+00:00"}
    assert "MR glove the file MR/rt-polarity.pos does not exist. The folder given as --data lacks it." in page.words
    assert text.index('id="failures"') < text.index('id="scores"')


def test_an_average_needs_all_of_its_tasks() -> None:
    sts, transfer = score_tables(usual())
    assert [cell.text for cell in transfer.rows[3].cells][0::2] == ["failed", "\u2013"]
    assert sts.rows[3].cells[-1].text == f"{usual().entries[3].values(*STS)[0]:.2f}"
    runs = (model("r0", 0.3, 0, recipe="r"), model("r1", 0.3, 1, recipe="r", fails="MR"))
    transfer = score_tables(results(Entry("r*", runs)))[1]
    assert [cell.note for cell in transfer.rows[0].cells] == ["1 of 2 runs", "", "1 of 2 runs"]
    assert len(score_tables(dataclasses.replace(usual(), averages={"sts": STS}))) == 2
    assert len(score_tables(dataclasses.replace(usual(), averages={}))) == 1


def test_bold_is_what_is_clearly_above_all_others() -> None:
    sts, _ = score_tables(usual())
    assert [[cell.kind for cell in row.cells] for row in sts.rows] == [[""] * 3, ["best"] * 3, [""] * 3, [""] * 3]
    near = [Entry(name, (model(name, 0.3, seed),)) for seed, name in enumerate("ab")]
    page = without_pictures(results(*near))
    assert not any(attributes.get("class") == "best" for _, attributes in page.tags)


def test_differences_are_judged_in_words() -> None:
    differences = (
        Difference("MR", "a", "b", 1.5, 0.25, 2.75),
        Difference("CR", "a", "b", -1.5, -2.75, -0.25),
        Difference("STS12", "a", "b", 0.5, -0.75, 1.25),
        Difference("sts", "a", "b", 0.002, 0.001, 0.003),  # rounding
    )
    entries = (Entry("a", (model("a", 0.3, 0),)), Entry("b", (model("b", 0.3, 1),)))
    page = without_pictures(dataclasses.replace(results(*entries), differences=differences))
    assert "+1.50 +0.25 to +2.75: higher" in page.words
    assert "\u22121.50 \u22122.75 to \u22120.25: lower" in page.words
    assert "+0.50 \u22120.75 to +1.25: unclear" in page.words
    assert "+0.00 +0.00 to +0.00: unclear" in page.words


def test_the_least_results(tmp_path: Path) -> None:
    (tmp_path / "spectrum.png").write_bytes(b"a user's own picture: there is no report beside it")
    write_report(least(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "spectrum.png"}
    for name in PICTURES:
        (tmp_path / f"{name}.png").write_bytes(b"of an earlier report")
    page = Page(write_report(least(), tmp_path).read_text(encoding="utf-8"))
    assert "81.25" in page.words
    assert page.all("img") == []
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    failed = results(Entry("a", (ModelResult("a", {"model": "a"}, failures={"MR": "no weights"}),)))
    assert "MR a no weights" in without_pictures(failed).words
    assert score_tables(failed) == []


def test_it_names_only_what_is_there() -> None:
    """Not scores.json nor tasks where there are none, nor a change by training that kept the start."""
    curves = [{"step": step, "loss": 3.0 - step} for step in range(3)]
    page = without_pictures(results(Entry("run", (ModelResult("run", {}, curves=curves),))))
    assert "training curves" in page.words
    assert not re.search(r"scores\.json|task", page.words)
    own = model("run", 0.3, 1, trained=True)
    assert own.space is not None
    own.space_before = dataclasses.replace(own.space, alignment=own.space.alignment * (1 + 1e-7))  # those of step 0
    shown = results(Entry("run", (own,)))
    [(_, words)] = change_sentences(shown)
    assert "changed nothing" in words
    table = geometry_table(shown)
    assert table is not None
    assert len(table.rows) == 1


def test_models_with_long_names_are_told_apart() -> None:
    page = without_pictures(crowd())
    assert all(entry.name in page.words for entry in crowd().entries)
    assert len(set(crowd().names())) == 12


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    score: Any = dataclasses.replace(model("x", 0.3, 1).scores["STSBenchmark"], task=SCRIPT, protocol={SCRIPT: SCRIPT})
    values = {SCRIPT: 1.0, score.headline: score.value}
    own = model(SCRIPT, 0.3, 1, trained=True)
    own.scores = {SCRIPT: dataclasses.replace(score, values=values, subsets={SCRIPT: {SCRIPT: 1.0}})}
    own.failures = {f"{SCRIPT} too": SCRIPT}
    own.protocol = {SCRIPT: {SCRIPT: [SCRIPT]}}
    own.space = dataclasses.replace(space(0.3, 0.3), protocol=space(0.3, 0.3).protocol | {"source": SCRIPT})
    entries = (Entry(SCRIPT, (own,)), Entry(f'" onload="{SCRIPT}', (own,)))
    shown = dataclasses.replace(results(*entries, **{SCRIPT: (SCRIPT,)}), version=SCRIPT, date=SCRIPT)
    text = write_report(shown, tmp_path).read_text(encoding="utf-8")
    assert SCRIPT not in text
    page = Page(text)
    assert page.all("script") == []
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert page.words.count(SCRIPT) > 15


def test_what_training_did_is_computed() -> None:
    def with_metrics(rank: float, share: float, **others: float) -> Any:
        return [dataclasses.replace(space(0.3, 0.3), effective_rank=rank, top_share=share, **others)]

    before = with_metrics(10, 0.5, alignment=0.2, uniformity=-1)
    flatter = describe_changes(before, with_metrics(20, 0.25, alignment=0.3, uniformity=-2))
    assert "flatter" in flatter
    for course in ("10.0 to 20.0", "50.0\u00a0% to 25.0\u00a0%", "0.200 to 0.300", "\u22121.000 to \u22122.000"):
        assert course in flatter
    assert flatter.index("worse") < flatter.index("better")  # alignment, uniformity
    assert "steeper" in describe_changes(before, with_metrics(5, 0.75))
    assert "neither flatter nor steeper" in describe_changes(before, with_metrics(20, 0.75))
    assert "stayed the same: effective rank 10.0 to 10.0" in describe_changes(before, with_metrics(10.01, 0.5001))
    assert "effective rank 15.0 to 5.0" in describe_changes([*before, *with_metrics(20, 0.5)], with_metrics(5, 0.75))


def test_geometry_says_what_was_measured(usual_page: tuple[str, Page, Path]) -> None:
    _, page, _ = usual_page
    for words in ("300 sentences of STSBenchmark", "61 of its pairs", "before training, mean of 5 runs"):
        assert words in page.words
    shown = copy.deepcopy(usual())
    shown.models[0].space = dataclasses.replace(
        space(1.0, 1.0), protocol=space(1.0, 1.0).protocol | {"source": "others"}
    )
    assert "do not compare" in describe_pairs(shown)


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(least(), tmp_path)
    earlier = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        write_report(least(), tmp_path)
    assert path.read_bytes() == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

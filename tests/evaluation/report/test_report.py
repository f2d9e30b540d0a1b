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

from simcse_jax.evaluation.compare import average, summarize
from simcse_jax.evaluation.report.geometry import change_sentences, describe_changes, describe_pairs, geometry_table
from simcse_jax.evaluation.report.page import PICTURES, render, write_report
from simcse_jax.evaluation.report.tables import score_tables
from simcse_jax.evaluation.results import Difference, Entry, Results, Score, Verdict
from simcse_jax.system.errors import UserError
from tests.made_results import STS, TRANSFER, crowd, results, space, usual, verdict

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


def written(shown: Results, folder: Path, scores_file: bool = False) -> tuple[str, Page]:
    path = write_report(shown, folder, scores_file)
    assert path == folder / "report.html"
    assert not list(folder.glob(".*")), "a temporary file is left"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def without_pictures(shown: Results) -> Page:
    return Page(render(shown, dict.fromkeys(PICTURES)))


@pytest.fixture(scope="module")
def usual_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page, Path]:
    folder = tmp_path_factory.mktemp("usual")
    return *written(usual(), folder, scores_file=True), folder


def least() -> Results:
    score = Score("MR", "accuracy", {"accuracy": 81.25}, {})
    return Results((Entry("m", (Verdict("m", {}, {"MR": score}),)),), {}, (), "2025-01-02T03:04:05+00:00", "0.1.0")


def test_it_needs_nothing_beside_it(usual_page: tuple[str, Page, Path]) -> None:
    text, page, _ = usual_page
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "poster", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,")), target
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://", text)


def test_it_is_sound_html(usual_page: tuple[str, Page, Path]) -> None:
    text, page, _ = usual_page
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert {f"#{identifier}" for identifier in identifiers} >= {link["href"] for link in page.all("a")}
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1


def test_pictures_are_in_it_and_beside_it(usual_page: tuple[str, Page, Path]) -> None:
    _, page, folder = usual_page
    shown = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    assert sorted(shown) == sorted((folder / f"{name}.png").read_bytes() for name in PICTURES)
    for image in page.all("img"):
        assert "runs/sup" in (image["alt"] or "")
        assert int(image["width"] or 0) > int(image["height"] or 0) / 2 > 100
    assert {path.name for path in folder.iterdir()} == {"report.html", *(f"{name}.png" for name in PICTURES)}


def test_scores_spreads_and_averages(usual_page: tuple[str, Page, Path]) -> None:
    _, page, _ = usual_page
    shown = usual()
    for entry in shown.entries:
        for task in (*STS, *TRANSFER):
            if values := entry.values(task):
                assert f"{summarize(values)['mean']:.2f}" in page.words
        for own in entry.verdicts:
            for score in own.scores.values():
                for value in (*score.values.values(), *(v for part in score.subsets.values() for v in part.values())):
                    assert f"{value:.2f}" in page.words or str(value) in page.words
    seeds = shown.entries[2]
    figures = summarize([average(run, STS) or 0 for run in seeds.verdicts])
    assert f"{figures['mean']:.2f} ± {figures['sd']:.2f}" in page.words
    assert f"{figures['min']:.2f} to {figures['max']:.2f} 5 runs" in page.words


def test_an_average_needs_all_of_its_tasks() -> None:
    sts, transfer = score_tables(usual())
    assert [cell.text for cell in transfer.rows[3].cells][0::2] == ["failed", "\u2013"]
    assert sts.rows[3].cells[-1].text == f"{average(usual().entries[3].verdicts[0], STS):.2f}"
    runs = (verdict("r0", 0.3, 0, recipe="r"), verdict("r1", 0.3, 1, recipe="r", fails="MR"))
    transfer = score_tables(results(Entry("r*", runs)))[1]
    assert [cell.note for cell in transfer.rows[0].cells] == ["1 of 2 runs", "", "1 of 2 runs"]


def test_bold_is_what_is_clearly_above_all_others() -> None:
    sts, _ = score_tables(usual())
    assert [[cell.kind for cell in row.cells] for row in sts.rows] == [[""] * 3, ["best"] * 3, [""] * 3, [""] * 3]
    near = [Entry(name, (verdict(name, 0.3, seed),)) for seed, name in enumerate("ab")]
    page = without_pictures(results(*near))
    assert not any(attributes.get("class") == "best" for _, attributes in page.tags)


def test_tasks_without_an_average_have_a_table_too() -> None:
    assert len(score_tables(dataclasses.replace(usual(), averages={"sts": STS}))) == 2
    assert len(score_tables(dataclasses.replace(usual(), averages={}))) == 1


def test_failures_come_first(usual_page: tuple[str, Page, Path]) -> None:
    text, page, _ = usual_page
    assert "MR glove the file MR/rt-polarity.pos does not exist. The folder given as --data lacks it." in page.words
    assert text.index('id="failures"') < text.index('id="scores"')


def test_differences_are_judged_in_words() -> None:
    differences = (
        Difference("MR", "a", "b", 1.5, 0.25, 2.75),
        Difference("CR", "a", "b", -1.5, -2.75, -0.25),
        Difference("STS12", "a", "b", 0.5, -0.75, 1.25),
        Difference("sts", "a", "b", 0.0, 0.0, 0.0),
    )
    entries = (Entry("a", (verdict("a", 0.3, 0),)), Entry("b", (verdict("b", 0.3, 1),)))
    page = without_pictures(dataclasses.replace(results(*entries), differences=differences))
    assert "+1.50 +0.25 to +2.75: higher" in page.words
    assert "\u22121.50 \u22122.75 to \u22120.25: lower" in page.words
    assert "+0.50 \u22120.75 to +1.25: unclear" in page.words
    assert "+0.00 +0.00 to +0.00: unclear" in page.words


def test_protocols_date_and_version(usual_page: tuple[str, Page, Path]) -> None:
    _, page, _ = usual_page
    for words in ("cls_before_pooler", "512 tokens", f"{3:012x}", "cd" * 16, "Spearman x 100", "pooler from"):
        assert words in page.words
    assert page.all("time")[0] == {"datetime": "2025-03-01T12:00:00+00:00"}
    assert "simcse_jax 0.1.0" in page.words


def test_the_least_results(tmp_path: Path) -> None:
    (tmp_path / "spectrum.png").write_bytes(b"a user's own picture: there is no report beside it")
    written(least(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "spectrum.png"}
    for name in PICTURES:
        (tmp_path / f"{name}.png").write_bytes(b"of an earlier report")
    _, page = written(least(), tmp_path)
    assert "81.25" in page.words
    assert page.all("img") == []
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_it_names_only_what_is_there(usual_page: tuple[str, Page, Path]) -> None:
    """scores.json beside it, the tasks it judged, what training changed."""
    _, page, _ = usual_page
    assert "scores.json" in page.words
    assert "scores on 4 tasks" in page.words
    curves = [{"step": step, "loss": 3.0 - step} for step in range(3)]
    page = without_pictures(results(Entry("run", (Verdict("run", {}, curves=curves),))))
    assert "scores.json" not in page.words
    assert "task" not in page.words
    assert "training curves" in page.words
    own = verdict("run", 0.3, 1, trained=True)
    assert any(place == 0 for place, _ in change_sentences(results(Entry("run", (own,)))))
    own.space_before = own.space  # the best weights are those of step 0
    shown = results(Entry("run", (own,)))
    [(_, words)] = change_sentences(shown)
    assert "changed nothing" in words
    table = geometry_table(shown)
    assert table is not None
    assert len(table.rows) == 1


def test_a_model_of_which_everything_failed() -> None:
    failed = results(Entry("a", (Verdict("a", {"model": "a"}, failures={"MR": "no weights"}),)))
    assert "MR a no weights" in without_pictures(failed).words
    assert score_tables(failed) == []


def test_twelve_models_with_long_names() -> None:
    shown = crowd()
    page = without_pictures(shown)
    for entry in shown.entries:
        assert entry.name in page.words
        assert f"{entry.values('STS12')[0]:.2f}" in page.words
    assert len(set(shown.names())) == 12


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    score: Any = dataclasses.replace(
        verdict("x", 0.3, 1).scores["STSBenchmark"], task=SCRIPT, protocol={SCRIPT: SCRIPT}
    )
    values = {SCRIPT: 1.0, score.headline: score.value}
    own = verdict(SCRIPT, 0.3, 1, trained=True)
    own.scores = {SCRIPT: dataclasses.replace(score, values=values, subsets={SCRIPT: {SCRIPT: 1.0}})}
    own.failures = {f"{SCRIPT} too": SCRIPT}
    own.protocol = {SCRIPT: {SCRIPT: [SCRIPT]}}
    own.space = dataclasses.replace(space(0.3, 0.3), protocol={"source": SCRIPT, "sentences": 5, "close pairs": 2})
    entries = (Entry(SCRIPT, (own,)), Entry(f'" onload="{SCRIPT}', (own,)))
    shown = dataclasses.replace(results(*entries, **{SCRIPT: (SCRIPT,)}), version=SCRIPT, date=SCRIPT)
    text, page = written(shown, tmp_path)
    assert SCRIPT not in text
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
    assert "effective rank 10.0 to 10.0" in describe_changes(before, with_metrics(10.01, 0.5001))
    assert "effective rank 15.0 to 5.0" in describe_changes([*before, *with_metrics(20, 0.5)], with_metrics(5, 0.75))


def test_geometry_says_what_was_measured(usual_page: tuple[str, Page, Path]) -> None:
    _, page, _ = usual_page
    for words in ("300 sentences of STSBenchmark", "61 of its pairs", "before training, mean of 5 runs"):
        assert words in page.words
    shown = copy.deepcopy(usual())
    shown.verdicts[0].space = dataclasses.replace(space(1.0, 1.0), protocol={"source": "others"})
    assert "do not compare" in describe_pairs(shown)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        write_report(least(), tmp_path / "file")


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(least(), tmp_path)
    earlier = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        write_report(least(), tmp_path)
    assert path.read_bytes() == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

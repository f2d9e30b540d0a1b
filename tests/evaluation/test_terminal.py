"""What `evaluate` prints below its tables."""

import dataclasses
import io

from rich.console import Console

from simcse_jax.evaluation.results import Entry, Score
from simcse_jax.evaluation.terminal import print_results
from tests.made_results import model, results


def noted(name: str, note: str) -> Entry:
    made = model(name, 0.3, 0)
    scores: dict[str, Score] = dict(made.scores)
    scores["MR"] = dataclasses.replace(scores["MR"], protocol=scores["MR"].protocol | {"note": note})
    return Entry(name, (dataclasses.replace(made, scores=scores),))


def test_a_note_is_printed_once_and_names_models_where_it_is_not_about_all() -> None:
    file = io.StringIO()
    print_results(results(noted("a", "few queries; unknown ids"), noted("b", "few queries")), Console(file=file))
    notes = [line for line in file.getvalue().splitlines() if line.startswith("NOTE")]
    assert notes == ["NOTE: MR: few queries", "NOTE: MR, a: unknown ids"]


def test_why_a_difference_on_few_examples_is_unclear_is_said() -> None:
    made, file = results(*(Entry(name, (model(name, 0.3, 0),)) for name in "ab")), io.StringIO()
    few = tuple(dataclasses.replace(each, is_of_few=True) for each in made.differences)
    print_results(dataclasses.replace(made, differences=few), Console(file=file))
    assert file.getvalue().count("unclear (too few)") == len(few) > 0


def test_how_much_each_task_judged_on_is_said() -> None:
    made = model("a", 0.3, 0)
    retrieval = dataclasses.replace(made.scores["MR"], protocol={"queries": 1200, "documents": 30000, "grades": 3})
    made = dataclasses.replace(made, scores={**made.scores, "docs": retrieval})
    file = io.StringIO()
    print_results(results(Entry("a", (made,)), Entry("b", (model("b", 0.3, 0),))), Console(file=file, width=500))
    (line,) = [line for line in file.getvalue().splitlines() if line.startswith("judged on: ")]
    assert "docs 1,200 queries, 30,000 documents" in line.split("; ")
    assert line.count("STS-B") == 1

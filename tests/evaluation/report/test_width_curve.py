"""The curve of scores by width: which entries are one line, and which score it shows."""

import dataclasses

import numpy as np

from simcse_jax.evaluation.compare import group_runs
from simcse_jax.evaluation.report.width_curve import find_curves, headline, score_by_width
from simcse_jax.evaluation.results import ModelResult, Results
from tests.made_results import STS, model, results


def rows(name: str, seed: int, widths: tuple[int, ...], recipe: str = "") -> list[ModelResult]:
    """Return a model of 64 features, and its rows at other widths."""
    whole = dataclasses.replace(model(name, 0.3, seed, recipe=recipe), width=64)
    return [
        whole,
        *(
            dataclasses.replace(
                model(f"{name} (width {width})", 2.0 / width + 0.3, seed, recipe=recipe and f"{recipe} {width}"),
                width=width,
                whole=name,
            )
            for width in widths
        ),
    ]


def made() -> Results:
    """Return two seeds of a run and a model at three widths, and a model at its own only."""
    runs = [row for seed in (0, 1) for row in rows(f"runs/seed{seed}", seed, (8, 32), "r")]
    return results(*group_runs([*runs, *rows("other", 7, (8, 32)), *rows("alone", 9, ())]))


def test_runs_of_a_width_share_a_row_that_says_it() -> None:
    assert [entry.name for entry in made().entries] == [
        "runs/seed*",
        "runs/seed* (width 8)",
        "runs/seed* (width 32)",
        "other",
        "other (width 8)",
        "other (width 32)",
        "alone",
    ]


def test_lines_are_of_one_model_each() -> None:
    shown = made()
    curves = find_curves(shown)
    assert [[entry.models[0].width for entry in curve.entries] for curve in curves] == [[8, 32, 64]] * 2
    assert [curve.place for curve in curves] == [0, 3]
    assert headline(shown, curves) == ("sts", STS)
    figure = score_by_width(shown)
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]  # type: ignore[arg-type]
    for line, curve in zip(lines, curves, strict=True):
        expected = [(entry.models[0].width, np.mean(entry.values(*STS))) for entry in curve.entries]
        np.testing.assert_allclose(line.get_xydata(), expected)  # type: ignore[arg-type]
    assert any("runs/seed*" in text.get_text() for text in figure.axes[0].texts)


def test_without_an_average_the_first_task_that_all_have() -> None:
    shown = made()
    for result in shown.models:
        result.scores.pop("STS12")
    for result in shown.entries[1].models:
        result.scores.pop("STSBenchmark")
    assert headline(shown, find_curves(shown)) == ("transfer", ("MR", "CR"))
    shown = dataclasses.replace(shown, averages={})
    assert headline(shown, find_curves(shown)) == ("MR", ("MR",))


def test_no_picture_without_widths() -> None:
    assert score_by_width(results(*group_runs(rows("alone", 9, ())))) is None

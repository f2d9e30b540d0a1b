"""Test the pictures: none without data, labels neither cut nor on each other, every model in its colour."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from simcse_jax.evaluation.report import drawing, pair_pictures, pictures
from simcse_jax.evaluation.results import Entry, ModelResult, Results, Score, Space
from tests.made_results import crowd, model, results, space, usual

DRAW: dict[str, Callable[[Results], Figure | None]] = {
    "alignment_uniformity": pictures.alignment_uniformity,
    "spectrum": pictures.spectrum,
    "training_curves": pictures.training_curves,
    "cosines_by_band": pair_pictures.cosines_by_band,
    "predicted_against_gold": pair_pictures.predicted_against_gold,
}
SETS = {"usual": usual(), "crowd": crowd()}


@functools.cache
def drawn_set(name: str, which: str) -> Figure:
    """Return the picture of one of SETS; tests share it and leave it as it is."""
    return drawn(name, SETS[which])


def drawn(name: str, shown: Results) -> Figure:
    figure = DRAW[name](shown)
    assert figure is not None
    figure.canvas.draw()
    return figure


def texts(figure: Figure) -> list[Text]:
    """Return the texts of the figure without the labels of ticks."""
    found: Any = figure.findobj(lambda artist: isinstance(artist, Text) and bool(artist.get_text().strip()))
    ticks = [label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()]
    ticks += [t.label2 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for t in axis.get_major_ticks()]
    return [text for text in found if text.get_visible() and not any(text is tick for tick in ticks)]


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("name", DRAW)
def test_texts_are_neither_cut_nor_on_each_other(name: str, which: str) -> None:
    figure = drawn_set(name, which)
    found = [(text, Text.get_window_extent(text)) for text in texts(figure)]  # an Annotation's own counts its line too
    for text, box in found:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(found, 2):
        assert not a.overlaps(b), (one, other)
    if which == "usual":
        words = " ".join(written(figure))
        for label in ["runs/sup", "runs/unsup-seed*"] + ["bert-base-uncased", "glove"] * (name != "training_curves"):
            assert label in words


@pytest.mark.parametrize("name", DRAW)
def test_nothing_to_show(name: str) -> None:
    bare = Score("MR", "accuracy", {"accuracy": 80.0}, {})
    assert DRAW[name](results(Entry("a", (ModelResult("a", {}, {"MR": bare}),)))) is None
    assert DRAW[name](results(Entry("a", (ModelResult("a", {}, {}, {"MR": "no data"}),)))) is None


def test_places_and_colours_of_points() -> None:
    figure = drawn_set("alignment_uniformity", "usual")
    points = [(*line.get_xydata()[0], to_hex(line.get_color()).upper()) for line in figure.axes[0].lines]  # type: ignore[index]
    expected = []
    for place, entry in enumerate(SETS["usual"].entries):
        for own in entry.models:
            for one in (own.space_before, own.space):
                expected += [(one.uniformity, one.alignment, drawing.colour(place))] if one else []
    assert sorted(points) == sorted(expected)


def test_spectrum_leaves_out_what_is_almost_nothing() -> None:
    """Float32 rounding, and the few directions that layer norm all but empties."""
    for values, shown in (([1, 0.5, 1e-3, 1e-9, 0], 3), (np.append(np.geomspace(1, 0.1, 127), 1e-5), 127)):
        narrow = dataclasses.replace(space(1.0, 1.0), singular_values=np.array(values))
        line = drawn("spectrum", results(Entry("a", (ModelResult("a", {}, space=narrow),)))).axes[0].lines[0]
        assert np.array_equal(line.get_xdata(), np.arange(1, shown + 1))  # type: ignore[arg-type]
        assert np.array_equal(line.get_ydata(), values[:shown])  # type: ignore[arg-type]


def score(gold: list[float], cosines: list[float], task: str = "some pairs") -> Score:
    return Score(task, "spearman", {"spearman": 12.5}, {}, gold=np.array(gold), cosines=np.array(cosines))


def shown_pairs(*scores: Score) -> Results:
    return results(Entry("a", (ModelResult("a", {}, {score.task: score for score in scores}),)), sts=("none",))


@pytest.mark.parametrize(
    ("gold", "bands", "ticks"),
    [
        ([0, 0.9, 1, 4, 5], [0, 0, 1, 4, 4], ["0\u20131", "1\u20132", "2\u20133", "3\u20134", "4\u20135"]),
        ([1.2, 4.9], [0, 4], ["1\u20131.8", "1.8\u20132.6", "2.6\u20133.4", "3.4\u20134.2", "4.2\u20135"]),
        ([0.6, 0.6], [3, 3], ["0\u20130.2", "0.2\u20130.4", "0.4\u20130.6", "0.6\u20130.8", "0.8\u20131"]),
    ],
)
def test_bands_are_fifths_of_the_scale(gold: list[float], bands: list[int], ticks: list[str]) -> None:
    figure = drawn("cosines_by_band", shown_pairs(score(gold, [0.1] * len(gold))))
    labels = [label.get_text().split("\n") for label in figure.axes[0].get_xticklabels()]
    assert [label for label, _ in labels] == ticks
    assert [count for _, count in labels] == [f"n {bands.count(band)}" for band in range(5)]


def test_few_and_equal_values_are_drawn() -> None:
    for count, cosines in ((1, [0.5]), (40, [0.5] * 40), (5, list(np.linspace(0, 1, 5)))):
        shown = shown_pairs(score(list(np.linspace(0, 5, count)), cosines))
        drawn("cosines_by_band", shown)
        drawn("predicted_against_gold", shown)
    point = Space(0, 0, 1, 1, 0.135, 1, np.array([1.0, 0, 0]), {})  # all sentences alike
    shown = results(Entry("a", (ModelResult("a", {}, space=point, space_before=point),)))
    drawn("spectrum", shown)
    drawn("alignment_uniformity", shown)


def test_the_task_is_stsb_or_the_first_with_cosines() -> None:
    bare = Score("MR", "accuracy", {"accuracy": 80.0}, {})
    one, other = score([1, 2], [0, 1], "pairs.tsv"), score([1, 2], [0, 1], "STSBenchmark")
    for scores, task in (((bare, one, other), "STSBenchmark"), ((bare, one), "pairs.tsv"), ((bare,), None)):
        assert {panel.score.task for panel in pair_pictures.make_panels(shown_pairs(*scores))} == {task} - {None}


def test_what_is_left_out_is_said() -> None:
    figure = drawn_set("cosines_by_band", "crowd")
    assert len(figure.axes) == 6
    assert any("6 more" in text for text in written(figure))


def test_curves() -> None:
    """Of what the runs logged; a value that JSON has as null is left out."""
    assert len(drawn_set("training_curves", "usual").axes) == 4  # loss, alignment, uniformity, dev score
    lines: list[dict[str, Any]] = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    lines += [{"step": 3, "mlm_loss": 1.0, "dev/perplexity": 9.0}]
    loss, perplexity = drawn("training_curves", results(Entry("a", (ModelResult("a", {}, curves=lines),)))).axes
    assert np.array_equal(loss.lines[0].get_xydata(), [(1, 2), (3, 1)])  # type: ignore[arg-type]
    assert np.array_equal(perplexity.lines[0].get_xydata(), [(3, 9)])  # type: ignore[arg-type]


def test_seeds_have_a_mean_where_they_share_their_steps() -> None:
    runs = [model(f"run{seed}", 0.3, seed, trained=True, recipe="r") for seed in range(3)]
    figure = drawn("training_curves", results(Entry("run*", tuple(runs))))
    assert [line.get_linewidth() for line in figure.axes[0].lines].count(2.2) == 1
    dev = [[line["dev/spearman"] for line in run.curves if "dev/spearman" in line] for run in runs]
    assert any(text.startswith(f"{np.mean(np.max(dev, axis=1)):.2f}  run*") for text in written(figure))
    runs[0].curves = runs[0].curves[:-4]  # it was stopped
    figure = drawn("training_curves", results(Entry("run*", tuple(runs))))
    assert 2.2 not in [line.get_linewidth() for line in figure.axes[0].lines]


def test_names_are_no_mathematics_and_need_no_glyph() -> None:
    name = "$x^{ \u65e5\u672c\n_2$"
    own = dataclasses.replace(model(name, 0.3, 1, trained=True), failures={})
    for draw in DRAW:
        assert any("$x^{ □□ _2$" in text for text in written(drawn(draw, results(Entry(name, (own,))))))


def test_spread_out_is_the_nearest_that_keeps_apart() -> None:
    places = drawing.spread_out(np.sort(np.random.default_rng(0).uniform(-0.2, 1.2, 20)), 0.05)
    assert np.all(np.diff(places) >= 0.05 - 1e-9)
    assert -1e-9 <= places.min() < places.max() <= 1 + 1e-9
    assert drawing.spread_out(np.array([0.1, 0.5, 0.9]), 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert drawing.spread_out(np.array([0.5, 0.5]), 0.1) == pytest.approx([0.45, 0.55])

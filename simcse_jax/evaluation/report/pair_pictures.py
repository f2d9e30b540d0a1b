"""Draw the report's pictures of pairs, models side by side: each a Figure, or None without data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simcse_jax.evaluation.report import drawing
from simcse_jax.evaluation.report.drawing import INK, SMALL, colour
from simcse_jax.evaluation.results import Results, Score, shorten

PREFERRED_TASK = "STSBenchmark"
PANELS = 6  # models side by side; more would be too small to read
BANDS = 5
FEW = 12  # in a band with fewer pairs, each is drawn


class Panel(NamedTuple):
    """Hold one model's part of a picture of models side by side."""

    place: int  # of its entry in the results
    name: str
    score: Score
    gold: np.ndarray  # float64[n]
    cosines: np.ndarray  # float64[n]


def make_panels(results: Results) -> list[Panel]:
    """Return a panel for each entry with cosines of STS-B, or else of the first task of graded pairs that has any.

    Of several runs, the first is shown.
    """
    tasks = dict.fromkeys((PREFERRED_TASK, *results.tasks))
    return next((panels for task in tasks if (panels := _panels(results, task))), [])


def _panels(results: Results, task: str) -> list[Panel]:
    long, short = (drawing.label_names([entry.name for entry in results.entries], limit) for limit in (30, 17))
    panels = []
    for place, entry in enumerate(results.entries):
        for number, model in enumerate(entry.models):
            score = model.scores.get(task)
            if score and score.gold is not None and score.cosines is not None and score.statistic is None:
                which = f", run {number + 1} of {len(entry.models)}"
                name = short[place] + which if len(entry.models) > 1 else long[place]
                panels.append(Panel(place, name, score, score.gold, score.cosines))
                break
    return panels


def _grid(panels: Sequence[Panel], title: str, note: str, bottom: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes of one scale for the first PANELS panels; its note says how many are left out."""
    shown = min(len(panels), PANELS)
    columns = shown if shown <= 3 else math.ceil(shown / 2)
    rows = math.ceil(shown / columns)
    figure = drawing.new_figure(0.6 + bottom + 3.0 * rows + 0.8 * (rows == 1))
    if len(panels) > shown:
        note += f" Not shown, to save room: {len(panels) - shown} more."
    task = drawing.replace_missing_glyphs(shorten(panels[0].score.task, 40))
    drawing.write_title(figure, f"{title}, {task}", note)
    drawing.set_margins(figure, top=1.0, bottom=bottom)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(wspace=0.08, hspace=0.28)
    for unused in grid.flat[shown:]:
        unused.remove()
    for number, (axes, panel) in enumerate(zip(grid.flat, panels[:PANELS], strict=False)):
        drawing.style_axes(
            axes, "gold score" if number >= shown - columns else "", "cosine" if number % columns == 0 else ""
        )
        axes.tick_params(labelbottom=number >= shown - columns)
        title = f"{panel.name}\nSpearman {panel.score.value:.2f}"
        axes.set_title(title, size=SMALL, color=INK, loc="left", parse_math=False)
    return figure, list(grid.flat[:shown])


def cosines_by_band(results: Results) -> Figure | None:
    """Draw the distribution of cosines in each fifth of the gold scale, models side by side."""
    panels = make_panels(results)
    if not panels:
        return None
    figure, grid = _grid(
        panels,
        "Cosine by gold score",
        "Shape: all pairs of a fifth of the scale. Bar: their middle half. Dot: median.",
        bottom=0.75,
    )
    low, high = _scale(panels)
    edges = np.linspace(low, high, BANDS + 1)
    ticks = [f"{a:.3g}\u2013{b:.3g}" for a, b in itertools.pairwise(edges)]
    if all(np.array_equal(panel.gold, panels[0].gold) for panel in panels):
        counts = np.bincount(_bands(panels[0].gold, low, high), minlength=BANDS)
        ticks = [f"{tick}\nn {count:,}" for tick, count in zip(ticks, counts, strict=True)]
    for axes, panel in zip(grid, panels, strict=False):
        bands = _bands(panel.gold, low, high)
        for band in range(BANDS):
            _violin(axes, band, panel.cosines[bands == band], colour(panel.place))
        axes.set_xticks(range(BANDS), ticks)
        axes.grid(visible=False, axis="x")
    return figure


def _scale(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the lowest and the highest score of the scale: the whole numbers around all gold scores."""
    gold = np.concatenate([panel.gold for panel in panels])
    low, high = math.floor(gold.min()), math.ceil(gold.max())
    return float(low), float(max(high, low + 1))


def _bands(gold: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return int[n], the fifth of the scale that each score is in; a border belongs to the upper one."""
    return np.clip(((gold - low) / (high - low) * BANDS + 1e-9).astype(int), 0, BANDS - 1)


def _violin(axes: Axes, x: int, values: np.ndarray, hue: str) -> None:
    if not len(values):
        return
    if len(values) < FEW or np.ptp(values) == 0:
        axes.plot(np.full(len(values), x), values, "o", markersize=3, alpha=0.6, color=hue)
    else:
        bodies: Any = axes.violinplot([values], [x], widths=0.86, showextrema=False)["bodies"]
        for body in bodies:
            body.set(facecolor=hue, alpha=0.3, edgecolor="none")
    quartiles = np.percentile(values, [25, 50, 75])
    axes.vlines(x, quartiles[0], quartiles[2], color=hue, linewidth=5)
    axes.plot(x, quartiles[1], "o", markersize=5, markerfacecolor="white", markeredgecolor=hue)


def predicted_against_gold(results: Results) -> Figure | None:
    """Draw the cosine of every pair against its gold score, models side by side, with the medians of fifths."""
    panels = make_panels(results)
    if not panels:
        return None
    pairs = len(panels[0].gold)
    figure, grid = _grid(
        panels,
        "Cosine against gold score",
        f"{pairs:,} pairs, one dot each. Line: median cosine of each fifth of the scale.",
        bottom=0.6,
    )
    low, high = _scale(panels)
    middles = low + (np.arange(BANDS) + 0.5) * (high - low) / BANDS
    for axes, panel in zip(grid, panels, strict=False):
        dim = float(np.clip(400 / len(panel.gold), 0.12, 0.7))
        axes.scatter(panel.gold, panel.cosines, s=12, alpha=dim, color=colour(panel.place), linewidths=0)
        bands = _bands(panel.gold, low, high)
        full = [band for band in range(BANDS) if np.any(bands == band)]
        medians = [np.median(panel.cosines[bands == band]) for band in full]
        axes.plot(middles[full], medians, "o-", color=INK, markersize=4, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=high - low >= BANDS))
    return figure

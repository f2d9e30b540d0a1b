"""Draw the report's pictures of geometry and of training: each a Figure, or None without data."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from simcse_jax.evaluation.report import drawing
from simcse_jax.evaluation.report.drawing import GREY, SMALL, End, colour, marker
from simcse_jax.evaluation.results import Results, Space

PERPLEXITY = "dev/perplexity"
_DEV_WORDS = {"dev/spearman": "dev Spearman"}
NOISE = 1e-6  # of the largest singular value; below it, there is only float32 rounding


def alignment_uniformity(results: Results) -> Figure | None:
    """Draw every model as a point in the plane of Wang & Isola, with an arrow from the point before training."""
    known = [
        (place, model.space, model.trained_from)
        for place, entry in enumerate(results.entries)
        for model in entry.models
        if model.space
    ]
    if not known:
        return None
    arrows = any(before for _, _, before in known)
    figure = drawing.new_figure(max(5.0, 0.25 * len(results.entries) + 1.4))
    drawing.write_title(
        figure, "Alignment and uniformity", "Hollow: before training. Filled: as judged." if arrows else ""
    )
    drawing.set_margins(figure, right=2.5)
    axes = figure.subplots()
    drawing.style_axes(
        axes, "uniformity  (lower: sentences spread more evenly)", "alignment  (lower: paraphrases closer)"
    )
    points, handles = [], {}
    for place, space, before in known:
        after = _place(space)
        style: Any = {"marker": marker(place), "markersize": 8, "color": colour(place), "linestyle": "none"}
        if before:
            start = _place(before)
            axes.annotate(
                "", after, start,
                arrowprops={"arrowstyle": "-|>", "color": colour(place), "alpha": 0.55, "shrinkA": 5, "shrinkB": 5},
            )  # fmt: skip
            axes.plot(*start, **style | {"markerfacecolor": "white", "markersize": 7})
            points.append(start)
        [handles[place]] = axes.plot(*after, markeredgecolor="white", zorder=3, **style)
        points.append(after)
    (left, lower), (right, upper) = np.min(points, axis=0), np.max(points, axis=0)
    across, up = max(0.1 * (right - left), 0.2), max(0.1 * (upper - lower), 0.03)
    axes.set(xlim=(left - across, right + across), ylim=(lower - up, upper + up))
    axes.text(0.012, 0.02, "↙ better", transform=axes.transAxes, size=SMALL, color=GREY, style="italic")
    names = drawing.label_names([entry.name for entry in results.entries], 24)
    drawing.label_markers(axes, list(handles.values()), [names[place] for place in handles])
    return figure


def _place(space: Space) -> tuple[float, float]:
    return space.uniformity, space.alignment


def spectrum(results: Results) -> Figure | None:
    """Draw singular values against their index on log scales; those before training are dashed."""
    known = [(place, entry) for place, entry in enumerate(results.entries) if any(v.space for v in entry.models)]
    if not known:
        return None
    before = any(model.trained_from for model in results.models)
    names = drawing.label_names([entry.name for entry in results.entries])
    figure = drawing.new_figure(max(5.4, 0.2 * len(known) + 2))
    drawing.write_title(
        figure,
        "Singular values of the sentence embeddings",
        "Relative to the largest. A flatter line: more directions in use." + (" Dashed: before training." * before),
    )
    drawing.set_margins(figure, right=2.3)
    axes = figure.subplots()
    drawing.style_axes(axes, "index of the singular value", "singular value / largest")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends, lowest = [], _lowest(results)
    for place, entry in known:
        style: Any = {"color": colour(place), "linewidth": 1.8 if len(entry.models) == 1 else 1.0}
        last = None
        for model in entry.models:
            if model.trained_from:
                axes.plot(*_visible(model.trained_from, lowest), linestyle=(0, (4, 2)), alpha=0.6, **style)
            if model.space:
                index, values = last = _visible(model.space, lowest)
                axes.plot(index, values, **style)
        assert last is not None  # `known` are the entries that have a space
        ends.append(End(float(last[0][-1]), float(last[1][-1]), names[place], colour(place), marker(place)))
    axes.set_xlim(left=1)
    axes.set_ylim(top=1.25)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)
    drawing.label_ends(axes, ends)
    return figure


def _plain_ticks(axis: Axis) -> None:
    """Label the ticks of a log axis as 0.01 rather than as powers of ten, with ticks between the powers where few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _lowest(results: Results) -> float:
    """Return the lowest value to show. The last 3 % do not count: layer norm leaves almost nothing in one direction."""
    spaces = [space for v in results.models for space in (v.space_before, v.space) if space]
    ends = [values[len(values) - 1 - len(values) // 33] for values in (space.singular_values for space in spaces)]
    return max(0.7 * min(ends), NOISE)


def _visible(space: Space, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values from `lowest` up, with their indices from 1."""
    values = space.singular_values[space.singular_values >= lowest]
    return np.arange(1, len(values) + 1), values


def training_curves(results: Results) -> Figure | None:
    """Draw loss, alignment and uniformity of batches, and dev score against steps, as figure 2 of the paper.

    Runs of one recipe have one colour, and their mean where they share steps.
    """
    kinds = (
        ("loss", "training loss"),
        ("alignment", "alignment"),
        ("uniformity", "uniformity"),
        (PERPLEXITY, "held-out perplexity"),
    )
    measures = {chosen: _DEV_WORDS.get(chosen, chosen) for chosen in _chosen_measures(results)}
    kinds = (*kinds, *((key, f"{words.replace('/', ' ')} x 100") for key, words in measures.items()))
    found = [(key, label, curves) for key, label in kinds if (curves := _curves(results, key))]
    if not found:
        return None
    names = drawing.label_names([entry.name for entry in results.entries], 22)
    height = max(2.7, 0.19 * len(results.entries))
    figure = drawing.new_figure(1.3 + height * len(found))
    several = any(len(runs) > 1 for _, _, curves in found for runs in curves.values())
    notes = ["Thin: each run. Thick: their mean."] if several else []
    if found[-1][0] in measures:
        notes.append("Marks, and numbers on the right: best dev score" + (" (of runs: the mean)." if several else "."))
    drawing.write_title(figure, "Training", " ".join(notes))
    drawing.set_margins(figure, right=2.5)
    grid = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(hspace=0.14)
    for axes, (key, label, curves) in zip(grid, found, strict=True):
        drawing.style_axes(axes, "step" if axes is grid[-1] else "", label)
        ends = [_draw_runs(axes, place, runs, names[place], key in measures) for place, runs in curves.items()]
        values = np.concatenate([run[:, 1] for runs in curves.values() for run in runs])
        if key not in measures and values.min() > 0 and values.max() > 30 * values.min():
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlim(0, max(1, axes.get_xlim()[1]))
        drawing.label_ends(axes, ends)
    figure.align_ylabels()
    return figure


def _chosen_measures(results: Results) -> list[str]:
    """Return the keys of the dev scores that chose best checkpoints, without perplexity: a line has them first."""
    chosen: dict[str, None] = {}
    for model in results.models:
        scored = (key for line in model.curves for key in line if key.startswith("dev/"))
        if (first := next(scored, PERPLEXITY)) != PERPLEXITY:
            chosen[first] = None
    return list(chosen)


def _curves(results: Results, key: str) -> dict[int, list[np.ndarray]]:
    """Return, by the entry's place, float64[n, 2] of step and value for each of its runs that has any."""
    found: dict[int, list[np.ndarray]] = {}
    for place, entry in enumerate(results.entries):
        for model in entry.models:
            # A value that JSON cannot write, such as NaN, is None.
            points = [(line["step"], line[key]) for line in model.curves if line.get(key) is not None]
            if points:
                found.setdefault(place, []).append(np.array(points, np.float64))
    return found


def _draw_runs(axes: Axes, place: int, runs: list[np.ndarray], name: str, scores: bool) -> End:
    """Draw one entry's runs, with a mark at the best of each where they are scores; return the end of their line."""
    single = len(runs) == 1
    style: Any = {"color": colour(place)}
    for run in runs:
        axes.plot(*run.T, linewidth=1.6 if single else 0.8, alpha=1 if single else 0.4, **style)
        if scores:
            axes.plot(*run[run[:, 1].argmax()], marker(place), markersize=5, **style)
    shown = runs[0]
    if not single and all(np.array_equal(run[:, 0], shown[:, 0]) for run in runs):
        shown = np.mean(runs, axis=0)
        axes.plot(*shown.T, linewidth=2.2, **style)
    best = f"{np.mean([run[:, 1].max() for run in runs]):.2f}  " if scores else ""
    return End(float(shown[-1, 0]), float(shown[-1, 1]), best + name, colour(place), marker(place))

"""Draw how a model's score falls with the width that its vectors are cut to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from simcse_jax.evaluation.report import drawing
from simcse_jax.evaluation.report.drawing import End, colour, marker
from simcse_jax.evaluation.results import Entry, Results, task_name


class Curve(NamedTuple):
    """Hold the entries of one model, by ascending width; the last is in place `place` of the results."""

    place: int
    entries: tuple[Entry, ...]


def find_curves(results: Results) -> list[Curve]:
    """Return the curve of each entry that has further rows at other widths."""
    found = []
    for place, entry in enumerate(results.entries):
        names = {model.name for model in entry.models}
        others = [other for other in results.entries if other.models[0].whole in names]
        if others:
            found.append(Curve(place, tuple(sorted((entry, *others), key=lambda each: each.models[0].width))))
    return found


def headline(results: Results, curves: list[Curve]) -> tuple[str, tuple[str, ...]] | None:
    """Return the first average, else the first task, that every entry of these curves has, and its tasks."""
    columns = results.averages | {task: (task,) for task in results.tasks}
    for name, tasks in columns.items():
        if tasks and all(entry.values(*tasks) for curve in curves for entry in curve.entries):
            return name, tasks
    return None


def score_by_width(results: Results) -> Figure | None:
    """Draw the headline score against the width; of several runs, the mean."""
    curves = find_curves(results)
    found = headline(results, curves)
    if not curves or not found:
        return None
    name, tasks = found
    names = drawing.label_names([entry.name for entry in results.entries])
    of_what = f"Average of {len(tasks)} tasks" if name in results.averages else task_name(name)
    figure = drawing.new_figure(max(4.0, 0.2 * len(curves) + 2))
    drawing.write_title(figure, "Score by width", f"{of_what}, x 100, of the first features of each vector.")
    drawing.set_margins(figure, right=2.5)
    axes = figure.subplots()
    drawing.style_axes(axes, "features of a vector", of_what)
    axes.set_xscale("log", base=2)
    ends, widths = [], set()
    for curve in curves:
        x = [entry.models[0].width for entry in curve.entries]
        y = [float(np.mean(entry.values(*tasks))) for entry in curve.entries]
        style: Any = {"color": colour(curve.place), "marker": marker(curve.place)}
        axes.plot(x, y, linewidth=1.6, markersize=5, **style)
        ends.append(End(x[-1], y[-1], f"{y[-1]:.2f}  {names[curve.place]}", style["color"], style["marker"]))
        widths |= {*x}
    axes.xaxis.set_major_locator(FixedLocator(sorted(widths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    drawing.label_ends(axes, ends)
    return figure

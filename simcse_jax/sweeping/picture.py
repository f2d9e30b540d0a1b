"""The table as a picture: a dot for each seed, mean and standard deviation of each row."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from simcse_jax.evaluation.report import drawing
from simcse_jax.evaluation.report.drawing import GREY, INK, SMALL
from simcse_jax.evaluation.results import shorten
from simcse_jax.sweeping.figures import LOWER_IS_BETTER, TITLES
from simcse_jax.sweeping.table import Table

_ROW = 0.42  # inches
_LETTER = 0.075  # inches that a letter of a label takes
_NAME = 48  # characters of a label
_SPREAD = 0.22  # of a row, over which its dots are spread


def draw(table: Table) -> Figure:
    """A Figure: rows from top to bottom in the table's order, the first row's mean as a dashed line."""
    labels = [drawing.drawable(shorten(row.row.label, _NAME)) for row in table.rows]
    figure = drawing.new_figure(_ROW * len(table.rows) + 1.5)
    title = TITLES.get(table.measure, table.measure)
    drawing.caption(
        figure, f"{title} by row", "A dot: one seed. Bar: mean and standard deviation. Dashed: mean of the first row."
    )
    drawing.room(figure, left=0.4 + _LETTER * max(map(len, labels)), top=0.74, bottom=0.62)
    axes = figure.subplots()
    drawing.quiet(axes, title + (" (lower is better)" if table.measure in LOWER_IS_BETTER else ""))
    for place, row in enumerate(table.rows):
        values = np.array([figures[table.measure] for figures in row.runs.values()])
        if not len(values):
            axes.text(
                0.5, place, "nothing finished", transform=axes.get_yaxis_transform(), ha="center", va="center",
                size=SMALL, color=GREY, style="italic",
            )  # fmt: skip
            continue
        hue, whole = drawing.colour(place), row.figures[table.measure]
        if place == 0:
            axes.axvline(whole["mean"], color=GREY, linestyle="--", linewidth=1, zorder=1)
        spread = np.linspace(-_SPREAD, _SPREAD, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(values, place + spread, "o", color=hue, markersize=5, alpha=0.55, markeredgewidth=0, zorder=2)
        if len(values) > 1:
            axes.errorbar(whole["mean"], place, xerr=whole["sd"], color=INK, linewidth=1.4, capsize=4, zorder=3)
            axes.plot(whole["mean"], place, "|", color=INK, markersize=15, markeredgewidth=2, zorder=4)
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.set_yticks(range(len(table.rows)), labels, parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.06)
    return figure

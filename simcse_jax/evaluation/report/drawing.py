"""Draw what all pictures share: colours, names, and labels that cover neither each other nor the data.

Figures are made without pyplot, which would keep them in memory and look for a display. Names come from users, so no
text is parsed as mathematics.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from scipy.optimize import isotonic_regression

from simcse_jax.evaluation.results import short_names

# Okabe & Ito 2008, which the colour-blind can tell apart; without yellow, too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # 5 and 7 have no common factor, so 35 entries look different
INK, GREY, PALE = "#222222", "#6b6b6b", "#e4e4e4"
FONT, SMALL = 11.0, 9.5  # points
DPI = 180
WIDTH = 9.0  # inches
NAME_LENGTH = 26  # characters of a name in a label


def colour(place: int) -> str:
    """Return the colour of the entry in that place of the results, the same in every picture."""
    return COLOURS[place % len(COLOURS)]


def marker(place: int) -> str:
    """Return the marker of the entry in that place of the results."""
    return MARKERS[place % len(MARKERS)]


def replace_missing_glyphs(text: str) -> str:
    """Return the text with a box for each character that the font lacks."""
    return "".join(letter if ord(letter) in _glyphs() else "□" for letter in text)


def label_names(names: Sequence[str], limit: int = NAME_LENGTH) -> list[str]:
    """Return the names as labels of a picture."""
    return [replace_missing_glyphs(name) for name in short_names(names, limit)]


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of that size in inches, with a canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_title(figure: Figure, title: str, note: str = "") -> None:
    """Put a title into the figure's upper left corner, and a note below it."""
    inch = 1 / figure.get_size_inches()[1]
    common: Any = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.02, 1 - 0.1 * inch, title, size=FONT + 1.5, weight="bold", color=INK, **common)
    figure.text(0.02, 1 - 0.37 * inch, note, size=SMALL, color=GREY, **common)


def set_margins(figure: Figure, left: float = 0.8, right: float = 0.25, top: float = 0.72, bottom: float = 0.6) -> None:
    """Leave these margins around the axes, in inches."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)


def style_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Remove the frame, draw a pale grid, and name the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)
    axes.set_xlabel(x, size=FONT, color=INK)
    axes.set_ylabel(y, size=FONT, color=INK)


def label_markers(axes: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Name markers in a legend at the right of the axes.

    Labels beside the points overlap where models are alike, also as adjustText places them.
    """
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0, "handlelength": 1}
    legend = axes.legend(handles, names, frameon=False, fontsize=SMALL, labelcolor=INK, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)


class End(NamedTuple):
    """Hold where a line ends, and its name."""

    x: float
    y: float
    text: str
    colour: str
    marker: str


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write the names of lines at the right of the axes without overlap, each with a thin line to its end.

    The limits of the axes must be final.
    """
    if not ends:
        return
    fractions = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y)))[1] for end in ends]
    figure: Any = axes.figure
    height = axes.get_position().height * figure.get_size_inches()[1]
    gap = min(1.35 * SMALL / 72 / height, 1 / len(ends))
    order = np.argsort(fractions, kind="stable")
    for place, y in zip(order, spread_out(np.asarray(fractions)[order], gap), strict=True):
        end = ends[place]
        axes.annotate(
            end.text,
            (end.x, end.y),
            (1.03, y),
            textcoords="axes fraction",
            size=SMALL,
            color=INK,
            va="center",
            parse_math=False,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.9, "shrinkA": 2, "shrinkB": 2}
            | {"relpos": (0, 0.5)},
        )
        axes.plot(end.x, end.y, end.marker, color=end.colour, markersize=5, clip_on=False)


def spread_out(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Return the ascending places in [0, 1] that are nearest to the wanted ones and at least `gap` apart."""
    steps = gap * np.arange(len(wanted))
    return np.clip(isotonic_regression(wanted - steps).x, 0, max(1 - steps[-1], 0)) + steps

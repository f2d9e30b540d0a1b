"""Draw what all pictures share: colours, names, and labels that cover neither each other nor the data.

Figures are made without pyplot, which would keep them in memory and look for a display. Names come from users, so no
text is parsed as mathematics.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
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

# Our own placement of labels. adjustText 1.4 was tried: with twelve models its labels cover points, its lines cross
# labels, and it takes 7 s instead of 1.
_NEAR, _FAR = 7.0, 300.0  # points between a label and its point
_LEADER = 11.0  # points; a label further away gets a line
_DIRECTIONS = np.deg2rad(np.arange(0, 360, 15))
_ROUNDS = 3  # in each, every label may move again


def colour(place: int) -> str:
    """Return the colour of the entry in that place of the results, the same in every picture."""
    return COLOURS[place % len(COLOURS)]


def marker(place: int) -> str:
    """Return the marker of the entry in that place of the results."""
    return MARKERS[place % len(MARKERS)]


def drawable(text: str) -> str:
    """Return the text with a box for each character that the font lacks."""
    return "".join(letter if ord(letter) in _glyphs() else "□" for letter in text)


def label_names(names: Sequence[str], limit: int = NAME_LENGTH) -> list[str]:
    """Return the names as labels of a picture."""
    return [drawable(name) for name in short_names(names, limit)]


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


class Label(NamedTuple):
    """Hold what is written at a point."""

    number: int  # of the point
    text: str
    colour: str  # of the line that leads to it


def label_points(axes: Axes, points: np.ndarray, labels: Sequence[Label], taken: np.ndarray) -> list[Any]:
    """Write each label where there is room, with a thin line to labels that are far away, and return the texts.

    points: float64[n, 2] in data coordinates; no label covers one. taken: float64[m, 2] in data coordinates, for
    example along lines; labels avoid them where they can. The limits of the axes must be final.
    """
    figure: Any = axes.figure
    figure.canvas.draw()  # so that texts have sizes and the axes a place
    scale = figure.dpi / 72
    pixels, passed = axes.transData.transform(points), axes.transData.transform(taken)
    style: Any = {"size": SMALL, "color": INK, "ha": "center", "va": "center", "parse_math": False}
    style["bbox"] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
    texts = [
        axes.annotate(label.text, points[label.number], (0, 0), textcoords="offset points", **style) for label in labels
    ]
    frame = np.array(axes.get_window_extent().extents)
    placed: dict[int, _Place] = {}
    for _ in range(_ROUNDS):
        for row, (number, _, _) in enumerate(labels):
            extent = texts[row].get_window_extent()
            size = np.array([extent.width, extent.height]) + 4 * scale
            others = [place for other, place in placed.items() if other != row]
            placed[row] = _best_place(pixels[number], size, scale, frame, others, pixels, passed)
    for row, (number, _, hue) in enumerate(labels):
        low, high = placed[row].box[:2], placed[row].box[2:]
        texts[row].set_position(tuple(((low + high) / 2 - pixels[number]) / scale))
        edge = placed[row].edge - pixels[number]
        if np.hypot(*edge) > _LEADER * scale:
            axes.annotate(
                "", points[number], tuple(edge / scale), textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": hue, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip
    return texts


class _Place(NamedTuple):
    """Hold the place of a label, in pixels."""

    box: np.ndarray  # float64[4]: left, lower, right, upper
    point: np.ndarray  # float64[2]: the point that it names
    edge: np.ndarray  # float64[2]: the place in the box that is nearest to the point


def _best_place(
    point: np.ndarray,
    size: np.ndarray,
    scale: float,
    frame: np.ndarray,
    others: Sequence[_Place],
    points: np.ndarray,
    passed: np.ndarray,
) -> _Place:
    """Return the place of least cost for a box of that size: near the point, and off everything else."""
    angles, distances = np.meshgrid(_DIRECTIONS, np.geomspace(_NEAR, _FAR, 20), indexing="ij")
    ways = np.stack([np.cos(angles), np.sin(angles)], -1).reshape(-1, 2)
    reach = distances.reshape(-1, 1) * scale
    middles = point + ways * reach + np.clip(2 * ways, -1, 1) * size / 2
    boxes = np.concatenate([middles - size / 2, middles + size / 2], 1)  # [C, 4]
    edges = np.clip(point, boxes[:, :2], boxes[:, 2:])
    leaders = point + np.linspace(0, 1, 30)[:, None, None] * (edges - point)  # [30, C, 2]
    outside = np.maximum(np.maximum(frame[:2] - boxes[:, :2], boxes[:, 2:] - frame[2:]).max(1), 0)
    margin = 4 * scale * np.array([-1, -1, 1, 1])
    cost = reach[:, 0] / scale + 1000 * (outside > 0) + 10 * outside
    cost += 300 * _inside(boxes + margin, points) + 6 * _inside(boxes, passed)
    between = np.linalg.norm(leaders[:, :, None] - points[np.any(points != point, 1)], axis=3)  # [30, C, n]
    cost += 40 * (between < 5 * scale).any(0).sum(1)
    for other in others:
        apart = (boxes[:, 2:] <= other.box[:2]) | (other.box[2:] <= boxes[:, :2])
        cost += 1000 * ~apart.any(1)
        cost += 15 * ((leaders >= other.box[:2]) & (leaders <= other.box[2:])).all(2).sum(0)
        cost += 15 * _inside(boxes, np.linspace(other.point, other.edge, 30))
        cost += 80 * _cross(point, edges, other.point, other.edge)
    best = int(cost.argmin())
    return _Place(boxes[best], point, edges[best])


def _inside(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return int[C]: how many of the points [n, 2] are in each of the boxes [C, 4]."""
    within = (points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])
    return within.all(2).sum(1)


def _cross(start: np.ndarray, ends: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return bool[C]: whether the line from start [2] to each of ends [C, 2] crosses that from one to other [2]."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        ab, ac = b - a, c - a
        return np.sign(ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0])

    apart = side(start, ends, one) * side(start, ends, other) < 0
    return apart & (side(one, other, start) * side(one, other, ends) < 0)

"""The report: one HTML file that needs nothing beside it, and its pictures as PNG."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.figure import Figure

from simcse_jax.evaluation.names import shown_names
from simcse_jax.evaluation.report import drawing, geometry, pair_pictures, pictures, protocols, tables
from simcse_jax.evaluation.report.tables import number
from simcse_jax.evaluation.results import OWN, Entry, Results, Verdict
from simcse_jax.system.errors import UserError

REPORT = "report.html"
_CSS_PIXELS = 96  # an inch
_GLYPHS = {"o": "\u25cf", "s": "\u25a0", "^": "\u25b2", "D": "\u25c6", "v": "\u25bc"}  # as the markers of pictures
_MOST = 8  # models that the words for a picture go into


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn picture and what is said of it."""

    name: str
    png: bytes
    width: int  # on the page, in CSS pixels
    height: int
    caption: str
    alt: str

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def write_report(results: Results, out: Path) -> Path:
    """Write `out/report.html` and each picture as `out/NAME.png`, all of them whole or none; the report's path.

    A picture that these results have nothing for is removed, so that none of an earlier report stands beside this one.
    UserError when `out` cannot be written.
    """
    drawn = {name: _picture(name, results) for name in PICTURES}
    files = {f"{name}.png": picture.png for name, picture in drawn.items() if picture}
    files[REPORT] = render(results, drawn).encode("utf-8")
    had_report = (out / REPORT).exists()
    partial = {name: out / f".{name}.partial" for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            for name, content in files.items():
                partial[name].write_bytes(content)
            for name in files:
                os.replace(partial[name], out / name)
        finally:
            for path in partial.values():
                path.unlink(missing_ok=True)
        for name, picture in drawn.items():
            if picture is None and had_report:  # else such a file is somebody else's
                (out / f"{name}.png").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {out}: {error.strerror or error}.\nGive another folder, or make room."
        ) from error
    return out / REPORT


def _asked(verdict: Verdict) -> bool:
    """Whether it was judged with another pooler than its own."""
    return verdict.protocol.get("pooler from", OWN) != OWN


def render(results: Results, drawn: dict[str, Picture | None]) -> str:
    """The HTML of the report, with these pictures in it; nothing in it comes from anywhere else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(REPORT).render(
        results=results,
        summary=_summary(results),
        asked=[(v.name, v.protocol["pooler"], v.protocol["pooler from"]) for v in results.verdicts if _asked(v)],
        failures=[(task, v.name, reason) for v in results.verdicts for task, reason in v.failures.items()],
        scores=tables.score_tables(results),
        spreads=tables.spread_tables(results),
        differences=tables.difference_tables(results),
        geometry=geometry.geometry_table(results),
        reading={name.replace("_", " "): how.reading for name, how in geometry.FIGURES.items()},
        measured=geometry.measured(results),
        changes=geometry.change_sentences(results),
        models=protocols.model_table(results),
        tasks=protocols.task_table(results),
        values=protocols.value_tables(results),
        pictures=drawn,
        names=shown_names([entry.name for entry in results.entries]),
        signs=[_sign(place) for place in range(len(results.entries))],
        date=results.date.replace("T", " ").replace("+00:00", " UTC"),
    )


def _sign(place: int) -> tuple[str, str]:
    """(glyph, CSS colour) that stand for an entry, as in the pictures; black is the text's colour, also on dark."""
    hue = drawing.colour(place)
    return _GLYPHS[drawing.marker(place)], "currentColor" if hue == "#000000" else hue


def _summary(results: Results) -> str:
    """How much was judged, in one sentence."""
    models, entries = len(results.verdicts), len(results.entries)
    tasks = sum(any(entry.values(task) for entry in results.entries) for task in results.tasks)
    rows = f" (in {_count(entries, 'row')}: runs of one recipe stand together)" if entries < models else ""
    return f"{_count(models, 'model')}{rows} judged on {_count(tasks, 'task')}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _picture(name: str, results: Results) -> Picture | None:
    kind = PICTURES[name]
    figure, caption = kind.draw(results), kind.caption
    if figure is None:
        return None
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi, metadata={"Software": None})
    width, height = (round(inches * _CSS_PIXELS) for inches in figure.get_size_inches())
    names = shown_names([entry.name for entry in results.entries])
    absent = pair_pictures.left_out(results) if kind.side_by_side else []
    if absent:
        caption += f" Not shown for want of room: {', '.join(names[place] for place in absent)}."
    described = [(entry.name, words) for entry in results.entries if (words := kind.describe(results, entry))]
    alt = "; ".join(f"{name}: {words}" for name, words in described[:_MOST])
    more = f"; and {len(described) - _MOST} more" if len(described) > _MOST else ""
    return Picture(name, png.getvalue(), width, height, caption, f"{kind.title}. {alt}{more}.")


def _first(entry: Entry, has: Callable[[Verdict], Any]) -> Any:
    return next((found for verdict in entry.verdicts if (found := has(verdict))), None)


def _describe_plane(_: Results, entry: Entry) -> str:
    space = _first(entry, lambda verdict: verdict.space)
    return f"uniformity {number(space.uniformity)}, alignment {number(space.alignment)}" if space else ""


def _describe_spectrum(_: Results, entry: Entry) -> str:
    space = _first(entry, lambda verdict: verdict.space)
    if not space:
        return ""
    middle = space.singular_values[len(space.singular_values) // 2]
    return f"the middle one of {len(space.singular_values)} singular values is {middle:.2g} of the largest"


def _describe_cosines(results: Results, entry: Entry) -> str:
    score = _first(entry, lambda verdict: verdict.scores.get(pair_pictures.default_task(results) or ""))
    if not score or score.cosines is None:
        return ""
    low, high = score.gold <= np.quantile(score.gold, 0.2), score.gold >= np.quantile(score.gold, 0.8)
    medians = [number(float(np.median(score.cosines[part]))) for part in (low, high)]
    return f"median cosine {medians[0]} for the lowest fifth of gold scores, {medians[1]} for the highest"


def _describe_spearman(results: Results, entry: Entry) -> str:
    score = _first(entry, lambda verdict: verdict.scores.get(pair_pictures.default_task(results) or ""))
    return f"Spearman {number(score.value)}" if score and score.cosines is not None else ""


def _of(lines: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines if line.get(key) is not None]


def _describe_curves(_: Results, entry: Entry) -> str:
    lines = [line for verdict in entry.verdicts for line in verdict.curves]
    scores, losses, held_out = (_of(lines, key) for key in ("dev/spearman", "loss", "dev/perplexity"))
    words = [f"best dev score {number(max(scores))}"] if scores else []
    words += [f"lowest held-out perplexity {min(held_out):.2f}"] if held_out else []
    for name, values in (("loss", losses), *((key, _of(lines, key)) for key in ("alignment", "uniformity"))):
        words += [f"{name} from {values[0]:.3g} to {values[-1]:.3g}"] if values else []
    return ", ".join(words)


class _Kind(NamedTuple):
    """A kind of picture: how it is drawn, what it is called, its caption, and what it shows of an entry in words."""

    draw: Callable[[Results], Figure | None]
    title: str
    caption: str
    describe: Callable[[Results, Entry], str]
    side_by_side: bool = False  # has no room for all models


PICTURES = {  # by the name of the file
    "alignment_uniformity": _Kind(
        pictures.alignment_uniformity,
        "Plane of alignment and uniformity",
        "Alignment of close pairs against uniformity of all sentences (Wang & Isola 2020). Lower is better on both "
        "axes, so the lower left corner is best.",
        _describe_plane,
    ),
    "spectrum": _Kind(
        pictures.spectrum,
        "Curves of the singular values",
        "Singular values of the matrix of sentence embeddings, divided by the largest. A line that falls slowly is a "
        "flat spectrum: the sentences use many directions. SimCSE's section 5 argues that the contrastive loss "
        "flattens it. A last few that are next to nothing are left out.",
        _describe_spectrum,
    ),
    "cosines_by_band": _Kind(
        pair_pictures.cosines_by_band,
        "Distributions of cosines by gold score",
        "Cosines of the pairs, by fifth of the gold scale. A good model's shapes climb from left to right and overlap "
        "little.",
        _describe_cosines,
        side_by_side=True,
    ),
    "predicted_against_gold": _Kind(
        pair_pictures.predicted_against_gold,
        "Cosines against gold scores",
        "The cosine of every pair against its gold score. Spearman's correlation asks for the same order, not for a "
        "straight line.",
        _describe_spearman,
        side_by_side=True,
    ),
    "training_curves": _Kind(
        pictures.training_curves,
        "Curves of training",
        "Against steps: training loss; of contrastive training, alignment and uniformity of its batches (the paper's "
        "figure 2); perplexity of held-out text and dev score, where there are some. Of a run with these, the best "
        "step is what is exported and judged.",
        _describe_curves,
    ),
}

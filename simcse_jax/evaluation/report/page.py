"""Write the report: one HTML file that needs no other file, and its pictures as PNG."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jinja2
from matplotlib.figure import Figure

from simcse_jax.evaluation.report import drawing, geometry, pair_pictures, pictures, protocols, tables, width_curve
from simcse_jax.evaluation.results import Results
from simcse_jax.system.whole_file import writing

REPORT = "report.html"
_CSS_PIXELS = 96  # an inch
_GLYPHS = {"o": "\u25cf", "s": "\u25a0", "^": "\u25b2", "D": "\u25c6", "v": "\u25bc"}  # the markers of the pictures


class Picture(NamedTuple):
    """Hold a drawn picture and its texts."""

    png: bytes
    source: str  # the picture as a data URI
    width: int  # on the page, in CSS pixels
    height: int
    caption: str
    alt: str


def write_report(results: Results, out: Path, scores_file: bool = False) -> Path:
    """Write `out/report.html` and each picture as `out/NAME.png`, all of them or none; return the report's path.

    Pictures of an earlier report that these results have no data for are removed. scores_file: the folder holds the
    same results as scores.json, which the report then mentions. Raises UserError when `out` cannot be written.
    """
    drawn = {name: _picture(kind, results) for name, kind in PICTURES.items()}
    files = {f"{name}.png": picture.png for name, picture in drawn.items() if picture}
    files[REPORT] = render(results, drawn, scores_file).encode("utf-8")
    had_report = (out / REPORT).exists()
    partial = {name: out / f".{name}.partial" for name in files}
    with writing(out, "Give another folder, or make room.", f"The report in {out}"):
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
            if picture is None and had_report:  # without a report, the file is not ours
                (out / f"{name}.png").unlink(missing_ok=True)
    return out / REPORT


def render(results: Results, drawn: dict[str, Picture | None], scores_file: bool = False) -> str:
    """Return the HTML of the report with these pictures in it. It loads nothing from elsewhere."""
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
        title="Evaluation report" if results.tasks or geometry.describe_pairs(results) else "Training report",
        summary=_summary(results),
        scores_file=scores_file,
        asked=[(v.name, v.protocol["pooler"], v.protocol["pooler from"]) for v in results.models if v.asked_pooler],
        failures=[(task, v.name, reason) for v in results.models for task, reason in v.failures.items()],
        scores=tables.score_tables(results),
        spreads=tables.spread_tables(results),
        differences=tables.difference_tables(results),
        geometry=geometry.geometry_table(results),
        reading={name.replace("_", " "): how.words for name, how in geometry.READINGS.items()},
        measured=geometry.describe_pairs(results),
        changes=geometry.change_sentences(results),
        models=protocols.model_table(results),
        tasks=protocols.task_table(results),
        values=protocols.value_tables(results),
        pictures=drawn,
        names=results.names(),
        signs=[_sign(place) for place in range(len(results.entries))],
        date=results.date.replace("T", " ").replace("+00:00", " UTC"),
    )


def _sign(place: int) -> tuple[str, str]:
    """Return the glyph and CSS colour of an entry, as in the pictures; black becomes the text's colour."""
    hue = drawing.colour(place)
    return _GLYPHS[drawing.marker(place)], "currentColor" if hue == "#000000" else hue


def _summary(results: Results) -> str:
    """Return what was judged on what, in one sentence."""
    models, entries = len(results.models), len(results.entries)
    tasks = sum(any(entry.values(task) for entry in results.entries) for task in results.tasks)
    parts = [f"scores on {_count(tasks, 'task')}"] if tasks else []
    parts += ["geometry"] if any(model.space for model in results.models) else []
    parts += ["training curves"] if any(model.curves for model in results.models) else []
    rows = f" in {_count(entries, 'row')}, runs of one recipe together" if entries < models else ""
    return f"{_count(models, 'model')}{rows}: {', '.join(parts) or 'no result'}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _picture(kind: _Kind, results: Results) -> Picture | None:
    figure, caption, names = kind.draw(results), kind.caption, results.names()
    if figure is None:
        return None
    absent = pair_pictures.make_panels(results)[pair_pictures.PANELS :] if kind.side_by_side else []
    if absent:
        caption += f" Not shown, to save room: {', '.join(names[panel.place] for panel in absent)}."
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi, metadata={"Software": None})
    png = file.getvalue()
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    width, height = (round(inches * _CSS_PIXELS) for inches in figure.get_size_inches())
    return Picture(png, source, width, height, caption, f"{kind.title}: {', '.join(names)}.")


class _Kind(NamedTuple):
    """Hold how a picture is drawn, its title and its caption."""

    draw: Callable[[Results], Figure | None]
    title: str
    caption: str
    side_by_side: bool = False  # shows a few models only


PICTURES = {  # by the name of the file
    "score_by_width": _Kind(
        width_curve.score_by_width,
        "Curves of the score by width",
        "The score of vectors that are cut to their first features, against how many these are; the last mark of a "
        "line is the whole vector. The table of scores has each width as a row.",
    ),
    "alignment_uniformity": _Kind(
        pictures.alignment_uniformity,
        "Plane of alignment and uniformity",
        "Alignment of close pairs against uniformity of all sentences (Wang & Isola 2020). Lower is better on both "
        "axes, so the lower left corner is best.",
    ),
    "spectrum": _Kind(
        pictures.spectrum,
        "Curves of the singular values",
        "Singular values of the matrix of sentence embeddings, divided by the largest. A line that falls slowly is a "
        "flat spectrum: the sentences use many directions. Section 5 of the SimCSE paper argues that the contrastive "
        "loss flattens it. The last values, close to 0, are left out.",
    ),
    "cosines_by_band": _Kind(
        pair_pictures.cosines_by_band,
        "Distributions of cosines by gold score",
        "Cosines of the pairs, by fifth of the gold scale. The shapes of a good model rise from left to right and "
        "overlap little.",
        side_by_side=True,
    ),
    "predicted_against_gold": _Kind(
        pair_pictures.predicted_against_gold,
        "Cosines against gold scores",
        "The cosine of every pair against its gold score. Spearman's correlation measures whether both give the same "
        "order, not whether the points are on a straight line.",
        side_by_side=True,
    ),
    "training_curves": _Kind(
        pictures.training_curves,
        "Curves of training",
        "Metrics of training against its steps. Alignment and uniformity are those of the training batches (figure 2 "
        "of the SimCSE paper). A run with dev scores or held-out perplexity exports its best step, which may be the "
        "start; a run without them exports its last step.",
    ),
}

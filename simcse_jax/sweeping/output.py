"""Write the table of a sweep as Markdown, JSON and a picture, and print it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from simcse_jax import __version__
from simcse_jax.evaluation.report import drawing
from simcse_jax.evaluation.report.drawing import GREY, INK, SMALL
from simcse_jax.evaluation.results import shorten
from simcse_jax.sweeping.table import (
    LAST,
    LOWER_IS_BETTER,
    PERPLEXITY,
    SPACE,
    SPEARMAN,
    RowDifference,
    SweepTable,
    TableRow,
)
from simcse_jax.system.terminal_table import print_table
from simcse_jax.system.whole_file import write_whole, write_whole_text, writing

TITLES = {
    "sts": "STS average",
    "transfer": "transfer average",
    "dev/mean": "dev mean",
    SPEARMAN: "dev Spearman",
    PERPLEXITY: "dev perplexity",
    LAST: "dev Spearman at the end",
    "dev/pearson": "dev Pearson",
    "dev/mlm_accuracy": "dev MLM accuracy",
    "mean_cosine": "mean cosine",
    "effective_rank": "effective rank",
    "top_share": "top share",
}
NONE = "–"  # noqa: RUF001 (a dash, as in printed tables)
# Of the picture, in inches.
_ROW_HEIGHT = 0.42
_LETTER_WIDTH = 0.075
_LONGEST_LABEL = 48  # letters
_DOT_SPREAD = 0.22  # of a row's height, over which its dots are spread


def title_of(metric: str) -> str:
    """Return the metric's name for people."""
    return TITLES.get(metric, metric)


def write_table(table: SweepTable, folder: Path) -> list[Path]:
    """Write table.md, table.json and table.png, each whole or not at all, and return their paths."""
    paths = [folder / f"table.{kind}" for kind in ("md", "json", "png")]
    figure = draw(table)
    with writing(folder):
        write_whole_text(paths[0], markdown(table))
        write_whole_text(paths[1], json.dumps(as_json(table), indent=2, allow_nan=False) + "\n")
        write_whole(paths[2], lambda partial: figure.savefig(partial, format="png"))
    return paths


def print_sweep(table: SweepTable, console: Console) -> None:
    """Print the table, what its test is, and what is missing."""
    names, rows = _headers(table), [_cells(table, row) for row in table.rows]
    head = len(names) - len(table.columns)
    bold = next((place for place, row in enumerate(table.rows) if row is table.leader), None)
    print_table(console, _title(table), names[:head], [row[:head] for row in rows], bold)
    if table.columns:  # in a table of their own, as all columns together are wider than most terminals
        print_table(console, "Mean ± sd", [names[0], *names[head:]], [[row[0], *row[head:]] for row in rows], bold)
    for line in _notes(table):
        console.print(Text(line))


def markdown(table: SweepTable) -> str:
    """Return the table as Markdown, the best mean bold."""

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"

    names = _headers(table)
    lines = [f"# {_title(table)}", "", line(names), f"|---|{'---:|' * (len(names) - 1)}"]
    for row in table.rows:
        texts = _cells(table, row)
        texts[2] = f"**{texts[2]}**" if row is table.leader else texts[2]
        lines.append(line(texts))
    return "\n".join([*lines, "", *(f"{note}\n" for note in _notes(table))])


def as_json(table: SweepTable) -> dict[str, Any]:
    """Return the content of table.json: every metric of every run, the recipe and the versions."""
    return {
        "recipe": table.plan.recipe,
        "measure": table.measure,
        "lower_is_better": table.measure in LOWER_IS_BETTER,
        "reference": table.rows[0].row.label,
        "test": "two-sided paired t-test against the reference over shared seeds, p not corrected for several rows",
        "rows": [_row_as_json(row) for row in table.rows],
        "judging": dataclasses.asdict(table.plan.judging),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "simcse_jax": __version__,
            "jax": version("jax"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
        },
        "commit": _commit(),
    }


def draw(table: SweepTable) -> Figure:
    """Draw a dot for each seed, mean and standard deviation of each row; rows from top to bottom in the table's order.

    A dashed line is the mean of the first row.
    """
    labels = [drawing.replace_missing_glyphs(shorten(row.row.label, _LONGEST_LABEL)) for row in table.rows]
    figure = drawing.new_figure(_ROW_HEIGHT * len(table.rows) + 1.5)
    title = title_of(table.measure)
    drawing.write_title(
        figure, f"{title} by row", "A dot: one seed. Bar: mean and standard deviation. Dashed: mean of the first row."
    )
    drawing.set_margins(figure, left=0.4 + _LETTER_WIDTH * max(map(len, labels)), top=0.74, bottom=0.62)
    axes = figure.subplots()
    drawing.style_axes(axes, title + (" (lower is better)" if table.measure in LOWER_IS_BETTER else ""))
    for place, row in enumerate(table.rows):
        values = np.array([metrics[table.measure] for metrics in row.runs.values()])
        if not len(values):
            axes.text(
                0.5, place, "nothing finished", transform=axes.get_yaxis_transform(), ha="center", va="center",
                size=SMALL, color=GREY, style="italic",
            )  # fmt: skip
            continue
        colour, whole = drawing.colour(place), row.metrics[table.measure]
        if place == 0:
            axes.axvline(whole["mean"], color=GREY, linestyle="--", linewidth=1, zorder=1)
        spread = np.linspace(-_DOT_SPREAD, _DOT_SPREAD, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(values, place + spread, "o", color=colour, markersize=5, alpha=0.55, markeredgewidth=0, zorder=2)
        if len(values) > 1:
            axes.errorbar(whole["mean"], place, xerr=whole["sd"], color=INK, linewidth=1.4, capsize=4, zorder=3)
            axes.plot(whole["mean"], place, "|", color=INK, markersize=15, markeredgewidth=2, zorder=4)
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.set_yticks(range(len(table.rows)), labels, parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.06)
    return figure


def _headers(table: SweepTable) -> list[str]:
    return ["row", "n", "mean", "sd", "best", "difference", "p", *map(title_of, table.columns)]


def _cells(table: SweepTable, row: TableRow) -> list[str]:
    """Return the texts of one row."""
    whole = row.metrics.get(table.measure)
    head = [row.row.label, str(len(row.runs))]
    if whole is None or row.best is None:
        return [*head, *[NONE] * (5 + len(table.columns))]
    show = functools.partial(_show, table.measure)
    return [
        *head,
        show(whole["mean"]),
        show(whole["sd"]) if whole["runs"] > 1 else NONE,
        show(row.best[1]),
        NONE if row.difference is None else show(row.difference.mean, "+"),
        _p_value(row.difference),
        *(_mean_and_sd(row, name) for name in table.columns),
    ]


def _notes(table: SweepTable) -> list[str]:
    """Return the lines under the table: what it shows, what is tested, and what is missing."""
    lower = ", lower is better" if table.measure in LOWER_IS_BETTER else ""
    lines = [
        f"n: seeds that are finished. mean, sd (n - 1) and best: {title_of(table.measure)}{lower}; other columns: "
        "mean ± sd.",
        f"difference: from {table.rows[0].row.label!r}, mean over the seeds that both have; p: two-sided paired t-test "
        "over these seeds, not corrected for the number of rows.",
    ]
    shared = set.intersection(*({*row.row.overrides.items()} for row in table.rows))
    notes: dict[str, list[str]] = {"Settings": [], "Without a test": [], "MISSING": []}
    for row in table.rows:
        label = row.row.label
        own = [
            f"{key}={value}"
            for key, value in row.row.overrides.items()
            if (key, value) not in shared and f"{key.rpartition('.')[2]}={value}" not in label
        ]
        if own:
            notes["Settings"].append(f"{label}: {', '.join(own)}")
        if row.difference and row.difference.untested:
            notes["Without a test"].append(f"{label} ({row.difference.untested})")
        if row.missing:
            notes["MISSING"].append(f"{label}: seed{'s' * (len(row.missing) > 1)} {', '.join(map(str, row.missing))}")
    return [*lines, *(f"{what}: {'; '.join(parts)}." for what, parts in notes.items() if parts)]


def _title(table: SweepTable) -> str:
    return f"{table.plan.recipe}: {title_of(table.measure)} by row"


def _mean_and_sd(row: TableRow, name: str) -> str:
    values = row.metrics.get(name)
    if values is None:
        return NONE
    show = functools.partial(_show, name)
    some = f" ({values['runs']} of {len(row.runs)})" if values["runs"] < len(row.runs) else ""
    return show(values["mean"]) + (f" ± {show(values['sd'])}" if values["runs"] > 1 else "") + some


def _p_value(difference: RowDifference | None) -> str:
    if difference is None or difference.p is None:
        return NONE
    return "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"


def _show(name: str, value: float, sign: str = "") -> str:
    """Return the value with two digits, or three for metrics of the geometry, which are not times 100."""
    return f"{value:{sign}z.{3 if name in SPACE else 2}f}"


def _row_as_json(row: TableRow) -> dict[str, Any]:
    return {
        "label": row.row.label,
        "folder": row.row.folder,
        "overrides": row.row.overrides,
        "seeds": {str(seed): metrics for seed, metrics in row.runs.items()},
        "missing": list(row.missing),
        "figures": {
            name: {**values, "sd": values["sd"] if values["runs"] > 1 else None} for name, values in row.metrics.items()
        },
        "best": None if row.best is None else {"seed": row.best[0], "value": row.best[1]},
        "difference": row.difference._asdict() if row.difference else None,
    }


def _commit() -> str | None:
    """Return the commit of the code, with "+changes" where files differ from it; None where it is unknown."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails for a package installed within another repository
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    except (OSError, subprocess.CalledProcessError):
        return None

"""The table as Markdown, JSON and a picture, and on the terminal."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from simcse_jax.sweeping.figures import LOWER_IS_BETTER, SPACE, TITLES
from simcse_jax.sweeping.picture import draw
from simcse_jax.sweeping.table import Difference, Table, TableRow, as_json, missing
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole, write_whole_text

NONE = "–"  # noqa: RUF001 (a dash, as in printed tables)


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write table.md, table.json and table.png, each whole or not at all, and return their paths."""
    paths = [folder / f"table.{kind}" for kind in ("md", "json", "png")]
    figure = draw(table)
    try:
        write_whole_text(paths[0], markdown(table))
        write_whole_text(paths[1], json.dumps(as_json(table), indent=2, allow_nan=False) + "\n")
        write_whole(paths[2], lambda partial: figure.savefig(partial, format="png"))
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return paths


def print_table(table: Table, console: Console) -> None:
    """Print the table, what its test is, and what is missing."""
    names, rows = headers(table), [cells(table, row) for row in table.rows]
    head = len(names) - len(table.columns)
    _print_columns(table, console, _title(table), names[:head], [row[:head] for row in rows])
    if table.columns:  # by themselves, as all of them together are wider than most terminals
        _print_columns(table, console, "Mean ± sd", [names[0], *names[head:]], [[row[0], *row[head:]] for row in rows])
    for line in notes(table):
        console.print(Text(line))


def _print_columns(
    table: Table, console: Console, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    first, *others = names
    grid = Grid(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column(first, overflow="fold")
    for column in others:
        grid.add_column(column, justify="right", no_wrap=True)
    for row, texts in zip(table.rows, rows, strict=True):
        grid.add_row(*(Text(text, style="bold" if row is table.leader else "") for text in texts))
    console.print(grid)


def markdown(table: Table) -> str:
    """The table as Markdown, the best mean bold."""

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"

    names = headers(table)
    lines = [f"# {_title(table)}", "", line(names), f"|---|{'---:|' * (len(names) - 1)}"]
    for row in table.rows:
        texts = cells(table, row)
        texts[2] = f"**{texts[2]}**" if row is table.leader else texts[2]
        lines.append(line(texts))
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes(table))])


def headers(table: Table) -> list[str]:
    """The names of the columns."""
    return ["row", "n", "mean", "sd", "best", "difference", "p", *map(_named, table.columns)]


def cells(table: Table, row: TableRow) -> list[str]:
    """One row's cells, as text."""
    whole = row.figures.get(table.measure)
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
        _p(row.difference),
        *(_mean_and_sd(row, name) for name in table.columns),
    ]


def notes(table: Table) -> list[str]:
    """Lines under the table: what it shows, what is tested, and what is missing."""
    lower = ", lower is better" if table.measure in LOWER_IS_BETTER else ""
    lines = [
        f"n: seeds that are finished. mean, sd (of a sample, n - 1) and best: {_named(table.measure)}{lower}; other "
        "columns: mean ± sd.",
        f"difference: from {table.rows[0].row.label!r}, mean over the seeds that both have; p: two-sided paired t-test "
        "over these seeds, not corrected for the number of rows.",
    ]
    untested = [
        f"{r.row.label} ({r.difference.untested})" for r in table.rows if r.difference and r.difference.untested
    ]
    if untested:
        lines.append(f"Without a test: {'; '.join(untested)}.")
    left = missing(table.rows)
    if left:
        lines.append(f"MISSING: {'; '.join(left)}.")
    return lines


def _title(table: Table) -> str:
    return f"{table.plan.recipe}: {_named(table.measure)} by row"


def _named(name: str) -> str:
    return TITLES.get(name, name)


def _mean_and_sd(row: TableRow, name: str) -> str:
    values = row.figures.get(name)
    if values is None:
        return NONE
    show = functools.partial(_show, name)
    some = f" ({values['runs']} of {len(row.runs)})" if values["runs"] < len(row.runs) else ""
    return show(values["mean"]) + (f" ± {show(values['sd'])}" if values["runs"] > 1 else "") + some


def _p(difference: Difference | None) -> str:
    if difference is None or difference.p is None:
        return NONE
    return "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"


def _show(name: str, value: float, sign: str = "") -> str:
    """The figure with two digits where it is times 100, three in the geometry."""
    return f"{value:{sign}z.{3 if name in SPACE else 2}f}"

"""Build tables of scores, of their spread over runs and of differences, as plain text for the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from simcse_jax.evaluation.compare import spread
from simcse_jax.evaluation.results import Entry, Results, task_name

TITLES = {"sts": "Semantic textual similarity", "transfer": "Transfer"}  # by the name of the average
NOTHING = "\u2013"
WIDE = 6  # columns; on a narrow screen, a table with more of them becomes a list


class Cell(NamedTuple):
    """Hold the content of one cell."""

    text: str
    note: str = ""  # smaller, below
    kind: str = ""  # "best", "failed", "higher", "lower": its colour or weight; the text says the same


class Row(NamedTuple):
    """Hold a row head and its cells."""

    head: str
    cells: tuple[Cell, ...]
    place: int | None = None  # of the entry in the results, for its colour
    note: str = ""
    whole: str = ""  # the head before it was shortened


class Table(NamedTuple):
    """Hold a table; `columns` begins with the column of the row heads."""

    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[Row, ...]
    prose: bool = False  # cells of words rather than of numbers

    @property
    def wide(self) -> bool:
        """Whether a narrow screen has no room for it."""
        return len(self.columns) > (3 if self.prose else WIDE)


class Column(NamedTuple):
    """Name a task, or an average, and the tasks that its values are means over."""

    name: str
    tasks: tuple[str, ...]


def format_number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Return the value as text, with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\u2212")


def format_mean(values: Sequence[float], digits: int) -> str:
    """Return the mean as text, and for several values their standard deviation."""
    numbers = spread(values)
    sd = f" ±\u00a0{format_number(numbers['sd'], digits)}" if len(values) > 1 else ""
    return format_number(numbers["mean"], digits) + sd


def entry_row(results: Results, place: int, cells: Iterable[Cell], note: str = "") -> Row:
    """Return the row of the entry in that place; the table of models has a long name in full."""
    return Row(results.names()[place], tuple(cells), place, note, results.entries[place].name)


def score_tables(results: Results) -> list[Table]:
    """Return tables of entries by tasks; a value that is clearly above all others of its column is bold."""

    def cell(entry: Entry, column: Column) -> Cell | None:
        values, runs = entry.values(*column.tasks), len(entry.models)
        if not values:
            return Cell("failed", kind="failed") if entry.failed(column.name) else None
        few = f"{len(values)} of {runs} runs" if len(values) < runs else ""
        return Cell(format_mean(values, 2), few, "best" if results.best.get(column.name) == entry.name else "")

    return _tables(results, cell)


def spread_tables(results: Results) -> list[Table]:
    """Return tables of the lowest and the highest value and the number of runs, for entries of several runs."""

    def cell(entry: Entry, column: Column) -> Cell | None:
        values = entry.values(*column.tasks)
        if len(entry.models) < 2 or not values:
            return None
        return Cell(f"{format_number(min(values))} to {format_number(max(values))}", f"{len(values)} runs")

    return _tables(results, cell, ": lowest to highest run", with_runs=False)


def difference_tables(results: Results) -> list[Table]:
    """Return tables of points from the first entry, with their interval and, in words, whether it excludes 0."""
    known = {(difference.other, difference.task): difference for difference in results.differences}

    def cell(entry: Entry, column: Column) -> Cell | None:
        found = known.get((entry.name, column.name))
        if found is None:
            return None
        low, high = (format_number(end, sign=True) for end in (found.low, found.high))
        kind = "" if found.direction == "unclear" else found.direction
        return Cell(format_number(found.points, sign=True), f"{low} to {high}: {found.direction}", kind)

    return _tables(results, cell)


def _tables(
    results: Results, cell: Callable[[Entry, Column], Cell | None], caption: str = "", with_runs: bool = True
) -> list[Table]:
    """Return a table for each group of tasks, without the rows and columns that have no cell at all.

    caption: what follows the group's title. with_runs: rows of several runs have their number.
    """
    tables = []
    for title, columns in _task_groups(results):
        found = [[cell(entry, column) for column in columns] for entry in results.entries]
        kept = [number for number in range(len(columns)) if any(row[number] for row in found)]
        rows = []
        for place, cells in enumerate(found):
            if any(cells):
                runs = len(results.entries[place].models)
                note = f"{runs} runs" if with_runs and runs > 1 else ""
                rows.append(entry_row(results, place, (cells[number] or Cell(NOTHING) for number in kept), note))
        if rows:
            heads = (Cell("Model"), *(_head(columns[number], results) for number in kept))
            tables.append(Table(title + caption, heads, tuple(rows)))
    return tables


def _task_groups(results: Results) -> list[tuple[str, list[Column]]]:
    """Return (title, columns) for the tasks of each average, and for the other tasks; those that have a score."""
    left = [Column(task, (task,)) for task in results.tasks if any(entry.values(task) for entry in results.entries)]
    groups = []
    for name, tasks in results.averages.items():
        columns = [column for column in left if column.name in tasks]
        left = [column for column in left if column.name not in tasks]
        if columns:
            groups.append((TITLES.get(name, name), [*columns, Column(name, tasks)]))
    if left:
        groups.append(("Other tasks" if groups else "Scores", left))
    return groups


def _head(column: Column, results: Results) -> Cell:
    """Return the name of a task, and below it the name of its values; or how many tasks an average is over."""
    if column.name in results.averages:
        return Cell(f"Average of {len(column.tasks)}")
    scores = (model.scores.get(column.name) for model in results.models)
    return Cell(task_name(column.name), ", ".join(dict.fromkeys(score.headline for score in scores if score)))

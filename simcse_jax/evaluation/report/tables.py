"""The report's tables, as plain text: what the template turns into HTML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from simcse_jax.evaluation.compare import averages_of, spread
from simcse_jax.evaluation.names import shown_names
from simcse_jax.evaluation.results import Difference, Entry, Results

TITLES = {"sts": "Semantic textual similarity", "transfer": "Transfer"}  # by the name of the average
NOTHING = "\u2013"


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in one cell."""

    text: str
    note: str = ""  # smaller, below
    kind: str = ""  # "best", "failed", "higher", "lower": for the eye, and said in words elsewhere


@dataclasses.dataclass(frozen=True)
class Row:
    """A head and its cells."""

    head: str
    cells: tuple[Cell, ...]
    place: int | None = None  # of the entry in the results, for its colour
    note: str = ""
    whole: str = ""  # the head unshortened


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the report; `columns` begins with the column of the row heads."""

    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[Row, ...]
    prose: bool = False  # cells of words rather than of numbers


@dataclasses.dataclass(frozen=True)
class Column:
    """A task, or the average over several."""

    task: str
    over: tuple[str, ...] = ()

    def values(self, entry: Entry) -> list[float]:
        """One value a run that has it; an average only where all of its tasks are there."""
        return averages_of(entry, self.over) if self.over else entry.values(self.task)

    def failed(self, entry: Entry) -> bool:
        return not self.over and any(self.task in verdict.failures for verdict in entry.verdicts)

    def head(self, results: Results) -> Cell:
        """Its name, and below it the name of the values."""
        if self.over:
            return Cell(f"Average of {len(self.over)}")
        scores = (verdict.scores.get(self.task) for verdict in results.verdicts)
        return Cell(self.task, ", ".join(dict.fromkeys(score.headline for score in scores if score)))


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """The value with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\u2212")


def entry_row(results: Results, place: int, cells: Iterable[Cell], note: str = "") -> Row:
    """The row of the entry in that place; a long name is shortened, and stands whole in the table of models."""
    names = [entry.name for entry in results.entries]
    return Row(shown_names(names)[place], tuple(cells), place, note, names[place])


def task_groups(results: Results) -> list[tuple[str, list[Column]]]:
    """(title, columns): the tasks of each average with it, and the other tasks; of those that some model has."""
    scored = [task for task in results.tasks if any(entry.values(task) for entry in results.entries)]
    groups, left = [], dict.fromkeys(scored)
    for name, tasks in results.averages.items():
        columns = [Column(task) for task in tasks if task in scored]
        if columns:
            groups.append((TITLES.get(name, name), [*columns, Column(name, tuple(tasks))]))
            for task in tasks:
                left.pop(task, None)
    if left:
        groups.append(("Other tasks" if groups else "Scores", [Column(task) for task in left]))
    return groups


def score_tables(results: Results) -> list[Table]:
    """Entries by tasks; mean and standard deviation where an entry is several runs, the highest of a column marked."""
    tables = []
    for title, columns in task_groups(results):
        means = [[_mean(column.values(entry)) for column in columns] for entry in results.entries]
        highest = np.nanmax(np.array(means), axis=0, initial=-math.inf)
        several = np.sum(np.isfinite(means), axis=0) > 1
        rows = []
        for place, (entry, own) in enumerate(zip(results.entries, means, strict=True)):
            cells = []
            for column, mean, top, compared in zip(columns, own, highest, several, strict=True):
                cells.append(_score_cell(entry, column, best=compared and round(mean, 2) == round(top, 2)))
            rows.append(entry_row(results, place, cells, _runs(entry)))
        tables.append(Table(title, _head(results, "Model", columns), tuple(rows)))
    return tables


def _head(results: Results, first: str, columns: Iterable[Column]) -> tuple[Cell, ...]:
    return (Cell(first), *(column.head(results) for column in columns))


def _runs(entry: Entry) -> str:
    return f"{len(entry.verdicts)} runs" if len(entry.verdicts) > 1 else ""


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _score_cell(entry: Entry, column: Column, best: bool) -> Cell:
    values, runs = column.values(entry), len(entry.verdicts)
    if not values:
        return Cell("failed", kind="failed") if column.failed(entry) else Cell(NOTHING)
    few = f"{len(values)} of {runs} runs" if len(values) < runs else ""
    return Cell(with_spread(values, 2), few, "best" if best else "")


def with_spread(values: Sequence[float], digits: int) -> str:
    """The mean, and of several values their standard deviation."""
    figures = spread(values)
    sd = f" ± {number(figures['sd'], digits)}" if len(values) > 1 else ""
    return number(figures["mean"], digits) + sd


def spread_tables(results: Results) -> list[Table]:
    """For entries of several runs: the lowest and the highest value, and how many there are."""
    several = [(place, entry) for place, entry in enumerate(results.entries) if len(entry.verdicts) > 1]
    tables = []
    for title, columns in task_groups(results) if several else []:
        rows = [
            entry_row(results, place, [_spread_cell(column.values(entry)) for column in columns])
            for place, entry in several
        ]
        caption = f"{title}: lowest to highest run, and how many"
        tables.append(Table(caption, _head(results, "Model", columns), tuple(rows)))
    return tables


def _spread_cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(NOTHING)
    figures = spread(values)
    return Cell(f"{number(figures['min'])} to {number(figures['max'])}", f"n = {len(values)}")


def difference_tables(results: Results) -> list[Table]:
    """Other entries by tasks: points from the first entry, their interval, and in words whether it excludes 0."""
    known = {(difference.other, difference.task): difference for difference in results.differences}
    tables = []
    for title, columns in task_groups(results) if known else []:
        columns = [column for column in columns if any(task == column.task for _, task in known)]
        rows = []
        for place, entry in enumerate(results.entries[1:], 1):
            found = [known.get((entry.name, column.task)) for column in columns]
            if any(found):
                cells = [_difference_cell(difference) for difference in found]
                rows.append(entry_row(results, place, cells, _runs(entry)))
        if rows:
            tables.append(Table(title, _head(results, "Model", columns), tuple(rows)))
    return tables


def _difference_cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(NOTHING)
    kind = "higher" if difference.low > 0 else "lower" if difference.high < 0 else ""
    interval = f"{number(difference.low, sign=True)} to {number(difference.high, sign=True)}"
    return Cell(number(difference.points, sign=True), f"{interval}: {kind or 'unclear'}", kind)

"""Build the report's tables of scores, of their spread over runs and of differences, as plain text for the template."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from simcse_jax.evaluation.compare import averages_of, summarize
from simcse_jax.evaluation.results import Difference, Entry, Results, task_name

TITLES = {"sts": "Semantic textual similarity", "transfer": "Transfer"}  # by the name of the average
NOTHING = "\u2013"
WIDE = 6  # columns; on a narrow screen, a table with more of them becomes a list


@dataclasses.dataclass(frozen=True)
class Cell:
    """Hold the content of one cell."""

    text: str
    note: str = ""  # smaller, below
    kind: str = ""  # "best", "failed", "higher", "lower": its colour or weight; the text says the same


@dataclasses.dataclass(frozen=True)
class Row:
    """Hold a row head and its cells."""

    head: str
    cells: tuple[Cell, ...]
    place: int | None = None  # of the entry in the results, for its colour
    note: str = ""
    whole: str = ""  # the head before it was shortened


@dataclasses.dataclass(frozen=True)
class Table:
    """Hold a table; `columns` begins with the column of the row heads."""

    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[Row, ...]
    prose: bool = False  # cells of words rather than of numbers

    @property
    def wide(self) -> bool:
        """Whether a narrow screen has no room for it."""
        return len(self.columns) > (3 if self.prose else WIDE)


@dataclasses.dataclass(frozen=True)
class Column:
    """Describe a column: a task, or the average over several."""

    task: str
    over: tuple[str, ...] = ()

    def values(self, entry: Entry) -> list[float]:
        """Return one value for each run that has it; an average needs all of its tasks."""
        return averages_of(entry, self.over) if self.over else entry.values(self.task)

    def head(self, results: Results) -> Cell:
        """Return the name, and below it the name of the values."""
        if self.over:
            return Cell(f"Average of {len(self.over)}")
        scores = (verdict.scores.get(self.task) for verdict in results.verdicts)
        return Cell(task_name(self.task), ", ".join(dict.fromkeys(score.headline for score in scores if score)))


def format_number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Return the value as text, with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\u2212")


def format_mean(values: Sequence[float], digits: int) -> str:
    """Return the mean as text, and for several values their standard deviation."""
    numbers = summarize(values)
    sd = f" ±\u00a0{format_number(numbers['sd'], digits)}" if len(values) > 1 else ""
    return format_number(numbers["mean"], digits) + sd


def entry_row(results: Results, place: int, cells: Iterable[Cell], note: str = "") -> Row:
    """Return the row of the entry in that place; the table of models has a long name in full."""
    return Row(results.names()[place], tuple(cells), place, note, results.entries[place].name)


def task_groups(results: Results) -> list[tuple[str, list[Column]]]:
    """Return (title, columns) for the tasks of each average, and for the other tasks; those that have a score."""
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
    """Return tables of entries by tasks; a value that is clearly above all others of its column is bold."""
    tables = []
    for title, columns in task_groups(results):
        rows = [
            entry_row(results, place, [_score_cell(results, entry, column) for column in columns], _runs(entry))
            for place, entry in enumerate(results.entries)
        ]
        tables.append(Table(title, _head(results, columns), tuple(rows)))
    return tables


def _head(results: Results, columns: Iterable[Column]) -> tuple[Cell, ...]:
    return (Cell("Model"), *(column.head(results) for column in columns))


def _runs(entry: Entry) -> str:
    return f"{len(entry.verdicts)} runs" if len(entry.verdicts) > 1 else ""


def _score_cell(results: Results, entry: Entry, column: Column) -> Cell:
    values, runs = column.values(entry), len(entry.verdicts)
    if not values:
        return Cell("failed", kind="failed") if not column.over and entry.failed(column.task) else Cell(NOTHING)
    few = f"{len(values)} of {runs} runs" if len(values) < runs else ""
    return Cell(format_mean(values, 2), few, "best" if results.best.get(column.task) == entry.name else "")


def spread_tables(results: Results) -> list[Table]:
    """Return tables of the lowest and the highest value and the number of runs, for entries of several runs."""
    several = [(place, entry) for place, entry in enumerate(results.entries) if len(entry.verdicts) > 1]
    tables = []
    for title, columns in task_groups(results) if several else []:
        rows = [
            entry_row(results, place, [_spread_cell(column.values(entry)) for column in columns])
            for place, entry in several
        ]
        tables.append(Table(f"{title}: lowest to highest run", _head(results, columns), tuple(rows)))
    return tables


def _spread_cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(NOTHING)
    numbers = summarize(values)
    return Cell(f"{format_number(numbers['min'])} to {format_number(numbers['max'])}", f"{len(values)} runs")


def difference_tables(results: Results) -> list[Table]:
    """Return tables of points from the first entry, with their interval and, in words, whether it excludes 0."""
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
            tables.append(Table(title, _head(results, columns), tuple(rows)))
    return tables


def _difference_cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(NOTHING)
    interval = f"{format_number(difference.low, sign=True)} to {format_number(difference.high, sign=True)}"
    kind = "" if difference.direction == "unclear" else difference.direction
    return Cell(format_number(difference.points, sign=True), f"{interval}: {difference.direction}", kind)

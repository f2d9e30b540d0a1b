"""Print a table in full width: no column is squeezed out, and in a file or a pipe no cell is folded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAMES = 24  # characters of a line's name that a narrow terminal does not fold


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    bold: Sequence[bool] = (),
) -> None:
    """Print rows of texts below their columns; the first one, of names, is the one that folds on a narrow terminal.

    bold: which rows are.
    """
    rows = list(rows)
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    cells = [[column, *(row[place] for row in rows)] for place, column in enumerate(columns)]
    longest = [max(len(line) for cell in column for line in cell.split("\n")) for column in cells]
    table.add_column(Text(columns[0]), overflow="fold")
    for column, width in zip(columns[1:], longest[1:], strict=True):
        table.add_column(Text(column), justify="right", no_wrap=True, min_width=width)
    for row, style in itertools.zip_longest(rows, ("bold" if each else "" for each in bold), fillvalue=""):
        table.add_row(*(Text(text, style=style) for text in row))
    usual = console.width
    full = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    folded = full - max(longest[0] - NAMES, 0)
    console.width = max(usual, folded) if console.is_terminal else full
    console.print(table)
    console.width = usual

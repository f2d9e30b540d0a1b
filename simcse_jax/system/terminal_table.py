"""Print a table in full width: no column is squeezed out, and in a file or a pipe no cell is folded."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAMES = 24  # characters of a line's name that a narrow terminal does not fold


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    bold: int | None = None,
) -> None:
    """Print rows of texts below their columns; the first one, of names, is the one that folds on a narrow terminal.

    bold: the place of a row to print so.
    """
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(Text(columns[0]), overflow="fold")
    for column in columns[1:]:
        table.add_column(Text(column), justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        table.add_row(*(Text(text, style="bold" if place == bold else "") for text in row))
    full = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    longest = max(cell_len(line) for name in (columns[0], *(row[0] for row in rows)) for line in name.split("\n"))
    folded = full - max(longest - NAMES, 0)
    table.width = min(full, max(console.width, folded)) if console.is_terminal else full
    console.print(table, crop=False)

"""Stream the texts of one column of files, in any format that training reads."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from simcse_jax.data.rows import ONE_COLUMN, RowCounts, choose_columns, read_rows
from simcse_jax.data.sources import open_tables
from simcse_jax.data.tables import TextTable
from simcse_jax.system.errors import UserError

Item = TypeVar("Item")


@dataclass
class TextColumn:
    """Iterate over one column of some tables, from the start each time; rows with an empty cell are left out.

    left_out: how many such rows the last iteration met.
    """

    tables: Sequence[TextTable]
    columns: Sequence[tuple[str, ...]]  # one name for each table
    named: bool  # by the user
    left_out: int = 0

    def __iter__(self) -> Iterator[str]:
        counts = RowCounts()
        for _, cells in read_rows(self.tables, self.columns, counts, named=self.named):
            yield cells[0]
        self.left_out = counts.empties

    def key(self) -> str:
        """Return a hex digest of the files' content, independent of their names, and of the columns."""
        read = [(table.key(), *names) for table, names in zip(self.tables, self.columns, strict=True)]
        return hashlib.blake2b(json.dumps(read).encode(), digest_size=16).hexdigest()


def open_column(files: Sequence[str], column: str = "") -> TextColumn:
    """Open the texts of these files; only headers are read here.

    column: the name of the column; may be empty where the files have only one. Raises UserError if a file cannot be
    read, or has several columns and none is named.
    """
    tables = open_tables(files)
    columns = choose_columns(tables, [column] if column else (), ONE_COLUMN)
    several = next((names for names in columns if len(names) > 1), None)
    if several:
        raise UserError(
            f"{tables[0].name} has several columns of text ({', '.join(several)}).\n"
            f"Name one: --column={several[0]}; in Python, give a list or a generator of sentences."
        )
    return TextColumn(tables, columns, bool(column))


def in_blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`, the last perhaps shorter; only one list is held at a time."""
    stream = iter(items)
    while block := list(itertools.islice(stream, size)):
        yield block

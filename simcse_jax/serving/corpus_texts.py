"""The texts of a corpus to embed or to search, streamed from files of any format that training reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simcse_jax.data.readers import Table
from simcse_jax.data.sources import RowCounts, choose_columns, open_tables, read_rows
from simcse_jax.system.errors import UserError


@dataclass(frozen=True)
class CorpusTexts:
    """One column of some tables. Iterating reads them from the start; rows with an empty cell are left out."""

    tables: Sequence[Table]
    columns: Sequence[tuple[str, ...]]  # of each table: one

    def __iter__(self) -> Iterator[str]:
        return (cells[0] for _, cells in read_rows(self.tables, self.columns, RowCounts()))

    def key(self) -> str:
        """Hex digest of the content: of the files, whatever they are called, and the columns."""
        read = [(table.key(), *names) for table, names in zip(self.tables, self.columns, strict=True)]
        return hashlib.blake2b(json.dumps(read).encode(), digest_size=16).hexdigest()


def corpus_texts(files: Sequence[str], column: str = "") -> CorpusTexts:
    """The texts of these files; `column`: where they have several. UserError if they cannot be read or told apart."""
    tables = open_tables(files)
    columns = choose_columns(tables, [column] if column else (), "--column")
    several = next((names for names in columns if len(names) > 1), None)
    if several:
        raise UserError(
            f"{tables[0].name} has several columns of text ({', '.join(several)}).\n"
            f"Say which: --column={several[0]}; in Python, give a list or a generator of sentences."
        )
    return CorpusTexts(tables, columns)

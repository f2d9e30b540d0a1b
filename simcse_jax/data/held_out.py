"""Hold out units of the training data for evaluation, and leave their texts, wherever they occur, out of training."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from simcse_jax.data.corpus import Corpus
from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.sources import open_tables
from simcse_jax.data.tokenise import text_hashes
from simcse_jax.system.errors import UserError

Unit = TypeVar("Unit", bound=Sequence[object])
LARGEST_SHARE = 0.5  # of the units that may be held out


def choose_units(units: Sequence[Unit], most: int, size: Callable[[Unit], int] = lambda _: 1) -> list[Unit]:
    """Return units of at least `most` in size together, in their order: those whose first items have the lowest hashes.

    The same units are chosen wherever they stand, and whatever else is there changes few of them.
    """
    keys = [hashlib.blake2b(repr(unit[0]).encode("utf-8", "surrogatepass"), digest_size=8).digest() for unit in units]
    kept, total = [], 0
    for place in sorted(range(len(units)), key=lambda place: (keys[place], place)):
        if total >= most:
            break
        kept.append(place)
        total += size(units[place])
    return [units[place] for place in sorted(kept)]


def read_held_out(files: Sequence[str], columns: Sequence[str], count: int) -> tuple[list[list[tuple[str, ...]]], str]:
    """Return `count` units of the training rows, each as its rows of cells, and what a unit is: "documents" or "rows".

    A unit is a document where all files are .txt and blank lines stand between several of them, else a row. UserError
    for more than half of the units.
    """
    tables = open_tables(files)
    counts = RowCounts()
    rows = list(read_rows(tables, choose_columns(tables, columns), counts, "train", bool(columns)))
    what, units = "rows", [[cells] for _, cells in rows]
    if all(table.is_text_file for table in tables) and counts.documents > len(tables):
        what, by_document = "documents", {}
        for document, cells in rows:
            by_document.setdefault(document, []).append(cells)
        units = list(by_document.values())
    if count > LARGEST_SHARE * len(units):
        raise UserError(
            f"{count:,} {what} cannot be held out of {len(units):,}: at most half may be, {len(units) // 2:,}, and a "
            "tenth is plenty."
        )
    return choose_units(units, count), what


def leave_out(corpus: Corpus, texts: Sequence[str]) -> Corpus:
    """Return the corpus without the rows that hold one of these texts, in any column; UserError if none is left."""
    rows = np.flatnonzero(~np.isin(corpus.hashes, text_hashes(texts)).any(axis=1))
    if not len(rows):
        raise UserError("Every row of the training data holds a text that is held out. Hold out fewer.")
    return _Part(corpus, rows)


class _Part(Corpus):
    """Hold some rows of a corpus; the counts of its report are of the whole, but for the numbers of rows."""

    def __init__(self, whole: Corpus, rows: np.ndarray):
        self._whole, self._rows = whole, rows
        self.columns = whole.columns
        self.lengths, self.hashes = whole.lengths[rows], whole.hashes[rows]
        self.documents = None if whole.documents is None else whole.documents[rows]
        self.scores = None if whole.scores is None else whole.scores[rows]
        digest = hashlib.blake2b(whole.fingerprint.encode(), digest_size=16)
        digest.update(rows.astype(np.int64).tobytes())
        self.fingerprint = digest.hexdigest()
        documents = 0 if self.documents is None else len(np.unique(self.documents))
        self.report = dataclasses.replace(
            whole.report, examples=len(rows), documents=documents, held_out=len(whole) - len(rows)
        )

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        """Return [n][V] int32 arrays, the token ids of those rows."""
        return self._whole.token_ids(self._rows[np.asarray(rows, dtype=np.int64)])

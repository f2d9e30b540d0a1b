"""Training files in and out: the pairs of one, and one with the hard negatives that were found."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simcse_jax.data.sources import RowCounts, choose_columns, open_tables, read_rows
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole

if TYPE_CHECKING:
    from simcse_jax.data.readers import Table
    from simcse_jax.serving.mining import Triplet

COLUMNS = ("sent0", "sent1", "hard_neg")


def read_pairs(files: Sequence[str], columns: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(sentence, positive) of every row without an empty cell; further columns, old hard negatives too, are left out.

    files, columns: as training takes them; see `data.sources`. UserError for files of one column.
    """
    tables, chosen = open_pairs(files, columns)
    return [(sentence, positive) for _, (sentence, positive) in read_rows(tables, chosen, RowCounts())]


def open_pairs(files: Sequence[str], columns: Sequence[str] = ()) -> tuple[list[Table], list[tuple[str, ...]]]:
    """The tables, and the two columns of each that `read_pairs` reads; only headers are read here."""
    tables = open_tables(files)
    # Each by itself: only two columns are read, however many the others have.
    chosen = [choose_columns([table], columns)[0] for table in tables]
    single = next((n for n, names in enumerate(chosen) if len(names) < 2), None)
    if single is not None:
        raise UserError(
            f"{tables[single].name} has one column, {chosen[single][0]}. Hard negatives are found for pairs: give a "
            ".csv, .tsv, .jsonl or .parquet with the columns sent0 (sentence) and sent1 (positive)."
        )
    return tables, [names[:2] for names in chosen]


def require_csv(out: Path) -> None:
    """UserError for a path that `write_negatives` does not take."""
    if out.suffix.lower() != ".csv":
        raise UserError(f"The file of hard negatives is {out}; it has to end in .csv, for example {out.stem}.csv.")
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}.\nMake it, or give another path.")


def write_negatives(out: str | Path, triplets: Iterable[Triplet]) -> int:
    """Write a .csv of sent0, sent1, hard_neg that configs/sup.py trains on, and return how many rows it has.

    It is written beside its place and then renamed into it, replacing what was there. UserError for a path that does
    not end in .csv or cannot be written, and when there is no triplet at all; nothing is replaced then.
    """
    out = Path(out).expanduser()
    require_csv(out)
    count = 0

    def write(partial: Path) -> None:
        nonlocal count
        with open(partial, "w", encoding="utf-8", newline="") as file:
            # All quoted: else a lone carriage return within a sentence would not read back.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(COLUMNS)
            for triplet in triplets:
                writer.writerow((triplet.anchor, triplet.positive, triplet.negative))
                count += 1
        if not count:
            raise UserError(
                "No pair has a hard negative: no sentence of the corpus is in the rank window, and below both the "
                "positive's score less the margin and the ceiling.\nWiden the ranks, lower the margin, raise the "
                "ceiling, or give a larger corpus."
            )

    try:
        write_whole(out, write)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.\nGive another path.") from error
    return count

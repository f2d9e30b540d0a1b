"""Choose the columns of tables that are sentence, positive and hard negatives, and stream their rows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simcse_jax.data.tables import HEAD, TextTable, is_negative, listed
from simcse_jax.system.errors import UserError

# Names of columns that hold no text: id, pair_id, qid1, label, gold_label2, score, is_duplicate, split, genre ...
_NO_TEXT = re.compile(
    r"(.*[_ -])?(idx?s?|index|no|num|number|labels?|class|category|genre|scores?|split|similarity)\d*"
    r"|[a-z]?ids?\d*|gold.*|is_duplicate|lang|language|type",
    re.IGNORECASE,
)
# Names of a sentence and its positive, in lower case, in tables that hold other text too.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("anchor", "positive"),
    ("query", "pos"),
    ("query", "positive"),
    ("question1", "question2"),
    ("question", "answer"),
    ("premise", "hypothesis"),
)
MOST_COLUMNS = 16  # taken without being named
ONE_COLUMN = "--column"  # the flag of commands that read one column
SPLITS = {"train": {"train", "training"}, "dev": {"dev", "val", "valid", "validation"}, "test": {"test"}}


def choose_columns(
    tables: Sequence[TextTable], columns: Sequence[str] = (), flag: str = "--config.data.columns"
) -> list[tuple[str, ...]]:
    """Return the columns to read of each table, the same number everywhere.

    flag: the flag that users name columns with.

    `columns` if given; else the first table's again where a table has them all; else those that `_default_columns`
    finds.
    """
    chosen: list[tuple[str, ...]] = []
    for table in tables:
        if columns:
            _require_columns(table, columns)
            names = tuple(columns)
        elif chosen and set(chosen[0]) <= set(table.columns):
            names = chosen[0]
        else:
            names = _default_columns(table, flag)
        chosen.append(names)
    if len({len(names) for names in chosen}) > 1:
        listing = "".join(
            f"\n  {table.name}: {len(names)} ({listed(names)})"
            for table, names in list(zip(tables, chosen, strict=True))[:8]
        )
        raise UserError(
            f"All files of one run need the same number of columns:{listing}\n"
            f"Choose some that every file has: {flag}=sent0,sent1"
        )
    return chosen


def _default_columns(table: TextTable, flag: str) -> tuple[str, ...]:
    """Return sent0, sent1 and hard_neg* where there is a sent0; else the columns of text, hard negatives last.

    Columns of ids, labels, scores and splits are left out, by their names or what they hold. Of three or more columns
    those of a known pair of names are taken; UserError where there is none.
    """
    if "sent0" in table.columns:
        pair = [name for name in ("sent0", "sent1") if name in table.columns]
        return (*pair, *(name for name in table.columns if name.startswith("hard_neg")))
    names = [name for name in table.columns if not _NO_TEXT.fullmatch(name)]
    if len(names) <= MOST_COLUMNS:
        others = _numbers_and_labels(table, names)
        names = sorted((name for name in names if name not in others), key=is_negative)
    for pair in _PAIRS if sum(not is_negative(name) for name in names) > 2 else ():
        if set(pair) <= (lower := {name.lower(): name for name in names}).keys():
            return (*map(lower.__getitem__, pair), *filter(is_negative, names))
    if not names:
        has = (*table.columns, *table.other_columns)
        raise UserError(f"{table.name} has no column of text (only {listed(has)}).\nOr name one: {flag}=NAME")
    if len(names) > MOST_COLUMNS or sum(not is_negative(name) for name in names) > 2:
        order = f"one: {flag}={names[0]}" if flag == ONE_COLUMN else f"sentence, positive, hard negatives: {flag}=A,B,C"
        raise UserError(
            f"{table.name} has {len(names):,} columns of text ({listed(names)}), and their names do not say which to "
            f"read.\nName {order}"
        )
    return tuple(names)


def _numbers_and_labels(table: TextTable, names: Sequence[str]) -> set[str]:
    """Return the columns of numbers, and of single words of which at most a tenth differ, by the first 100 rows."""
    if table.is_text_file or not names:
        return set()
    found = set()
    for name, cells in zip(names, zip(*itertools.islice(table.rows(names), 100), strict=True), strict=False):
        full = [cell for cell in cells if cell.strip()]
        is_label = len(full) >= 50 and len(set(full)) * 10 <= len(full) and all(len(cell.split()) == 1 for cell in full)
        if full and (is_label or all(map(is_number, full))):
            found.add(name)
    return found


def is_number(cell: str) -> bool:
    """Return whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _require_columns(table: TextTable, columns: Sequence[str]) -> None:
    for name in columns:
        if name in table.other_columns:
            raise UserError(f"{table.name}: the column {name!r} holds no text. Text is in {listed(table.columns)}.")
        if name not in table.columns:
            raise UserError(f"{table.name} has no column {name!r}. It has {listed(table.columns)}.")
    if len(set(columns)) < len(columns):
        raise UserError(f"The list of columns names one twice: {', '.join(columns)}.")


@dataclass
class RowCounts:
    """Count the rows that `read_rows` has dropped and kept so far, and their documents."""

    empties: int = 0
    other_splits: int = 0
    documents: int = 0
    kept: int = 0


def read_rows(
    tables: Sequence[TextTable], chosen: Sequence[tuple[str, ...]], counts: RowCounts, split: str = ""
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (document, cells) of every row; UserError if a column is blank, or holds numbers alone, in all rows.

    Rows whose first or second cell is empty are left out; further cells, hard negatives, may be empty. A document is a
    run of lines of a .txt without a blank line between them. split: "train" or "dev", the rows to read of a table with
    a column `split` of such words; "": all.
    """
    document = -1
    for table, names in zip(tables, chosen, strict=True):
        wanted = _split_of(table, names, split)
        total = 0
        filled, texts = [0] * len(names), [False] * len(names)
        starts_document = True
        for cells in table.rows((*names, *wanted[:1])):
            total += 1
            if cells is None:
                starts_document = True
                counts.empties += 1
                continue
            if wanted:
                *cells, word = cells
                if word.strip().lower() not in SPLITS[split]:
                    counts.other_splits += 1
                    continue
            full = [bool(cell.strip()) for cell in cells]
            for place, is_full in enumerate(full):
                filled[place] += is_full
                texts[place] = texts[place] or (is_full and not is_number(cells[place]))
            if not all(full[:2]):
                counts.empties += 1
                continue
            if starts_document:
                document += 1
                starts_document = False
                counts.documents = document + 1
            counts.kept += 1
            yield document, tuple(cells)
        if total == 0:
            raise UserError(f"{table.name} has no rows" + ("." if table.is_text_file else ", only a header."))
        if wanted and not any(filled):
            raise UserError(
                f"{table.name}: no row is of the split {split!r}; its column {wanted[0]!r} has {listed(wanted[1:])}.\n"
                "Give another file, or rename the column to read all rows."
            )
        for place, name in enumerate(names):
            if texts[place]:
                continue
            if table.is_text_file and not filled[place]:
                raise UserError(f"{table.name} holds nothing but blank lines ({total}).")
            what = "nothing but numbers" if filled[place] else "nothing"
            left = ",".join(other for other in names if other != name)
            advice = f"leave it out (training: --config.data.columns={left}), " if left else ""
            raise UserError(
                f"{table.name}: the column {name!r} holds {what} in all {total} rows.\n"
                f"Fill it with text, {advice}or give another file."
            )


def _split_of(table: TextTable, names: Sequence[str], split: str) -> tuple[str, ...]:
    """Return the column that says which split a row is of, and its words in the first rows; () where there is none."""
    column = next((name for name in table.columns if name.lower() == "split" and name not in names), None)
    if column is None or not split:
        return ()
    words = {cells[0].strip().lower() for cells in itertools.islice(table.rows([column]), HEAD) if cells}
    return (column, *sorted(words)) if words <= set().union(*SPLITS.values()) else ()

"""Choose the columns of tables that are sentence, positive and hard negatives, and stream their rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.tables import HEAD, TextTable, is_negative, is_no_text, is_number, listed
from simcse_jax.system.errors import UserError

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
_LISTS = {*itertools.chain(*_PAIRS), "positives"}  # whose lists are read without being named, beside hard negatives
MOST_COLUMNS, MOST_NEGATIVES = 16, 256  # taken without being named
ONE_COLUMN = "--column"  # the flag of commands that read one column
SPLITS = {"train": {"train", "training"}, "dev": {"dev", "val", "valid", "validation"}, "test": {"test"}}
_NOTHING, _NUMBERS, _TEXT = "nothing", "nothing but numbers", "text"  # what the cells of a column hold


def choose_columns(
    tables: Sequence[TextTable], columns: Sequence[str] = (), flag: str = "--config.data.columns"
) -> list[tuple[str, ...]]:
    """Return the columns to read of each table, the same number everywhere.

    `columns` if given; else the first table's again where a table has them all; else those that `_default_columns`
    finds. flag: the one that users name columns with.
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

    Columns of ids, labels, scores and splits are left out, by their names or what they hold, and lists of what the
    names do not call positives or hard negatives. A known pair of names is taken, in its order, where there are other
    columns of text too.
    UserError where there is none, or a hard negative without sentence and positive.
    """
    known = [name for name in table.columns if name not in table.blank]
    order = f"Name sentence, positive, hard negatives: {flag}=A,B,C"
    if "sent0" in known:
        texts = [name for name in ("sent0", "sent1") if name in known]
        negatives = [name for name in known if name.startswith("hard_neg")]
    else:
        names = [name for name in known if not is_no_text(name) and _is_read(table, name)]
        texts, negatives = _parted(names)
        is_few = len(texts) <= MOST_COLUMNS and len(negatives) <= MOST_NEGATIVES
        if is_few:
            others = _numbers_and_labels(table, names)
            texts, negatives = _parted([name for name in names if name not in others])
        by_name = {name.lower(): name for name in texts}
        pair = next((pair for pair in _PAIRS if set(pair) <= by_name.keys()), None)
        if pair and (len(texts) > 2 or negatives) and len(negatives) <= MOST_NEGATIVES:
            texts = [by_name[name] for name in pair]
        elif len(texts) > 2 or not is_few:
            names = [*texts, *negatives]
            raise UserError(
                f"{table.name} has {len(names):,} columns of text ({listed(names)}), and their names do not say which "
                "to read.\n" + (f"Name one: {flag}={names[0]}" if flag == ONE_COLUMN else order)
            )
    if not texts and not negatives:
        has = (*table.columns, *table.other_columns)
        raise UserError(f"{table.name} has no column of text (only {listed(has)}).\nName one: {flag}=NAME")
    if negatives and len(texts) < 2 and flag != ONE_COLUMN:
        raise UserError(
            f"{table.name} has hard negatives ({listed(negatives)}), and no sentence with a positive beside them (only "
            f"{listed(texts)}).\n{order}"
        )
    return (*texts, *negatives)


def _is_read(table: TextTable, name: str) -> bool:
    """Return whether a column is read without being named: not lists of tags and the like."""
    return name not in table.lists or is_negative(name) or name.lower() in _LISTS


def _parted(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of other columns, and of hard negatives."""
    return [name for name in names if not is_negative(name)], [name for name in names if is_negative(name)]


def _numbers_and_labels(table: TextTable, names: Sequence[str]) -> set[str]:
    """Return the columns of numbers, and of single words of which at most a tenth differ, by the first 100 rows."""
    if table.is_text_file or not names:
        return set()
    found = set()
    head = list(itertools.islice(table.rows(names), 100))
    for place, name in enumerate(names):
        full = [row[place] for row in head if row and row[place].strip()]
        is_label = len(full) >= 50 and len(set(full)) * 10 <= len(full) and all(len(cell.split()) == 1 for cell in full)
        if full and (is_label or all(map(is_number, full))):
            found.add(name)
    return found


def _require_columns(table: TextTable, columns: Sequence[str]) -> None:
    for name in columns:
        if name in table.other_columns:
            raise UserError(
                f"{table.name}: the column {name!r} holds no text. Text is in {listed(table.columns)}.\n"
                'Numbers that are text are written as strings: "7".'
            )
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
    tables: Sequence[TextTable],
    chosen: Sequence[tuple[str, ...]],
    counts: RowCounts,
    split: str = "",
    named: bool = False,
    scores: ScoreColumn | None = None,
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield (document, cells) of every row; UserError if a column is blank, or holds numbers alone, in all rows.

    Rows whose first or second cell is empty are left out; further cells, hard negatives, may be empty, but not in all
    rows of all tables. A document is a run of lines of a .txt without a blank line between them. split: "train" or
    "dev", the rows to read of a table with a column `split` of such words; "": all. named: the user chose the columns,
    which may then hold numbers alone. scores: the column of scores, a float as each row's last cell; None: no scores.
    """
    document = -1
    kinds = [_NOTHING] * len(chosen[0])
    for table, names in zip(tables, chosen, strict=True):
        wanted = _split_of(table, names, split)
        kinds[:2] = [_NOTHING] * len(names[:2])
        numbers = _TEXT if named or table.is_text_file else _NUMBERS
        total, others = 0, counts.other_splits
        starts_document = True
        for cells in table.rows((*names, *wanted[:1]), named, scores):
            total += 1
            if cells is None:
                starts_document = True
                counts.empties += 1
                continue
            score = cells[len(names) + len(wanted[:1]) :]  # of length 1, or 0 without scores
            cells = cells[: len(cells) - len(score)]
            if wanted:
                *cells, word = cells
                if word.strip().lower() not in SPLITS[split]:
                    counts.other_splits += 1
                    continue
            for place, cell in enumerate(cells):
                if kinds[place] != _TEXT and cell.strip():
                    kinds[place] = numbers if is_number(cell) else _TEXT
            if not all(cell.strip() for cell in cells[:2]):
                counts.empties += 1
                continue
            if starts_document:
                document += 1
                starts_document = False
                counts.documents = document + 1
            counts.kept += 1
            yield document, (*cells, *score)
        if total == 0:
            raise UserError(f"{table.name} has no rows" + ("." if table.is_text_file else ", only a header."))
        if total == counts.other_splits - others:
            raise UserError(
                f"{table.name}: no row is of the split {split!r}; its column {wanted[0]!r} has {listed(wanted[1:])}.\n"
                "Give another file, or rename the column to read all rows."
            )
        _require_text(table, names, kinds[:2], f"all {total} rows")
    _require_text(tables[-1], chosen[-1], [*[_TEXT] * 2, *kinds[2:]], "all rows")


def _require_text(table: TextTable, names: Sequence[str], kinds: Sequence[str], where: str) -> None:
    """Require that the columns hold text; kinds: what they hold, of the first few or of all."""
    for name, kind in zip(names, kinds, strict=False):
        if kind == _TEXT:
            continue
        if table.is_text_file:
            raise UserError(f"{table.name} holds nothing but blank lines, in {where}.")
        left = ",".join(other for other in names if other != name)
        advice = f"leave it out (training: --config.data.columns={left}), " if left else ""
        advice += f"name it (--config.data.columns={','.join(names)}), " if kind == _NUMBERS else ""
        raise UserError(
            f"{table.name}: the column {name!r} holds {kind} in {where}.\nFill it with text, {advice}or give another "
            "file."
        )


def _split_of(table: TextTable, names: Sequence[str], split: str) -> tuple[str, ...]:
    """Return the column that says which split a row is of, and its words in the first rows; () where there is none."""
    column = next((name for name in table.columns if name.lower() == "split" and name not in names), None)
    if column is None or not split:
        return ()
    words = {cells[0].strip().lower() for cells in itertools.islice(table.rows([column], True), HEAD) if cells}
    return (column, *sorted(words)) if words <= set().union(*SPLITS.values()) else ()

"""Hold rows of text from any source as a table, and turn records into one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simcse_jax.system.errors import UserError

UNNAMED = "(unnamed)"  # a column without a name
HEAD = 1000  # rows that decide what the columns of records are
# Names of columns of hard negatives: hard_neg, hard_neg2, neg, negative_3, "neg.2", contradiction.
_NEGATIVE = re.compile(r"hard_?neg.*|neg(ative)?s?[ _.-]?\d*|contradiction", re.IGNORECASE)
# Names of columns that hold no text: id, pair_id, pairID, qid1, uuid, label, gold_label2, score, split, genre ...
_NO_TEXT = re.compile(
    r"(.*[_ -])?(idx?s?|index|num|number|labels?|class|category|genre|scores?|split|similarity|urls?)\d*"
    r"|(.*[_ -])?(uu|gu|doc|pair)?ids?\d*|[a-z]ids?\d*|(?-i:.*[a-z]I[Dd]s?)"
    r"|gold(_?(label|score))?\d*|no|is_duplicate|lang|language|type",
    re.IGNORECASE,
)

Record = tuple[int, dict[str, Any]]  # the number of a line or row, from 1, and its values


@dataclass(frozen=True)
class TextTable:
    """Hold one source of rows; `rows(names, named=False, scores=None)` streams the cells of those columns, in order.

    A missing cell is "". A row that is None is a blank line of a .txt. named: the user chose the columns, so that text
    elsewhere may be left out. scores: a `ScoreColumn`, which is the last cell then, a float.
    """

    name: str  # as shown to the user
    columns: tuple[str, ...]  # every column that holds text, or may
    other_columns: tuple[str, ...]  # numbers, unnamed: never taken for text
    rows: Callable[..., Iterator[tuple[Any, ...] | None]]
    key: Callable[[], str]  # changes when the content does
    is_text_file: bool = False
    lists: frozenset[str] = frozenset()  # columns in which a row may hold several texts
    blank: frozenset[str] = frozenset()  # columns without a value in the first rows


def is_negative(column: str) -> bool:
    """Return whether a column's name says that it holds hard negatives."""
    return _NEGATIVE.fullmatch(column) is not None


def is_no_text(column: str) -> bool:
    """Return whether a column's name says that it holds ids, labels, scores or the like."""
    return _NO_TEXT.fullmatch(column) is not None


def is_number(cell: str) -> bool:
    """Return whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def listed(names: Iterable[str]) -> str:
    """Return names for a message, at most twelve of them."""
    names = list(names)
    more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return (", ".join(name[:60] for name in names[:12]) or "none") + more


def record_table(
    name: str,
    records: Callable[[Sequence[str] | None], Iterator[Record]],
    key: Callable[[], str],
    unit: str,
    schema: Mapping[str, bool] | None = None,
) -> TextTable:
    """Return the table of records: each of their keys is a column, and a row that lacks one has an empty cell there.

    A list of hard negatives is as many columns as the longest: neg, neg.2, neg.3. A row with lists of other texts, such
    as several positives, is as many rows. The first `HEAD` records decide what the columns are.

    records: from the keys to read (None: all) to (number, values); unit: what the number counts, for messages; schema:
    the keys that hold text, and whether in lists; None if the source does not say.
    """
    head = list(itertools.islice(records(None), HEAD))
    if not head:
        raise UserError(f"{name} holds no records, only blank lines.")
    widths = dict.fromkeys(schema or (), 1)  # by key: texts of a record, 1, or the longest list; 0 for what is no text
    lists = {column for column, is_list in (schema or {}).items() if is_list}
    values = set()  # keys with a value
    for column, value in itertools.chain.from_iterable(record.items() for _, record in head):
        widths[column] = max(widths.get(column, 0), len(_texts(value) or ()))
        if value not in (None, []):
            values.add(column)
            if isinstance(value, list):
                lists.add(column)
    blank = {column for column in widths if column not in values and schema is None}
    negatives = {column for column in widths if is_negative(column)}
    place_of: dict[str, tuple[str, int]] = {}  # of each column: its key, and its place in a list of hard negatives
    for column, width in widths.items():
        columns_of_key = 1 if column in blank else width if column in negatives else min(width, 1)
        for place in range(columns_of_key):
            title = f"{column}.{place + 1}" if place else column
            if place and title in widths:
                raise UserError(f"{name} has a column {title!r}, and lists of {column!r} have one, too. Rename it.")
            place_of[title] = column, place

    def rows(columns: Sequence[str], named: bool = False, scores: Any = None) -> Iterator[tuple[Any, ...]]:
        places = [place_of[column] for column in columns]
        most = dict(sorted(places))  # by key: the last place that is read
        is_lone = sum(not is_negative(column) and not is_no_text(column) for column in most) < 2
        for number, record in records([*most, *([scores.name] if scores and scores.name not in most else [])]):
            score = (scores.read(record.get(scores.name), name, number, unit),) if scores else ()
            texts = {column: _texts(value) for column, value in record.items()}
            for column, found in texts.items():
                if found is None and column in most:
                    raise UserError(f"{name}, {unit} {number}: {column!r} holds something that is not a string.")
                if found and not named and len(found) > widths.get(column, 0):
                    require_known(number, column, len(found), most, is_lone)
            for cells in itertools.product(*(cells_of(texts, *place) for place in places)):
                if not all(map(str.isascii, cells)):
                    _require_characters(cells, f"{name}, {unit} {number}")
                yield (*cells, *score)

    def cells_of(texts: Mapping[str, list[str] | None], column: str, place: int) -> list[str]:
        """Return the cells of a record: one of a hard negative, one or more of another column."""
        found = texts.get(column) or []
        return (found[place : place + 1] if column in negatives else found) or [""]

    def require_known(number: int, column: str, count: int, most: Mapping[str, int], is_lone: bool) -> None:
        """Require that no hard negative is left out, nor a positive, because the first records lack it."""
        if is_negative(column):
            is_missed = widths.get(column, 0) <= most.get(column, -1) + 1 < count
        else:
            is_missed = column in blank and column not in most and is_lone and not is_no_text(column)
        if is_missed:
            known = f"{widths[column]} texts of {column!r} at most" if widths.get(column) else f"no {column!r}"
            raise UserError(
                f"{name}, {unit} {number} has {count} texts of {column!r}, and the first {len(head):,} {unit}s ({unit} "
                f"{head[0][0]} and on) have {known}.\nPut this {unit} first, so that its columns are known, or name "
                "the columns to read."
            )

    others = tuple(column for column in widths if column not in place_of)
    return TextTable(name, tuple(place_of), others, rows, key, lists=frozenset(lists), blank=frozenset(blank))


def _texts(value: Any) -> list[str] | None:
    """Return the texts of a record's value, a string or a list of strings; None if it is something else."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


def _require_characters(texts: Iterable[str], where: str) -> None:
    """Require that texts have no half of a surrogate pair, which JSON can write but UTF-8 cannot."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: {text[error.start]!r} is half of a surrogate pair, no character. Remove it."
            ) from error

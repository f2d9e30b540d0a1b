"""Hold rows of text from any source as a table, and turn records into one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simcse_jax.system.errors import UserError

HEAD = 1000  # rows that decide what the columns of records are
# Names of columns of hard negatives: hard_neg, hard_neg2, neg, negative_3, "neg.2", contradiction.
_NEGATIVE = re.compile(r"hard_?neg.*|neg(ative)?s?[ _.-]?\d*|contradiction", re.IGNORECASE)

Record = tuple[int, dict[str, Any]]  # the number of a line or row, from 1, and its values


@dataclass(frozen=True)
class TextTable:
    """Hold one source of rows; `rows(names)` streams the cells of those columns, in that order.

    A missing cell is "". A row that is None is a blank line of a .txt.
    """

    name: str  # as shown to the user
    columns: tuple[str, ...]  # every column that holds text
    other_columns: tuple[str, ...]  # numbers, unnamed: never taken for text
    rows: Callable[[Sequence[str]], Iterator[tuple[str, ...] | None]]
    key: Callable[[], str]  # changes when the content does
    is_text_file: bool = False


def is_negative(column: str) -> bool:
    """Return whether a column's name says that it holds hard negatives."""
    return _NEGATIVE.fullmatch(column) is not None


def listed(names: Iterable[str]) -> str:
    """Return names for a message, at most twelve of them."""
    names = list(names)
    more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return (", ".join(name[:60] for name in names[:12]) or "none") + more


def record_table(
    name: str, records: Callable[[Sequence[str] | None], Iterator[Record]], key: Callable[[], str], unit: str
) -> TextTable:
    """Return the table of records: each of their keys is a column, and a row that lacks one has an empty cell there.

    A list of hard negatives is as many columns as the longest: neg, neg.2, neg.3. A row with lists of other texts, such
    as several positives, is as many rows. The first `HEAD` records decide what the columns are.

    records: from the keys to read (None: all) to (number, values); unit: what the number counts, for messages.
    """
    head = list(itertools.islice(records(None), HEAD))
    if not head:
        raise UserError(f"{name} holds no records, only blank lines.")
    widths: dict[str, int] = {}  # by key: texts of a record, 1, or the longest list; 0 for what is no text
    for column, value in itertools.chain.from_iterable(record.items() for _, record in head):
        widths[column] = max(widths.get(column, 0), len(_texts(value) or ()))
    negatives = {key for key in widths if is_negative(key)}
    place_of = {  # of each column: its key, and its place in a list of hard negatives
        f"{key}.{place + 1}" if place else key: (key, place)
        for key, width in widths.items()
        for place in range(width if key in negatives else min(width, 1))
    }

    def rows(columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        places = [place_of[column] for column in columns]
        most = dict(sorted(places))  # by key: the last place that is read
        for number, record in records(list(most)):
            texts = {key: _texts(value) for key, value in record.items()}
            for key, found in texts.items():
                if found is None or len(found) > widths.get(key, 0):
                    require_known(number, key, found, most)
            options = [
                (texts.get(key) or [""])[place : place + 1 if key in negatives else None] or [""]
                for key, place in places
            ]
            for cells in itertools.product(*options):
                if not all(map(str.isascii, cells)):
                    _require_characters(cells, f"{name}, {unit} {number}")
                yield cells

    def require_known(number: int, key: str, texts: list[str] | None, most: dict[str, int]) -> None:
        """Require that a value which is read is text, and that none is left out because the first records lack it."""
        where = f"{name}, {unit} {number}"
        if texts is None and key in most:
            raise UserError(f"{where}: {key!r} holds something that is not a string.")
        is_new = key not in widths or (key in negatives and most.get(key) == widths[key] - 1)
        if texts and len(texts) > widths.get(key, 0) and is_new:
            known = f"{widths[key]} texts of {key!r} at most" if key in widths else f"no {key!r}"
            raise UserError(
                f"{where} has {len(texts)} texts of {key!r}, and the first {len(head):,} {unit}s ({unit} {head[0][0]} "
                f"and on) have {known}.\nPut this {unit} first, so that its columns are known."
            )

    others = tuple(key for key, width in widths.items() if not width)
    return TextTable(name, tuple(place_of), others, rows, key)


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

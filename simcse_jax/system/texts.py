"""Check what is given as texts: the one gate of all methods that take them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from simcse_jax.system.errors import UserError


def one_text(given: Any) -> str | None:
    """Return a single text as a plain string: of a string, an array without axes, or Arrow's scalar; else None."""
    if not isinstance(given, str):
        if getattr(given, "shape", None) == () and hasattr(given, "item"):
            given = given.item()
        given = _plain(given)
    return str(given) if isinstance(given, str) else None


class NoTokensError(UserError):
    """Report a text in which the tokenizer finds no token, and to which it adds none."""


def each_text(texts: Iterable[Any]) -> Iterator[str]:
    """Return an iterator over the texts as plain strings; each is checked when it is reached.

    texts: a list, tuple, generator, Series or array of strings, Arrow's too. Raises TypeError at once for a single
    string, a path, and tables, mappings and sets, whose iteration gives names or has no order; later for a text that is
    not a string. Raises UserError for half a surrogate pair, which no tokenizer takes. Both name the text's place, from
    0.
    """
    kind = type(texts).__name__
    if isinstance(texts, bytes) or one_text(texts) is not None:
        raise TypeError(
            f"Give a list of texts; got a single {kind}. Write [text]. To read a file of texts, give "
            "pathlib.Path(FILE) to encode, build_index or add."
        )
    if isinstance(texts, PurePath):
        raise TypeError(
            "Give a list of texts; got a Path, whose file encode, build_index and add read. Elsewhere, for a file of "
            "lines, give path.read_text().splitlines()."
        )
    names = texts if isinstance(texts, Mapping) else None
    if hasattr(texts, "shape"):  # tables of pandas, Polars, Arrow and datasets
        names = getattr(texts, "column_names", None) or getattr(texts, "columns", None)
    if names is not None:
        columns = [repr(name) for name in itertools.islice(names, 5)]
        found = f"with the columns {', '.join(columns)}" if columns else "without columns"
        example = f"df[{columns[0]}]" if columns else "a list"
        raise TypeError(f"Give one column of texts, for example {example}; got a {kind} {found}.")
    if isinstance(texts, set | frozenset) or not isinstance(texts, Iterable):
        raise TypeError(f"Give a list, tuple, generator, Series or array of texts; got {kind}.")
    return _checked(texts)


def _plain(text: Any) -> Any:
    """Return what Arrow's scalar holds, and anything else as it is."""
    return text.as_py() if hasattr(text, "as_py") else text


def _checked(texts: Iterable[Any]) -> Iterator[str]:
    for n, text in enumerate(map(_plain, texts)):
        if not isinstance(text, str):
            raise TypeError(f"Text {n} is {type(text).__name__} {text!r:.80}, not str.")
        if fault := half_character(text):
            raise UserError(f"Text {n} {fault}: {text!r:.80}\nRemove it, or read the text from its source as UTF-8.")
        yield str(text)  # also of a subclass, as in NumPy's arrays


def half_character(text: str) -> str:
    """Return in words that the text holds half of a surrogate pair, and where; "" if it does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        return f"holds half of a surrogate pair, {half!r} at place {error.start}, which is no character"
    return ""

"""Cut the lines of .csv, .tsv and .txt files into cells, and tell a cell that is a list from one that is text."""

from __future__ import annotations

import ast
import csv
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from simcse_jax.data.lines import LONGEST_LINE, text_lines
from simcse_jax.system.errors import UserError

_LIST = re.compile(r"""\s*[\[(]\s*["'].*["']\s*,?\s*[\])]\s*""", re.DOTALL)


def delimited_records(path: Path, name: str, suffix: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every record, the header first; a blank line has no cells."""
    if suffix != ".csv":
        for number, line in enumerate(text_lines(path, name), 1):
            text = line.rstrip("\r\n")
            yield number, [_unquoted(cell) for cell in text.split("\t")] if text.strip() else []
        return
    csv.field_size_limit(LONGEST_LINE)  # its own limit, 131072 characters a cell, is below what articles have
    reader = csv.reader(text_lines(path, name), strict=True, delimiter=_separator(path, name))
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{name}, line {start}: not valid CSV ({error}).\n"
                'A quoted cell must end with a quote, and a quote inside one is doubled: "He said ""yes""".'
            ) from error
        if cells is None:
            return
        yield start, cells


def _separator(path: Path, name: str) -> str:
    """Return what separates the cells of a .csv: a comma, or ";" as its first lines say.

    That is so if the first has ";" and no comma, or if all have as many ";" and not as many commas.
    """
    lines = itertools.islice((line for line in text_lines(path, name) if line.strip()), 100)
    counts = [[len(next(csv.reader([line], delimiter=separator))) for separator in ",;"] for line in lines]
    if not counts or counts[0][1] == 1:
        return ","
    commas, semicolons = (len({count[n] for count in counts}) for n in (0, 1))
    return ";" if counts[0][0] == 1 or (commas > 1 and semicolons == 1) else ","


def is_list(cell: str) -> bool:
    """Return whether a cell is a list of strings as Python, NumPy or JSON write it: `["a", "b"]`, `('a', 'b')`."""
    if _LIST.fullmatch(cell) is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in what is text
            found = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return isinstance(found, list | tuple) and all(isinstance(text, str) for text in found)


def _unquoted(cell: str) -> str:
    """Return a cell of a .tsv: quotes are text, unless they enclose it and all inner ones are doubled."""
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"':
        return cell
    inner = cell[1:-1]
    return inner.replace('""', '"') if '"' not in inner.replace('""', "") else cell

"""Turn what Python code passes to `fit` into what a recipe can say: values, import paths, and files of data."""

from __future__ import annotations

import csv
import hashlib
import io
import numbers
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError, short
from simcse_jax.system.import_path import path_of
from simcse_jax.system.whole_file import write_whole

TEXTS = ("sent0", "sent1", "hard_neg")  # the columns of rows without names: sentence, positive, hard negatives
PAIRS = ("score", "sentence1", "sentence2")  # the same of graded pairs
_TABLES = "a dict of columns, a DataFrame, an Arrow table or a datasets.Dataset"
_TAKES = {
    "data": f"a list of texts, of tuples or of dicts, {_TABLES}; files are named in the recipe: "
    '{"data.files": "pairs.csv"}',
    "dev": f"a list of tuples (score, sentence, sentence) or of dicts, {_TABLES}, or a function; a file is named in "
    'the recipe: {"eval.data": "pairs.tsv"}',
}


_FLAG = r"--config\.\w+\.[\w.]+=[^\s()]*[^\s().,;:]"
_FLAGS = re.compile(f"{_FLAG}(?: {_FLAG})*")


def as_override(key: str, value: Any) -> str:
    """Return a value of a recipe's key as the command line gives it; a function becomes its import path."""
    if isinstance(value, str | Path | numbers.Real | np.bool_):
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(part, str | Path | numbers.Real) for part in value):
        return _listed(key, [str(part) for part in value])
    if callable(value):
        return f"function:{path_of(value)}" if key == "eval.data" else path_of(value)
    raise UserError(
        f"{key} = {value!r:.80}: a key takes a text, a number, True or False, a list of them, or a function.\n"
        "Data that are no file are passed as data= or, graded pairs, as dev=."
    )


def _listed(key: str, parts: list[str]) -> str:
    """Return the parts with commas between; prompts, which may have commas in them, in double quotes where need be."""
    if key.rpartition(".")[2] == "prompts":
        file = io.StringIO()
        csv.writer(file, lineterminator="").writerow(parts)
        return file.getvalue()
    if any("," in part for part in parts):
        raise UserError(f"{key} = {parts!r:.80}: no part of a list may have a comma in it.")
    return ",".join(parts)


def save_data(data: Any, names: tuple[str, ...], what: str, cache_dir: str) -> Path:
    """Write the rows into the cache as Parquet, in a file that its content names; return its absolute path.

    names: of the columns of rows that are tuples, the last one numbered where there are more. what: the argument that
    holds the data. The same data are the same file, so that a run can resume, also by the command.
    """
    try:
        table = _table(data, names, what)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else short(error)
        raise UserError(f"{what}= holds rows that are not of one kind: {reason}.\nIt takes {_TAKES[what]}.") from error
    if not len(table):
        raise UserError(f"{what} holds no rows. It takes {_TAKES[what]}.")
    file = io.BytesIO()
    pq.write_table(_plain(table), file)
    path = cache_folder("given", cache_dir or None) / f"{hashlib.blake2b(file.getbuffer(), digest_size=12).hexdigest()}"
    path = path.with_suffix(".parquet").absolute()
    if not path.exists():
        write_whole(path, lambda draft: draft.write_bytes(file.getbuffer()))
    return path


def in_python(message: str, files: Mapping[str, str]) -> str:
    """Return a message of the command as `fit` says it, with arguments in place of files, and overrides of flags.

    files: the path of each argument's file.
    """
    for argument, path in files.items():
        if path not in message:
            continue
        message = message.replace(f"{path}, line 0:", f"{argument}=:").replace(f"{path}, line", f"{argument}=, row")
        message = message.replace(path, f"{argument}=")
        ways_of_files = re.compile(rf"This is about --config\.|.*{argument}=:\w+=COLUMN")
        lines = [line for line in message.split("\n") if not ways_of_files.match(line)]
        message = "\n".join([*lines, f"{argument}= takes {_TAKES[argument]}."])
    message = _FLAGS.sub(lambda found: f"{{{', '.join(map(_override, found[0].split()))}}}", message)
    return re.sub(r"--config\.(\w+\.\w)", r"\1", message)


def _override(flag: str) -> str:
    """Return "a.b": "c" for --config.a.b=c."""
    key, _, value = flag.removeprefix("--config.").partition("=")
    return f'"{key}": "{value}"'


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with texts of one type, in one piece: what it was made from must not change its file."""
    is_text = (pa.types.is_large_string, pa.types.is_string_view, pa.types.is_dictionary)
    fields = [pa.field(f.name, pa.string() if any(of(f.type) for of in is_text) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields)).combine_chunks()


def _table(data: Any, names: tuple[str, ...], what: str) -> pa.Table:
    pandas: Any = sys.modules.get("pandas")  # who has a DataFrame has imported it
    if isinstance(data, str | Path | bytes):
        raise UserError(f"{what} = {str(data)!r:.80} is no data. It takes {_TAKES[what]}.")
    if pandas and isinstance(data, pandas.Series):
        data = data.tolist()
    if pandas and isinstance(data, pandas.DataFrame):
        return pa.Table.from_pandas(data, preserve_index=False)
    if hasattr(data, "with_format") and hasattr(data, "features"):  # datasets.Dataset
        return data.with_format("arrow")[:]
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    if isinstance(data, Mapping):
        if hasattr(data, "with_format"):
            raise UserError(f"{what} has splits {', '.join(data)}. Choose one, {what}=dataset[{next(iter(data))!r}]")
        return pa.table({str(name): _column(str(name), list(values)) for name, values in data.items()})
    if not isinstance(data, Iterable):
        raise UserError(f"{what} is of type {type(data).__name__}. It takes {_TAKES[what]}.")
    rows = list(data)
    if all(isinstance(row, Mapping) for row in rows):
        columns = dict.fromkeys(name for row in rows for name in row)  # the first row may lack some
        return pa.table({str(name): _column(str(name), [row.get(name) for row in rows]) for name in columns})
    if all(isinstance(row, str) for row in rows):
        if rows and len(rows) < 100 and all(len(row) < 256 and Path(row).is_file() for row in rows):
            raise UserError(f"{what} holds names of files, and no rows. It takes {_TAKES[what]}.")
        return pa.table({"text": pa.array(rows, pa.string())})
    kinds = [_kind(row) for row in rows]
    odd = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), 0)
    if odd:
        raise ValueError(f"row {odd + 1} is {kinds[odd]}, and row 1 is {kinds[0]}")
    if not kinds[0].startswith("a tuple"):
        raise ValueError(f"row 1 is {kinds[0]}")
    columns = [list(cells) for cells in zip(*rows, strict=True)]
    titles = _titles(columns, names)
    return pa.table({title: _column(n, cells) for n, (title, cells) in enumerate(zip(titles, columns, strict=True))})


def _kind(row: Any) -> str:
    """Return what a row is, as messages say it."""
    if isinstance(row, str | Mapping):
        return "a text" if isinstance(row, str) else "a dict"
    is_tuple = hasattr(row, "__len__") and not isinstance(row, bytes)
    return f"a tuple of {len(row)}" if is_tuple else f"{row!r:.40}"


def _titles(columns: Sequence[Sequence[Any]], names: tuple[str, ...]) -> list[str]:
    """Return the names of the columns of rows without names: TEXTS or PAIRS, in their order.

    Of TEXTS, a column of numbers is no text but a score.
    """
    scores = [names == TEXTS and _is_of_numbers(cells) for cells in columns]
    return [
        _numbered(PAIRS[:1], sum(scores[:place])) if is_score else _numbered(names, place - sum(scores[:place]))
        for place, is_score in enumerate(scores)
    ]


def _is_of_numbers(cells: Sequence[Any]) -> bool:
    """Return whether the cells are numbers, of which some may be missing."""
    kinds = {type(cell) for cell in cells if cell is not None}
    return bool(kinds) and all(issubclass(kind, numbers.Real) and kind is not bool for kind in kinds)


def _numbered(names: Sequence[str], place: int) -> str:
    """Return the name at a place, from 0; beyond the last name, that name with a number, from 2."""
    return names[place] if place < len(names) else f"{names[-1]}{place - len(names) + 2}"


def _column(name: str | int, cells: list[Any]) -> pa.Array:
    """Return the cells as an Arrow array; ValueError, with the row, where one does not go with the first.

    name: the column's name, or of tuples its place, from 0.
    """
    try:
        return pa.array(cells)
    except (pa.ArrowException, TypeError) as error:
        first = next((cell for cell in cells if cell is not None), None)
        for row, cell in enumerate(cells, 1):
            try:
                pa.array([first, cell])
            except (pa.ArrowException, TypeError):
                kinds = type(cell).__name__, type(first).__name__
                where = f"the column {name!r}" if isinstance(name, str) else f"cell {name + 1}"
                raise ValueError(
                    f"row {row} has {cell!r:.40}, of type {kinds[0]}, as {where}, which in row 1 is of type {kinds[1]}"
                ) from error
        raise

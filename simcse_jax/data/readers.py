"""Stream rows of text from one file: .txt, .csv, .tsv, .jsonl (also .gz, .xz) and .parquet.

Nothing here guesses about content: `None`, `NA` and `null` are text, .csv and .tsv need a header, and what cannot
be read is a UserError with file and line.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_jax.data.delimited import delimited_records, is_list
from simcse_jax.data.lines import COMPRESSIONS, text_lines
from simcse_jax.data.tables import HEAD, UNNAMED, Record, TextTable, listed, record_table
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
_HEADER_WORDS = 6  # a longer "column name" is a sentence: the file has no header


def format_of(path: str | Path) -> str | None:
    """Return the format's suffix (".csv" for data.csv.gz), None if the name has no known one."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            name = name[: -len(compression)]
            return next((suffix for suffix in FORMATS[:-1] if name.endswith(suffix)), None)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def open_table(path: Path, name: str | None = None) -> TextTable:
    """Return the table in one local file; only its header, or its first rows, are read here."""
    name = name or str(path)
    suffix = _known_format(path, name)
    if suffix == ".txt":
        return TextTable(name, ("text",), (), lambda *_: _text_rows(path, name), _file_key(path), is_text_file=True)
    if suffix == ".parquet":
        with open_parquet(path, name) as file:
            schema = text_columns(file.schema_arrow)
        return record_table(name, lambda columns: _parquet_records(path, name, columns), _file_key(path), "row", schema)
    if suffix == ".jsonl":
        return record_table(name, lambda _: _json_records(path, name), _file_key(path), "line")
    return _csv_table(path, name, suffix)


def read_records(path: Path, name: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield (line number, cells) of each row of a file that is not blank, its header like any other row.

    Cells are text; of .jsonl and .parquet, the names of the columns come first, as line 0, and then values as they are,
    None where a row lacks one. Lines of a .txt are cut at tabs.
    """
    suffix = _known_format(path, name)
    if suffix in (".jsonl", ".parquet"):
        records = _json_records(path, name) if suffix == ".jsonl" else _parquet_records(path, name)
        head = list(itertools.islice(records, HEAD))
        names = list(dict.fromkeys(key for _, record in head for key in record))
        yield 0, names
        for number, record in itertools.chain(head, records):
            yield number, [record.get(key) for key in names]
        return
    for number, cells in delimited_records(path, name, suffix):
        if any(cell.strip() for cell in cells):
            yield number, cells


def _known_format(path: Path, name: str) -> str:
    """Return the format of a file that is not empty; UserError otherwise."""
    suffix = format_of(path)
    if suffix is None:
        raise UserError(
            f"{name}: unknown file type {path.suffix!r}. Known: {', '.join(FORMATS)}; "
            f"all but .parquet also as {' or '.join(COMPRESSIONS)}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{name} is empty (0 bytes).\nWrite its rows, or leave it out.")
    return suffix


def _file_key(path: Path) -> Callable[[], str]:
    """Return a function that hashes the file: its format and its bytes, not its name or its date."""

    def key() -> str:
        with open(path, "rb") as file:
            return f"{format_of(path)}:{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"

    return key


def _text_rows(path: Path, name: str) -> Iterator[tuple[str, ...] | None]:
    for line in text_lines(path, name):
        text = line.rstrip("\r\n")
        yield (text,) if text.strip() else None


def _csv_table(path: Path, name: str, suffix: str) -> TextTable:
    header = next((cells for _, cells in delimited_records(path, name, suffix) if cells), None)
    if header is None:
        raise UserError(f"{name} has no header line: it holds nothing but blank lines.")
    header = [cell.strip() for cell in header]
    _check_header(header, path, name, suffix)
    place_of = {column: place for place, column in enumerate(header)}

    def rows(columns: Sequence[str], named: bool = False, scores: Any = None) -> Iterator[tuple[Any, ...]]:
        places = [place_of[column] for column in columns]
        blank = ("",) * len(columns)
        records = itertools.dropwhile(lambda record: not record[1], delimited_records(path, name, suffix))
        next(records)  # the header
        for number, cells in records:
            if len(cells) == len(header):
                chosen = tuple(cells[place] for place in places)
                for column, cell in zip(columns, chosen, strict=True):
                    if cell.startswith(("[", "(")) and is_list(cell):
                        raise UserError(_no_lists(path, f"{name}, line {number}", column, cell))
                yield (*chosen, scores.read(cells[place_of[scores.name]], name, number)) if scores else chosen
            elif not any(cell.strip() for cell in cells):
                yield (*blank, math.nan) if scores else blank
            else:
                hint = (
                    "Quote cells that contain the separator." if suffix == ".csv" else "A cell must not contain a tab."
                )
                raise UserError(
                    f"{name}, line {number}: {len(cells)} cells, but the header has {len(header)} ({listed(header)}). "
                    f"{hint}\n  {str(cells[:100])[:200]}"
                )

    return TextTable(name, tuple(cell for cell in header if cell), (UNNAMED,) * ("" in header), rows, _file_key(path))


def _no_lists(path: Path, where: str, column: str, cell: str) -> str:
    """Return why a cell that is a list is refused, and how to write the file such that it is read as one."""
    stem = path.name.split(".")[0]
    return (
        f"{where}: the column {column!r} holds a list, {cell[:60]!r}, and a cell here is one text.\nWrite the file as "
        f".jsonl or .parquet, where lists are several texts; in pandas: df[{column!r}] = df[{column!r}].map("
        f"ast.literal_eval); df.to_json('{stem}.jsonl', orient='records', lines=True)"
    )


def _check_header(header: list[str], path: Path, name: str, suffix: str) -> None:
    """Require that the first line is a list of column names."""
    suggested = ["sent0", "sent1", "hard_neg", *(f"hard_neg{n}" for n in range(2, 10))]
    names = ",".join(suggested[: len(header)])
    if len(header) == 1 and suffix == ".csv" and "\t" in header[0]:
        raise UserError(
            f"{name}, line 1: the header {header[0][:80]!r} has tabs for commas: rename it to {path.stem}.tsv."
        )
    sentence = next((cell for cell in header if len(cell.split()) > _HEADER_WORDS or len(cell) > 60), None)
    if sentence is not None:
        line = names if suffix == ".csv" else names.replace(",", "\\t")
        raise UserError(
            f"{name}, line 1: {sentence[:60]!r} looks like text, not like a column name.\n"
            f"{suffix} files need a header. Put one on top: sed -i '1i {line}' {path}"
        )
    seen: set[str] = set()
    for cell in header:
        if cell and cell in seen:
            raise UserError(f"{name}, line 1: the column {cell!r} occurs {header.count(cell)} times. Rename one.")
        seen.add(cell)


def _json_records(path: Path, name: str) -> Iterator[Record]:
    for number, line in enumerate(text_lines(path, name), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number}: not JSON ({error}).\n  {line.strip()[:200]}") from error
        if not isinstance(record, dict):
            raise UserError(
                f'{name}, line {number}: a JSON object a line is wanted, like {{"sent0": "...", "sent1": "..."}}, '
                f"not {type(record).__name__}."
            )
        yield number, record


def _parquet_records(path: Path, name: str, columns: Sequence[str] | None = None) -> Iterator[Record]:
    with open_parquet(path, name) as file:
        batches = file.iter_batches(columns=None if columns is None else list(columns), batch_size=HEAD)
        yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)


@contextlib.contextmanager
def open_parquet(path: Path, name: str) -> Iterator[ParquetFile]:
    """Open a parquet file; UserError where it cannot be read, also within the block."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} is not a readable parquet file, or damaged: {reason}\nFetch it again.") from error


def text_columns(schema: pa.Schema) -> dict[str, bool]:
    """Return the columns of strings, or of lists of strings, and whether they hold lists."""
    import pyarrow.types as types

    found = {}
    for field in schema:
        is_list = types.is_list(field.type) or types.is_large_list(field.type)
        kind: Any = field.type.value_type if is_list else field.type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_string(kind) or types.is_large_string(kind):
            found[field.name] = is_list
    return found

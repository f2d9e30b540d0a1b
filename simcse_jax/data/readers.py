"""Stream rows of text from one file: .txt, .csv, .tsv, .jsonl (also .gz, .xz) and .parquet.

Nothing here guesses about content: `None`, `NA` and `null` are text, .csv and .tsv need a header, and what cannot
be read is a UserError with file and line.
"""

import csv
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from simcse_jax.system.errors import UserError

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz")
_CELL_LIMIT = 2**31 - 1  # csv's own limit, 131072 characters a cell, is below what articles have
_HEADER_WORDS = 6  # a longer "column name" is a sentence: the file has no header


@dataclass(frozen=True)
class TextTable:
    """Hold one source of rows; `rows(names)` streams the cells of those columns, in that order.

    A missing cell is "". A row that is None is a blank line of a .txt.
    """

    name: str  # as shown to the user
    columns: tuple[str, ...]  # every column that holds text
    other_columns: tuple[str, ...]  # numbers, lists, unnamed: never taken for text
    rows: Callable[[Sequence[str]], Iterator[tuple[str, ...] | None]]
    key: Callable[[], str]  # changes when the content does
    is_text_file: bool = False


def format_of(path: str | Path) -> str | None:
    """Return the format's suffix (".csv" for data.csv.gz), None if the name has no known one."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            name = name[: -len(compression)]
            return next((suffix for suffix in FORMATS[:-1] if name.endswith(suffix)), None)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def open_table(path: Path, name: str | None = None) -> TextTable:
    """Return the table in one local file; only its header is read here."""
    name = name or str(path)
    suffix = format_of(path)
    if suffix is None:
        raise UserError(
            f"{name}: unknown file type {path.suffix!r}. Known: {', '.join(FORMATS)}; "
            f"all but .parquet also as {' or '.join(COMPRESSIONS)}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{name} is empty (0 bytes).")
    if suffix == ".txt":
        return TextTable(name, ("text",), (), lambda _: _text_rows(path, name), _file_key(path), is_text_file=True)
    if suffix == ".parquet":
        return _parquet_table(path, name)
    if suffix == ".jsonl":
        return _json_table(path, name)
    return _csv_table(path, name, suffix)


def _file_key(path: Path) -> Callable[[], str]:
    """Return a function that hashes the file: its format and its bytes, not its name or its date."""

    def key() -> str:
        with open(path, "rb") as file:
            return f"{format_of(path)}:{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"

    return key


def text_lines(path: Path, name: str) -> Iterator[str]:
    """Yield the lines of a text file, which may be compressed; see `decode_lines`."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    number = 0
    try:
        with opener(path, "rb") as file:
            for line in decode_lines(file, name, path):
                number += 1
                yield line
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{name}, after line {number}: the compressed file is damaged or cut short ({error}). Fetch it again."
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error


def decode_lines(file: Iterable[bytes], name: str, path: Path) -> Iterator[str]:
    """Decode lines of UTF-8, with their ends and without a byte order mark; UserError with the line of another byte.

    file: lines cut at newlines only, since U+2028 and U+0085 are text. path: the file that the message's advice names.
    """
    for number, line in enumerate(file, 1):
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{name} is UTF-16, not UTF-8. {_iconv(path, 'utf-16')}")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at place {error.start + 1} "
                f"of the line).\n{_iconv(path, 'latin1')}"
            ) from error


def csv_records(lines: Iterable[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each record of a .csv; UserError with the line of a wrong quote."""
    csv.field_size_limit(_CELL_LIMIT)
    reader = csv.reader(lines, strict=True)
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


def _iconv(path: Path, encoding: str) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    fixed = f"{plain.stem}.utf8{plain.suffix}"
    unpack = {".gz": "zcat", ".xz": "xzcat"}.get(path.suffix.lower(), "cat")
    return f"Convert it (if it is {encoding}): {unpack} {path} | iconv -f {encoding} -t utf-8 > {fixed}"


def _text_rows(path: Path, name: str) -> Iterator[tuple[str, ...] | None]:
    for line in text_lines(path, name):
        text = line.rstrip("\r\n")
        yield (text,) if text.strip() else None


def _csv_table(path: Path, name: str, suffix: str) -> TextTable:
    def records() -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, cells) of every record, the header first."""
        if suffix == ".tsv":
            for number, line in enumerate(text_lines(path, name), 1):
                text = line.rstrip("\r\n")
                yield number, [_unquoted(cell) for cell in text.split("\t")] if text.strip() else []
            return
        yield from csv_records(text_lines(path, name), name)

    header = next((cells for _, cells in records() if cells), None)
    if header is None:
        raise UserError(f"{name} has no header line: it holds nothing but blank lines.")
    header = [cell.strip() for cell in header]
    _check_header(header, path, name, suffix)

    def rows(columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        places = [header.index(column) for column in columns]
        blank = ("",) * len(columns)
        stream = records()
        for _, cells in stream:
            if cells:
                break  # the header
        for number, cells in stream:
            if len(cells) != len(header):
                if not any(cell.strip() for cell in cells):
                    yield blank
                    continue
                hint = "Quote cells that contain commas." if suffix == ".csv" else "A cell must not contain a tab."
                raise UserError(
                    f"{name}, line {number}: {len(cells)} cells, but the header has {len(header)} "
                    f"({', '.join(header)}). {hint}\n  {str(cells)[:200]}"
                )
            yield tuple(cells[place] for place in places)

    return TextTable(
        name, tuple(cell for cell in header if cell), ("(unnamed)",) * ("" in header), rows, _file_key(path)
    )


def _unquoted(cell: str) -> str:
    """Return a cell of a .tsv: quotes are text, unless they enclose it and all inner ones are doubled."""
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"':
        return cell
    inner = cell[1:-1]
    return inner.replace('""', '"') if '"' not in inner.replace('""', "") else cell


def _check_header(header: list[str], path: Path, name: str, suffix: str) -> None:
    """Require that the first line is a list of column names."""
    suggested = ["sent0", "sent1", "hard_neg", *(f"hard_neg{n}" for n in range(2, len(header)))]
    names = ",".join(suggested[: len(header)])
    if len(header) == 1 and suffix == ".csv":
        for separator, advice in (("\t", f"rename it to {path.stem}.tsv"), (";", "save it with commas")):
            if separator in header[0]:
                raise UserError(
                    f"{name}, line 1: the header {header[0][:80]!r} has {separator!r} for commas: {advice}."
                )
    sentence = next((cell for cell in header if len(cell.split()) > _HEADER_WORDS or len(cell) > 60), None)
    if sentence is not None:
        line = names if suffix == ".csv" else names.replace(",", "\\t")
        raise UserError(
            f"{name}, line 1: {sentence[:60]!r} looks like text, not like a column name.\n"
            f"{suffix} files need a header. Put one on top: sed -i '1i {line}' {path}"
        )
    repeated = next((cell for cell in header if cell and header.count(cell) > 1), None)
    if repeated is not None:
        raise UserError(f"{name}, line 1: the column {repeated!r} occurs {header.count(repeated)} times. Rename one.")


def _json_table(path: Path, name: str) -> TextTable:
    def records() -> Iterator[tuple[int, dict[str, object]]]:
        for number, line in enumerate(text_lines(path, name), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{name}, line {number}: not JSON ({error}).\n  {line.strip()[:200]}") from error
            if not isinstance(record, dict):
                raise UserError(
                    f'{name}, line {number}: a JSON object a line is wanted, like {{"sent0": "...", "sent1": "..."}}, '
                    f"not {type(record).__name__}."
                )
            yield number, record

    first = next(records(), None)
    if first is None:
        raise UserError(f"{name} holds no JSON objects, only blank lines.")
    texts = tuple(key for key, value in first[1].items() if value is None or isinstance(value, str))

    def rows(columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        for number, record in records():
            cells = []
            for column in columns:
                if column not in record:
                    raise UserError(f"{name}, line {number}: no key {column!r}; it has {', '.join(record)[:200]}.")
                value = record[column]
                if value is not None and not isinstance(value, str):
                    raise UserError(f"{name}, line {number}: {column!r} is {str(value)[:60]!r}, which is not a string.")
                cells.append(_checked(value or "", name, number))
            yield tuple(cells)

    return TextTable(name, texts, tuple(key for key in first[1] if key not in texts), rows, _file_key(path))


def _checked(text: str, name: str, number: int) -> str:
    """Return the text; UserError if it has half of a surrogate pair, which JSON can write but UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}, line {number}: {text[error.start]!r} is half of a surrogate pair, no character. Remove it."
        ) from error
    return text


def _parquet_table(path: Path, name: str) -> TextTable:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def is_text(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)

    try:
        schema = parquet.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a readable parquet file: {str(error).splitlines()[0]}") from error
    texts = tuple(field.name for field in schema if is_text(field.type))

    def rows(columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=list(columns)):
                    cells = [batch.column(column).to_pylist() for column in columns]
                    for row in zip(*cells, strict=True):
                        yield tuple(cell or "" for cell in row)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{name} is damaged: {str(error).splitlines()[0]}. Fetch it again.") from error

    others = tuple(field.name for field in schema if field.name not in texts)
    return TextTable(name, texts, others, rows, _file_key(path))

"""Texts to a Parquet file of texts and vectors, of any length: streamed, and resumed where it was stopped.

The columns are `text` and `vector`, an Arrow fixed-size list, which pandas, Polars, DuckDB and vector databases read.
Until the file is whole, its parts lie beside it in OUT.parts, each written under another name and then renamed.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.serving.blocks import blocks
from simcse_jax.serving.fingerprint import difference
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

STORAGES = ("float32", "float16")  # an index also has int8, whose scales other readers would not know of
PART = 16384  # texts of a part, and of a row group of the file
_WHAT = "what.json"
_LOCK = ".lock"
_KEY = b"simcse_jax"  # of the file's metadata: which model made the vectors, from which texts

Encode = Callable[[list[str]], np.ndarray]


def write_vectors(
    out: Path,
    texts: Iterable[str],
    encode: Encode,
    width: int,
    about: dict[str, Any],
    storage: str = "float32",
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write the texts and their vectors, and return how many there are; goes on where an earlier call was stopped.

    encode: list[str] -> float32[n, D]. about: what decides the content (model, texts, ...), as JSON; it goes into the
    file's metadata. progress: called with the number of texts that are done. A file that is already there with the
    same `about` is complete, and nothing is done; any other is a UserError, as are parts of something else.
    """
    if storage not in STORAGES:
        raise UserError(f"--storage={storage} is unknown. Known: {', '.join(STORAGES)}.")
    about = {**about, "storage": storage}
    with _alone(out):
        return _write_vectors(out, texts, encode, width, about, storage, progress)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One command at a time writes a file: two would take away each other's parts."""
    from filelock import FileLock, Timeout

    folder = _parts_of(out)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"Another command writes {out} just now. Wait for it, or give another --out.") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.\nGive another --out.") from error
    try:
        yield
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # it holds parts
            folder.rmdir()


def _write_vectors(
    out: Path,
    texts: Iterable[str],
    encode: Encode,
    width: int,
    about: dict[str, Any],
    storage: str,
    progress: Callable[[int], None],
) -> int:
    done = complete(out, about)
    parts = _parts(out, about)
    if done is not None:
        shutil.rmtree(parts)  # left where the last command was stopped at its end
        return done
    finished = _finished(parts)
    count = sum(finished)
    progress(count)
    rest = itertools.islice(iter(texts), count, None)
    for number, part in enumerate(blocks(rest, PART), len(finished)):
        _write_part(parts / _name(number), part, encode(part), width, storage)
        count += len(part)
        progress(count)
    if not count:
        shutil.rmtree(parts)
        raise UserError("There is no text to embed.")
    _join(out, parts, about)
    shutil.rmtree(parts)
    return count


def complete(out: Path, about: dict[str, Any]) -> int | None:
    """How many texts the finished file holds; None if there is none yet. UserError if it holds something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not out.exists():
        return None
    try:
        file = pq.ParquetFile(out)
        found = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"null"))
        rows = file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError):
        found, rows = None, 0
    if not _same(found, about):
        raise UserError(
            f"{out} is there already, and holds {_difference(found, about)}.\nGive another --out, or remove it."
        )
    return rows


def _parts_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _parts(out: Path, about: dict[str, Any]) -> Path:
    """The folder of the parts, which belongs to this content."""
    folder = _parts_of(out)
    what = folder / _WHAT
    if what.is_file():
        found = json.loads(what.read_text(encoding="utf-8"))
        if not _same(found, about):
            raise UserError(
                f"{folder} is left from a command that was stopped, and holds {_difference(found, about)}.\n"
                "Give another --out, or remove that folder."
            )
        return folder
    # A kill may have left what was being written.
    if any(path.name != _LOCK and not path.name.endswith(".partial") for path in folder.iterdir()):
        raise UserError(f"{folder} is no folder of ours, and not empty.\nGive another --out.")
    _write(what, lambda path: path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"))
    return folder


def _finished(parts: Path) -> list[int]:
    """Rows of the parts that are there, from the first on; one that a crash of the machine has torn ends them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts = []
    while (path := parts / _name(len(counts))).is_file():
        try:
            counts.append(pq.read_metadata(path).num_rows)
        except pa.ArrowException:
            break
    return counts


def _write_part(path: Path, texts: list[str], vectors: np.ndarray, width: int, storage: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(np.ascontiguousarray(vectors, storage).ravel())
    table = pa.table(
        {"text": pa.array(texts, pa.string()), "vector": pa.FixedSizeListArray.from_arrays(flat, width)},
        schema=_schema(width, storage),
    )
    _write(path, lambda partial: pq.write_table(table, partial, **_LAYOUT))


# Vectors are as good as random: a dictionary or statistics of them are only in the way.
_LAYOUT: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}


def _schema(width: int, storage: str) -> pa.Schema:
    import pyarrow as pa

    number = pa.float16() if storage == "float16" else pa.float32()
    return pa.schema([pa.field("text", pa.string()), pa.field("vector", pa.list_(number, width))])


def _join(out: Path, parts: Path, about: dict[str, Any]) -> None:
    """All parts as one file, a row group each."""
    import pyarrow.parquet as pq

    tables = _tables(parts)
    first = next(tables)
    schema = first.schema.with_metadata({_KEY: json.dumps(about).encode()})

    def write(partial: Path) -> None:
        with pq.ParquetWriter(partial, schema, **_LAYOUT) as file:
            for table in itertools.chain([first], tables):
                file.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=PART)

    _write(out, write)


def _tables(parts: Path) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    for number in itertools.count():
        if not (path := parts / _name(number)).is_file():
            return
        yield pq.read_table(path)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


def _same(found: Any, about: dict[str, Any]) -> bool:
    """Whether a file holds what was asked for; a model may go by several names."""
    return isinstance(found, dict) and found | {"model": ""} == about | {"model": ""}


def _name(number: int) -> str:
    return f"{number:06}.parquet"


def _difference(found: Any, about: dict[str, Any]) -> str:
    """What a file holds that is not what was asked for."""
    if not isinstance(found, dict):
        return "something that this command did not write"
    keys = [key for key in about if found.get(key) != about[key] and key not in ("model", "fingerprint")]
    told = [f"{key} {found.get(key)!r}, not {about[key]!r}" for key in keys]
    if found.get("fingerprint") != about.get("fingerprint"):
        made = difference(str(found.get("fingerprint")), str(about.get("fingerprint")))
        told.insert(0, f"vectors of {found.get('model')} with another {made}")
    return "; ".join(told) or "something else"

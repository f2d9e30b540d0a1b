"""Write texts and their vectors to a Parquet file of any length; a stopped command can be resumed.

The columns are `text` and `vector`, an Arrow fixed-size list, which pandas, Polars, DuckDB and vector databases read.
Until the file is complete, its finished parts are in the folder OUT.parts beside it.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.data.texts import in_blocks
from simcse_jax.serving.index.folder import fingerprint_difference
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import locked, write_whole, writing

if TYPE_CHECKING:
    import pyarrow as pa

STORAGES = ("float32", "float16")  # not int8 as in an index: other readers do not know of its scales
PART = 16384  # texts of a part, and of a row group of the file
_WHAT = "what.json"
_LOCK = ".lock"
_KEY = b"simcse_jax"  # key of the file's metadata: which model made the vectors, from which texts

Encode = Callable[[list[str]], np.ndarray]


def write_vectors(
    out: Path,
    texts: Iterable[str],
    encode: Encode,
    width: int,
    about: dict[str, Any],
    storage: str = "float32",
    started: Callable[[int], None] = lambda done: None,
) -> int:
    """Write the texts and their vectors, continuing after the parts of a stopped call; return the number of texts.

    encode: list[str] -> float32[n, D]. about: what determines the content (model, texts, ...), as JSON; it becomes the
    file's metadata. started: called once, with the number of texts that are finished already, unless the file exists
    with the same `about`: then it is complete. Raises UserError if the file, or a folder of parts, has other content.
    """
    if storage not in STORAGES:
        raise UserError(f"--storage={storage} is unknown. Known: {', '.join(STORAGES)}.")
    about = {**about, "storage": storage}
    folder = _parts_of(out)
    # One command at a time: two would remove each other's parts.
    busy = f"Another command is writing {out}. Wait for it, or give another --out."
    with locked(folder / _LOCK, busy, "Give another --out.", str(out)):
        try:
            return _write_vectors(out, texts, encode, width, about, storage, started)
        finally:
            (folder / _LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # the folder holds parts
                folder.rmdir()


def _write_vectors(
    out: Path,
    texts: Iterable[str],
    encode: Encode,
    width: int,
    about: dict[str, Any],
    storage: str,
    started: Callable[[int], None],
) -> int:
    done = complete(out, about)
    parts = _parts(out, about)
    if done is not None:
        shutil.rmtree(parts)  # left by a command that was killed at its end
        return done
    finished = _finished(parts)
    count = sum(finished)
    started(count)
    rest = itertools.islice(iter(texts), count, None)
    for number, part in enumerate(in_blocks(rest, PART), len(finished)):
        _write_part(parts / _name(number), part, encode(part), width, storage)
        count += len(part)
    if not count:
        shutil.rmtree(parts)
        raise UserError("There is no text to embed: the input has no line, or only empty ones. Check --input.")
    _join(out, parts, about)
    shutil.rmtree(parts)
    return count


def complete(out: Path, about: dict[str, Any]) -> int | None:
    """Return the number of texts of the complete file, None if there is none; raises UserError for other content."""
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
            f"{out} exists already, and holds {_difference(found, about)}.\nGive another --out, or remove it."
        )
    return rows


def _parts_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _parts(out: Path, about: dict[str, Any]) -> Path:
    """Return the folder of the parts of this content, made if need be; raises UserError if it holds other parts."""
    folder = _parts_of(out)
    what = folder / _WHAT
    if what.is_file():
        found = json.loads(what.read_text(encoding="utf-8"))
        if not _same(found, about):
            raise UserError(
                f"{folder} was left by a stopped command, and holds {_difference(found, about)}.\n"
                "Give another --out, or remove that folder."
            )
        return folder
    # A killed command may leave a file that was being written.
    if any(path.name != _LOCK and not path.name.endswith(".partial") for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files than parts of vectors.\nGive another --out.")
    _write(what, lambda path: path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"))
    return folder


def _finished(parts: Path) -> list[int]:
    """Return the numbers of rows of the finished parts; the list ends before a part that a crash has damaged."""
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


# Vectors look random, so a dictionary and statistics would only take time and space.
_LAYOUT: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}


def _schema(width: int, storage: str) -> pa.Schema:
    import pyarrow as pa

    number = pa.float16() if storage == "float16" else pa.float32()
    return pa.schema([pa.field("text", pa.string()), pa.field("vector", pa.list_(number, width))])


def _join(out: Path, parts: Path, about: dict[str, Any]) -> None:
    """Join the parts into one file, each as a row group."""
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
    with writing(path, "Free some space, or give another --out."):
        write_whole(path, write)


def _same(found: Any, about: dict[str, Any]) -> bool:
    """Return whether two descriptions agree; a model may have several names."""
    return isinstance(found, dict) and found | {"model": ""} == about | {"model": ""}


def _name(number: int) -> str:
    return f"{number:06}.parquet"


def _difference(found: Any, about: dict[str, Any]) -> str:
    """Say in which points found content differs from the wanted one."""
    if not isinstance(found, dict):
        return "something that `embed` did not write"
    keys = [key for key in about if found.get(key) != about[key] and key not in ("model", "fingerprint")]
    points = [f"{key} {found.get(key)!r}, not {about[key]!r}" for key in keys]
    if found.get("fingerprint") != about.get("fingerprint"):
        parts = fingerprint_difference(str(found.get("fingerprint")), str(about.get("fingerprint")))
        points.insert(0, f"vectors of {found.get('model')} that differ in {parts}")
    return "; ".join(points) or "something else"

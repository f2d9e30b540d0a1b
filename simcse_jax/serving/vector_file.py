"""Write texts and their vectors to a Parquet file of any length, and read them; a stopped command can be resumed.

The columns are `text` and `vector`, an Arrow fixed-size list, which pandas, Polars, DuckDB and vector databases read.
Until the file is complete, its finished parts are in the folder OUT.parts beside it.
"""

from __future__ import annotations

import hashlib
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
from simcse_jax.system.json_file import read_json
from simcse_jax.system.vectors import normalize
from simcse_jax.system.whole_file import locked, write_whole, writing

if TYPE_CHECKING:
    import pyarrow as pa

STORAGES = ("float32", "float16")  # not int8 as in an index: other readers do not know of its scales
PART = 16384  # texts of a part, and of a row group of the file
_WHAT = "what.json"
_LOCK = ".lock"
_KEY = b"simcse_jax"  # key of the file's metadata: which model made the vectors, from which texts
_DIGEST = b"blake2b"  # key of a part's metadata
# Vectors look random, so a dictionary and statistics would only take time and space.
_LAYOUT: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}

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
    file's metadata. started: called once before texts are encoded, with the number of texts that are finished already;
    not if the file exists with the same `about`: then it is complete. A part that is damaged, or whose texts have
    changed since, is written again. Raises UserError if the file, or a folder of parts, has other content.
    """
    if storage not in STORAGES:
        raise UserError(f"--storage={storage} is unknown. Known: {', '.join(STORAGES)}.")
    about = {**about, "storage": storage}
    parts = out.with_name(f"{out.name}.parts")
    # One command at a time: two would remove each other's parts.
    busy = f"Another command is writing {out}. Wait for it, or give another --out."
    with locked(parts / _LOCK, busy, "Give another --out.", str(out)):
        try:
            count = complete(out, about)
            _claim(parts, about)
            if count is None:
                count = _write_all(out, parts, texts, encode, _schema(width, storage), about, started)
            shutil.rmtree(parts)  # also what a command that was killed at its end has left
            return count
        finally:
            (parts / _LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # the folder holds parts
                parts.rmdir()


def complete(out: Path, about: dict[str, Any]) -> int | None:
    """Return the number of texts of the complete file, None if there is none; raises UserError for other content."""
    if not out.exists():
        return None
    found, rows = _about(out)
    if not _same(found, about):
        raise UserError(
            f"{out} exists already, and holds {_difference(found, about)}.\n{_ways_on(found, about)} give another "
            "--out, or remove it."
        )
    return rows


def _about(path: Path) -> tuple[Any, int]:
    """Return what `write_vectors` says of a file's content, None for another file, and its number of texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        return json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"null")), file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError):
        return None, 0


def is_vector_file(path: Path) -> bool:
    """Return whether `write_vectors` wrote this file."""
    return path.suffix == ".parquet" and isinstance(_about(path.expanduser())[0], dict)


def read_vectors(path: Path, fingerprint: str, prompt: str | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield texts and their vectors, float32[n, D] of length 1, of a file of `write_vectors`, in blocks.

    Raises UserError on the first block if the vectors were made with another fingerprint or prompt, or the file is
    damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path.expanduser()
    about, _ = _about(path)
    if about.get("fingerprint") != fingerprint:
        words, given = fingerprint_difference(str(about.get("fingerprint")), fingerprint)
        given = given or f"the model that made them, {about.get('model')}"
        raise UserError(
            f"The vectors in {path} were made with {words}, so they cannot be compared with those of this model.\n"
            f"Give {given}, or --column=text (in Python a list of the texts) to encode the file's texts again."
        )
    if about.get("prompt") != prompt:
        raise UserError(
            f"The vectors in {path} are of texts {_prompted(about.get('prompt'))}, not {_prompted(prompt)}.\nGive the "
            "same prompt, or --column=text (in Python a list of the texts) to encode the file's texts again."
        )
    try:
        for block in pq.ParquetFile(path).iter_batches(PART, columns=["text", "vector"]):
            vectors = block.column("vector")
            rows = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            yield block.column("text").to_pylist(), normalize(rows.reshape(len(vectors), -1))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged: {error}.\nWrite it again with `embed`, or restore it from a copy."
        ) from error


def _prompted(prompt: str | None) -> str:
    return "with the model's own prompt" if prompt is None else f"with the prompt {prompt!r}"


def _claim(parts: Path, about: dict[str, Any]) -> None:
    """Record whose parts this folder holds; raises UserError if they are of another model, or with other settings."""
    what = parts / _WHAT
    if what.is_file():
        found = read_json(what, dict, "Remove that folder, or give another --out.")
        if not _same(found, about | {"texts": found.get("texts")}):  # the texts themselves are compared later
            raise _left(parts, _difference(found, about), _ways_on(found, about))
    # A killed command may leave a file that was being written.
    elif any(path.name != _LOCK and not path.name.endswith(".partial") for path in parts.iterdir()):
        raise UserError(f"{parts} holds other files than parts of vectors.\nGive another --out.")
    else:
        _write(what, lambda path: path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"))


def _left(parts: Path, content: str, ways_on: str = "To start anew,") -> UserError:
    return UserError(
        f"{parts} was left by a stopped command, and holds {content}.\n{ways_on} give another --out, or remove that "
        "folder."
    )


def _write_all(
    out: Path,
    parts: Path,
    texts: Iterable[str],
    encode: Encode,
    schema: pa.Schema,
    about: dict[str, Any],
    started: Callable[[int], None],
) -> int:
    """Write the parts that are not there yet, and join all into one file, each as a row group."""
    import pyarrow.parquet as pq

    paths: list[Path] = []
    count, begun = 0, False
    for block in in_blocks(texts, PART):
        paths.append(parts / f"{len(paths):06}.parquet")
        stored = _read(paths[-1], schema)
        found = None if stored is None else stored.column("text").to_pylist()
        if found and len(paths) == 1 and 2 * len({*found} & {*block}) < len({*block}):  # not a corrected input
            raise _left(parts, f"other texts, which begin with {found[0]!r:.60}")
        if found != block:
            if not begun:
                started(count)
                begun = True
            table = _part(block, encode(block), schema)
            _write(paths[-1], lambda path, table=table: pq.write_table(table, path, **_LAYOUT))
        count += len(block)
    if not count:
        shutil.rmtree(parts)
        raise UserError("There is no text to embed: the input has no line, or only empty ones. Check --input.")
    schema = schema.with_metadata({_KEY: json.dumps(about).encode()})

    def join(partial: Path) -> None:
        with pq.ParquetWriter(partial, schema, **_LAYOUT) as file:
            for path in paths:
                table = _read(path, schema)
                if table is None:
                    raise UserError(f"{path} has been damaged. Run the same command again: it writes that part anew.")
                file.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=PART)

    _write(out, join)
    return count


def _part(texts: list[str], vectors: np.ndarray, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    kind = schema.field("vector").type
    flat = pa.array(np.ascontiguousarray(vectors, kind.value_type.to_pandas_dtype()).ravel())
    table = pa.table([pa.array(texts, pa.string()), pa.FixedSizeListArray.from_arrays(flat, type=kind)], schema=schema)
    return table.replace_schema_metadata({_DIGEST: _digest(table)})


def _read(path: Path, schema: pa.Schema) -> pa.Table | None:
    """Return the texts and vectors of a part, None if there is none or it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        if not table.schema.equals(schema):
            return None
        written = (table.schema.metadata or {}).get(_DIGEST)  # parts of earlier versions have none
        return table if written is None or written == _digest(table) else None
    except (pa.ArrowException, OSError, ValueError):
        return None


def _digest(table: pa.Table) -> bytes:
    vectors = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    content = json.dumps(table.column("text").to_pylist()).encode() + vectors.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _schema(width: int, storage: str) -> pa.Schema:
    import pyarrow as pa

    number = pa.float16() if storage == "float16" else pa.float32()
    return pa.schema([pa.field("text", pa.string()), pa.field("vector", pa.list_(number, width))])


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    with writing(path, "Free some space, or give another --out."):
        write_whole(path, write)


def _same(found: Any, about: dict[str, Any]) -> bool:
    """Return whether two descriptions agree; a model may have several names."""
    return isinstance(found, dict) and found | {"model": ""} == about | {"model": ""}


def _difference(found: Any, about: dict[str, Any]) -> str:
    """Say in which points found content differs from the wanted one."""
    if not isinstance(found, dict):
        return "something that `embed` did not write"
    every = [key for key in {**about, **found} if key not in ("model", "fingerprint")]
    points = [f"{key} {found.get(key)!r}, not {about.get(key)!r}" for key in every if found.get(key) != about.get(key)]
    if found.get("fingerprint") != about.get("fingerprint"):
        words, _ = fingerprint_difference(str(found.get("fingerprint")), str(about.get("fingerprint")))
        points.insert(0, f"vectors of {found.get('model')}, made with {words}")
    return "; ".join(points) or "something else"


def _ways_on(found: Any, about: dict[str, Any]) -> str:
    """Begin the way out of a difference: which flags go on with what is there, if flags do."""
    if isinstance(found, dict) and all(found.get(key) == about[key] for key in about.keys() - {"fingerprint", "model"}):
        _, flags = fingerprint_difference(str(found.get("fingerprint")), str(about["fingerprint"]))
        if not flags and found.get("model") != about["model"]:
            flags = f"--model={found.get('model')}"
        if flags:
            return f"To go on with it, give {flags}; to start anew,"
    return "To start anew,"

"""The folder of a saved index: `index.json`, and beside it a folder `rows-...` with the files that it names.

Saving writes a new folder of files and then replaces `index.json` by one rename. Whoever is killed in between leaves
the earlier index as it was, and what he had begun is cleared by the next save.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import names_to_disk, to_disk

RECORD = "index.json"
FORMAT = 1
_DATA = re.compile(r"rows-[0-9a-f]{8}")
# What every record says, and as what.
_FIELDS = {
    "kind": str,
    "storage": str,
    "width": int,
    "fingerprint": str,
    "count": int,
    "next_id": int,
    "data": str,
    "files": dict,
}


def write_folder(folder: Path, settings: Mapping[str, Any], write_files: Callable[[Path], None]) -> None:
    """Let `write_files` fill a new folder of files, and make that the index; the settings go to the record.

    UserError if `folder` holds something else than an index, or cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    require_ours(folder)
    with _alone(folder):
        _write_folder(folder, settings, write_files)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One save of a folder at a time, or each would clear away what the other has just written."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another process saves an index to {folder} just now. Try again, or give another folder."
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.\nGive another folder.") from error
    try:
        yield
    finally:
        lock.release()


def _write_folder(folder: Path, settings: Mapping[str, Any], write_files: Callable[[Path], None]) -> None:
    data = folder / f"rows-{uuid.uuid4().hex[:8]}"
    try:
        data.mkdir(parents=True)
        write_files(data)
        files = {path.name: path.stat().st_size for path in sorted(data.iterdir())}
        for name in files:
            to_disk(data / name)
        to_disk(data)
        record = {"format": FORMAT, **settings, "data": data.name, "files": files}
        draft = data / RECORD
        draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        to_disk(draft)
        os.replace(draft, folder / RECORD)
    except OSError as error:
        shutil.rmtree(data, ignore_errors=True)
        raise UserError(
            f"The index cannot be written to {folder}: {error.strerror or error}.\n"
            "Free some space there, or save to another folder."
        ) from error
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    names_to_disk(folder)
    for path in folder.iterdir():
        if _DATA.fullmatch(path.name) and path != data:
            shutil.rmtree(path, ignore_errors=True)


def require_ours(folder: Path) -> None:
    """UserError unless an index may be written there: a new or empty folder, or one that holds an index."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Give a folder that does not exist yet, or one that holds an index.")
    names = sorted(path.name for path in folder.iterdir())
    begun = all(_DATA.fullmatch(name) for name in names)  # empty, or what killed saves have left
    if RECORD in names:
        read_record(folder)  # another program's index.json is not ours to replace
    elif not begun:
        raise UserError(
            f"{folder} is not empty, and holds no index (no {RECORD}): {', '.join(names[:8])}\n"
            "Give a folder that does not exist yet, or one that holds an index."
        )


def read_record(folder: Path) -> dict[str, Any]:
    """What `index.json` says; UserError if there is none, or it is none of ours."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no index (no {RECORD} there).\n"
            "Make one with build_index(sentences) and save it there with save(folder)."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD} cannot be read: {error}.\n{BUILD_ANEW}") from error
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise UserError(f"{folder / RECORD} is not the record of an index of ours.\nGive another folder.")
    if record["format"] != FORMAT:
        raise UserError(
            f"{folder} was written in format {record['format']}; this version of simcse_jax reads format {FORMAT}.\n"
            "Use the version that wrote it, or build the index again."
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
    if wrong or not _DATA.fullmatch(record["data"]):
        raise UserError(f"{folder / RECORD} is damaged: {', '.join(wrong) or 'data'}.\n{BUILD_ANEW}")
    return record


def require_whole(folder: Path, record: Mapping[str, Any]) -> Path:
    """The folder of files that the record names; UserError if one of them is missing or not as long as it was."""
    data = folder / record["data"]
    for name, size in record["files"].items():
        path = data / name
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            found = "is missing" if there is None else f"has {there:,} bytes of {size:,}"
            raise UserError(f"The index in {folder} is damaged: {path.name} {found}.\n{BUILD_ANEW}")
    return data


BUILD_ANEW = "Restore it from a copy, or build the index again with build_index(sentences) and save it to a new folder."

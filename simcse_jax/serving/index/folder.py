"""Write and check the folder of a saved index: `index.json`, and a folder `rows-...` with the files that it names.

Saving writes a new folder of files and then replaces `index.json` by one rename. If the process is killed in between,
the earlier index is still whole, and the next save removes the unfinished files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json
from simcse_jax.system.whole_file import checksum, locked, names_to_disk, require_files, to_disk, writing

RECORD = "index.json"
FORMAT = 1
REBUILD = "Restore it from a copy, or build the index again with build_index(sentences) and save it to a new folder."
_DATA = re.compile(r"rows-[0-9a-f]{8}")
# The fields of every record, and their types.
_FIELDS = {
    "kind": str,
    "storage": str,
    "width": int,
    "fingerprint": str,
    "count": int,
    "next_id": int,
    "data": str,
    "files": dict,
    "checksums": dict,
}
# A pooler may have a "-" in it; the last part is there only where vectors were cut on demand.
_FINGERPRINT = re.compile(
    r"(?P<weights>[^-]*)-(?P<pooler>.*)-(?P<max_length>\d+)(?:-truncate_dim(?P<truncate_dim>\d+))?"
)


def vector_fingerprint(weights: str, pooler: str, max_length: int, truncate_dim: int | None = None) -> str:
    """Return a string that is equal for vectors which may be compared.

    weights: a hex digest. truncate_dim: what vectors were cut to on demand; None if they were not.
    """
    cut = "" if truncate_dim is None else f"-truncate_dim{truncate_dim}"
    return f"{weights}-{pooler}-{max_length}{cut}"


def fingerprint_difference(found: str, wanted: str) -> tuple[str, str]:
    """Say with what vectors were made that differs, and which flags make them comparable, "" if another model did.

    ("pooler=avg, not cls", "--pooler=avg"), from their fingerprint and that of the model at hand.
    """
    theirs, ours = _FINGERPRINT.fullmatch(found), _FINGERPRINT.fullmatch(wanted)
    if not theirs or not ours:
        return f"the fingerprint {found}, not {wanted}", ""
    parts = {name: (theirs[name], ours[name]) for name in _FINGERPRINT.groupindex if theirs[name] != ours[name]}
    is_another = parts.pop("weights", None) is not None
    words = ["other weights or another tokenizer"] * is_another + [
        f"{key}={a or 'none'}, not {b or 'none'}" for key, (a, b) in parts.items()
    ]
    flags = [f"--{key}={a}" if a else f"no --{key}" for key, (a, _) in parts.items()]
    return ", and ".join(words), "" if is_another else " and ".join(flags)


def write_folder(folder: Path, settings: Mapping[str, Any], write_files: Callable[[Path], None]) -> None:
    """Save an index: `write_files` fills a new folder of files, and `settings` go into the record.

    Raises UserError if `folder` holds anything but an index, or cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    require_index_or_empty(folder)
    # One process at a time: two would remove each other's files.
    lock = folder.with_name(f".{folder.name}.lock")
    busy = f"Another process is saving an index to {folder}. Try again, or give another folder."
    way_out = "Free some space there, or give another folder."
    with locked(lock, busy, way_out, str(folder)), writing(folder, way_out):
        data = folder / f"rows-{uuid.uuid4().hex[:8]}"
        try:
            data.mkdir(parents=True)
            write_files(data)
            checksums = {path.name: checksum(path) for path in sorted(data.iterdir())}
            for name in checksums:
                to_disk(data / name)
            to_disk(data)
            files = {name: found["bytes"] for name, found in checksums.items()}
            record = {"format": FORMAT, **settings, "data": data.name, "files": files, "checksums": checksums}
            draft = data / RECORD
            draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            to_disk(draft)
            os.replace(draft, folder / RECORD)
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            raise
        names_to_disk(folder)
        for path in folder.iterdir():
            if _DATA.fullmatch(path.name) and path != data:
                shutil.rmtree(path, ignore_errors=True)


def require_index_or_empty(folder: Path) -> None:
    """Raise UserError unless the folder is new or empty, or holds an index, which a save may replace."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Give a folder that does not exist yet, or one that holds an index.")
    names = sorted(path.name for path in folder.iterdir())
    if RECORD in names:
        read_record(folder)  # raises for another program's index.json
    elif not all(_DATA.fullmatch(name) for name in names):  # those are left by killed saves
        raise UserError(
            f"{folder} is not empty, and holds no index (no {RECORD}): {', '.join(names[:8])}\n"
            "Give a folder that does not exist yet, or one that holds an index."
        )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of `index.json`; raises UserError if there is none, or it is not of an index."""
    if not (folder / RECORD).exists():
        raise UserError(
            f"{folder} holds no index (no {RECORD} there).\n"
            "Make one with build_index(sentences) and save it there with save(folder)."
        )
    record = read_json(folder / RECORD, dict, REBUILD)
    if not isinstance(record.get("format"), int):
        raise UserError(f"{folder / RECORD} is not of an index of simcse_jax.\nGive another folder.")
    if record["format"] != FORMAT:
        raise UserError(
            f"{folder} was written in format {record['format']}; this version of simcse_jax reads format {FORMAT}.\n"
            "Use the version that wrote it, or build the index again."
        )
    record.setdefault("checksums", {})  # indexes of earlier versions have none
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
    if wrong or not _DATA.fullmatch(record["data"]):
        raise UserError(f"{folder / RECORD} is damaged: {', '.join(wrong) or 'data'}.\n{REBUILD}")
    return record


def whole_files(folder: Path, record: Mapping[str, Any]) -> Path:
    """Return the folder of files that the record names; raises ValueError if a file is missing or has changed."""
    data = folder / record["data"]
    require_files(data, {name: {"bytes": size} for name, size in record["files"].items()})
    require_files(data, record["checksums"])
    return data

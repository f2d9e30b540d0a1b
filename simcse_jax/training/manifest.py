"""The list of a checkpoint's files with their checksums, written last: with it a checkpoint is complete.

Checked before anything is read: array formats carry no checksum of every number, and take missing parts for zeros.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

NAME = "files.json"


def complete_steps(folder: Path) -> list[int]:
    """The steps of `checkpoints/last` or `checkpoints/best` that were saved to the end, ascending."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{NAME}") if path.parent.name.isdigit())


def incomplete(folder: Path) -> list[Path]:
    """What a kill in the middle of a save, or a save that failed, has left in `checkpoints/last` or `best`."""
    complete = {str(step) for step in complete_steps(folder)}
    return [path for path in folder.glob("*") if path.is_dir() and path.name not in complete]


def seal(step: Path) -> None:
    """Write the list of the files of this checkpoint, whole or not at all."""
    files = {str(path.relative_to(step)): _checksum(path) for path in sorted(step.rglob("*")) if path.is_file()}
    draft = step.with_name(f".{step.name}.{NAME}")
    draft.write_text(json.dumps(files, indent=1), encoding="utf-8")
    os.replace(draft, step / NAME)


def require_intact(step: Path) -> None:
    """ValueError when a file of this checkpoint is missing or not what was written; OSError when one is unreadable."""
    files = json.loads((step / NAME).read_text(encoding="utf-8"))
    for name, checksum in files.items():
        path = step / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != checksum["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes of {checksum['bytes']}")
        if _checksum(path) != checksum:
            raise ValueError(f"{name} is not what was written")


def _checksum(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return {"bytes": path.stat().st_size, "blake2b": digest}

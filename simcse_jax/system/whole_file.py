"""Files that are written whole or not at all, whoever is killed and whenever the power goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file beside `path`, then rename it there; raises what `write` raises, and leaves nothing."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        to_disk(partial)
        os.replace(partial, path)
        names_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """The same, of a text as UTF-8."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def names_to_disk(folder: Path) -> None:
    """The same as `to_disk` of a folder's names; where the file system cannot, they are in place all the same."""
    with suppress(OSError):
        to_disk(folder)


def to_disk(path: Path) -> None:
    """Have the system write what it still holds back of a file, or of a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

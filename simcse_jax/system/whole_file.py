"""Write files whole or not at all, also when the process is killed or the power fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simcse_jax.system.errors import UserError


@contextmanager
def writing(path: str | Path, way_out: str = "Give another folder.", name: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a UserError: "PATH cannot be written: REASON." and the way out.

    name: what the message calls the path, for example "--out=results"; default: the path itself.
    """
    try:
        yield
    except OSError as error:
        reason = f"{name or path} cannot be written: {error.strerror or error}."
        raise UserError(f"{reason}\n{way_out}" if way_out else reason) from error


@contextmanager
def locked(lock: Path, busy: str, way_out: str, name: str) -> Iterator[None]:
    """Hold a lock file during the block; its folder is made if need be.

    Raises UserError(busy) if another process holds it, and as `writing(lock, way_out, name)` if it cannot be made.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock, timeout=0)
    with writing(lock, way_out, name):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.acquire()
        except Timeout:
            raise UserError(busy) from None
    try:
        yield
    finally:
        held.release()


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, then rename that file to `path`.

    Raises what `write` raises, and then leaves nothing behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        to_disk(partial)
        os.replace(partial, path)
        names_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def names_to_disk(folder: Path) -> None:
    """Flush the names of a folder's files to disk, where the file system can do that."""
    with suppress(OSError):
        to_disk(folder)


def to_disk(path: Path) -> None:
    """Flush a file, or the list of a folder's names, to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

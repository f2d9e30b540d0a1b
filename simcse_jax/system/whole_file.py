"""Write files whole or not at all, also when the process is killed or the power fails; and check them later."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

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


class Lock(NamedTuple):
    """Hold a locked file. A child process that inherits the handle holds the lock too, until it ends."""

    handle: int

    def note_holders(self, *children: int) -> None:
        """Write who holds the lock, this process and these children, for those that find it locked."""
        holders = f"{' '.join(map(str, [os.getpid(), *children]))} on {socket.gethostname()}"
        with suppress(OSError):  # a full disk
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, holders.encode(), 0)


@contextmanager
def locked(path: Path, busy: str, way_out: str, name: str) -> Iterator[Lock]:
    """Hold a lock file during the block, which may delete it; its folder is made if need be.

    The system releases the lock of a process however it ends. Raises UserError(busy), with the holders, if another
    process holds it, and as `writing(path, way_out, name)` if it cannot be made. File systems without locks have none.
    """
    with writing(path, way_out, name):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without a name, it was deleted since it was opened, and others have a new one.
            is_free = os.fstat(handle).st_nlink > 0
        except BlockingIOError:
            is_free = False
        except OSError:
            is_free = True
        if not is_free:
            holders = os.pread(handle, 1000, 0).decode(errors="replace") or "unknown"
            raise UserError(f"{busy}\n{path} is locked by process {holders}.")
        lock = Lock(handle)
        lock.note_holders()
        yield lock
    finally:
        os.close(handle)


def write_whole(path: Path, write: Callable[[Path], Any], mark: str = "") -> None:
    """Call `write` with a temporary path beside `path`, then rename that file to `path`.

    mark: part of its name, where several processes may write `path` at a time. Raises what `write` raises, and then
    leaves nothing behind; a kill leaves the temporary file, which the next call overwrites if it has the same mark.
    """
    partial = path.with_name(f".{path.name}{mark}.partial")
    try:
        write(partial)
        to_disk(partial)
        os.replace(partial, path)
        names_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; of several that write at a time, the last one counts."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"), f".{secrets.token_hex(4)}")


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


def checksum(*paths: Path) -> dict[str, int | str]:
    """Return the total length of the files and one digest of their content, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return {"bytes": sum(path.stat().st_size for path in paths), "blake2b": digest.hexdigest()}


def require_files(folder: Path, files: Mapping[str, Mapping[str, int | str]]) -> None:
    """Raise ValueError where a file is missing or has changed; files: `checksum` of each, or its length alone."""
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != written["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size:,} bytes of {written['bytes']:,}")
        if "blake2b" in written and checksum(path) != written:
            raise ValueError(f"{name} is not what was written")

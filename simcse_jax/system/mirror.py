"""Keep a local file or folder equal to what an object store has under an address; fetch and send what differs.

Reading: `local_path` turns an address into the path of a copy in the cache. Writing: within `written`, files are made
in the cache, and sent when all is done; within `written_by_parts`, also a part at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.object_store import Entry, Store, is_address
from simcse_jax.system.whole_file import locked, write_whole_text, writing

ATTEMPTS = 5  # to fetch a folder that changes meanwhile
# What only the training of a run reads; copies of run folders do without.
_OF_TRAINING = ("checkpoints/last/", "tensorboard/", "profile/")
BRIEFLY_S = 30.0  # for how long a part is tried to be sent; the end of the block sends what could not be
_WAY_OUT = "Free some space, or set SIMCSE_CACHE to a folder elsewhere."


class Send(Protocol):
    """Send finished files of a block at once; see `written_by_parts`."""

    def __call__(self, paths: Collection[Path], last: Collection[Path]) -> None:
        """Send the files of these paths, which may be folders; of these, the files `last` after all others."""
        ...


class Mirror:
    """Hold the local copy of what lies under an address: a folder, or the one file of the name ""."""

    def __init__(self, store: Store, path: Path, grows: Callable[[str], bool] = lambda _: False):
        """path: absolute; beside it lies a record of what is equal on both sides.

        grows: returns whether a file may be appended to while it is sent; a copy of it is sent then.
        """
        self.store, self.path, self._grows = store, path, grows
        self._record = path.with_name(f".{path.name}.equal.json")
        self._equal: dict[str, list[int | str]] = {}  # name: size and tag of the object, size and time of the file
        with suppress(OSError, ValueError):
            self._equal = json.loads(self._record.read_text(encoding="utf-8"))

    def local(self, name: str) -> Path:
        """Return the file that stands for an object."""
        return self.path / name if name else self.path

    def pull(
        self,
        entries: Mapping[str, Entry],
        wanted: Callable[[str], bool] = lambda _: True,
        keep_new: bool = False,
    ) -> None:
        """Fetch the wanted objects that differ here, and remove files that have no object.

        entries: of all objects, as `Store.find` returns them. keep_new: keep files that never had an object.
        FileNotFoundError where an object is gone by now.
        """
        with writing(self.path, _WAY_OUT, f"The copy of {self.store.address} in {self.path}"):
            _clear(self, entries, {*self.names()} - {*self._equal} if keep_new else set())
            self.forget(name for name in [*self._equal] if name not in entries)
            chosen = {name: entry for name, entry in entries.items() if wanted(name)}
            missing = {name: self.local(name) for name, entry in chosen.items() if not self._is_equal(name, entry)}
            self.store.get_all(missing)
            self.note_equal({name: chosen[name] for name in missing})

    def push(self, names: Collection[str] | None = None) -> None:
        """Send these files, or all, that differ from their objects, as far as is known."""
        found = {name: _stat(self.local(name)) for name in (self.names() if names is None else names)}
        changed = {name: now for name, now in found.items() if now and self._equal.get(name, [])[2:] != now}
        with tempfile.TemporaryDirectory(dir=self.path.parent) as snapshots:
            paths = {name: self.local(name) for name in changed}
            for number, name in enumerate(filter(self._grows, changed)):
                paths[name] = Path(shutil.copyfile(paths[name], Path(snapshots, str(number))))
            self.store.put_all(paths)
        for name, now in changed.items():
            self._equal[name] = [-1, "", *now]  # the tag of the new object is not known

    def delete_gone(self, wanted: Callable[[str], bool]) -> None:
        """Delete the wanted objects that were equal to files which are gone."""
        gone = [name for name in self._equal if wanted(name) and not self.local(name).exists()]
        self.store.delete(gone)
        for name in gone:
            del self._equal[name]

    def note_sent(self, entries: Mapping[str, Entry]) -> None:
        """Record what was sent since the last call as equal to its object, and nothing of what others have written."""
        for name, (size, tag, *file) in self._equal.items():
            if (size, tag) == (-1, "") and name in entries:
                self._equal[name] = [*entries[name], *file]
        self.note_equal({})

    def forget_others(self, entries: Mapping[str, Entry]) -> None:
        """Forget what was recorded of objects that are gone, or were written since."""
        self._equal = {name: of for name, of in self._equal.items() if name in entries and [*entries[name]] == of[:2]}

    def forget(self, names: Iterable[str]) -> None:
        """Forget what was recorded of these objects: they will be fetched again, and not be deleted."""
        for name in names:
            self._equal.pop(name, None)

    def names(self, *paths: Path) -> list[str]:
        """Return the names of files here, all or those of some paths, but hidden ones; some may vanish meanwhile."""
        found = [path for path in paths or (self.path,) if path.is_file()]
        for path in paths or (self.path,):
            for folder, folders, files in os.walk(path):
                folders[:] = [name for name in folders if not name.startswith(".")]
                found += [Path(folder, name) for name in files if not name.startswith(".")]
        return sorted("" if file == self.path else file.relative_to(self.path).as_posix() for file in found)

    def note_equal(self, entries: Mapping[str, Entry]) -> None:
        """Record that these objects and their files are equal."""
        for name, entry in entries.items():
            self._equal[name] = [*entry, *_stat(self.local(name))]
        if self.path.parent.is_dir():
            write_whole_text(self._record, json.dumps(self._equal))

    def _is_equal(self, name: str, entry: Entry) -> bool:
        path = self.local(name)
        return path.is_file() and self._equal.get(name) == [*entry, *_stat(path)]


def _clear(mirror: Mirror, entries: Mapping[str, Entry], kept: Collection[str]) -> None:
    """Remove files without an object that are not to be kept, a file for a folder, or a folder for a file."""
    if mirror.path.is_file() and "" not in entries and "" not in kept:
        mirror.path.unlink()
    if mirror.path.is_dir() and "" in entries:
        shutil.rmtree(mirror.path)
    for name in mirror.names():
        if name not in entries and name not in kept:
            mirror.local(name).unlink(missing_ok=True)
    for folder in sorted((path for path in mirror.path.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):  # it holds something
            folder.rmdir()


def _stat(path: Path) -> list[int | str]:
    """Return size and time of a file, [] if it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns]


def cached_path(kind: str, address: str, root: str | None = None) -> Path:
    """Return the path in the cache for the copy of an address, whose own name ends it."""
    digest = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    return cache_folder(kind, root).absolute() / digest / address.rpartition("/")[2]


def local_path(name: str | os.PathLike[str], states: bool = False) -> Path:
    """Return the path of a file or folder that users name: of an address in an object store, that of a copy.

    The copy is made the first time, and later brought up to date; UserError where there is nothing at the address. A
    run folder is copied without what training alone reads. states: with the states of training too.
    """
    if not is_address(name):
        return Path(name).expanduser()
    store = Store(str(name))
    path = cached_path("objects", store.address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.fetching")):
        mirror = Mirror(store, path)
        for attempt in range(ATTEMPTS):
            entries = store.find()
            if not entries:
                raise UserError(f"{name}: there is no such object, and none under it.\nCheck the spelling.")
            is_run = not states and "config.json" in entries and any(key.startswith("checkpoints/") for key in entries)
            try:
                mirror.pull(entries, lambda key, is_run=is_run: not (is_run and key.startswith(_OF_TRAINING)))
                break
            except FileNotFoundError as error:  # a run at work has replaced it
                if attempt == ATTEMPTS - 1:
                    raise UserError(f"{name} changes while it is fetched ({error}).\nTry again.") from error
    return path


@contextmanager
def written(name: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path at which to write what users name; what is at an address is sent there when the block is done.

    What the address holds is fetched first, as a command may go on with it, or refuse to replace it. A block that fails
    sends nothing; its files stay in the cache, so that the same command can go on. UserError where nothing can be
    written.
    """
    with written_by_parts(name) as (path, _):
        yield path


@contextmanager
def written_by_parts(name: str | os.PathLike[str]) -> Iterator[tuple[Path, Send]]:
    """Do what `written` does, and yield a function too that sends a finished part of it at once.

    What was sent stays sent, also where the block fails later. The function raises what sending raises, UserError or
    OSError, after a short time; then the end of the block sends the part. Any thread may call it.
    """
    if not is_address(name):
        yield Path(name).expanduser(), lambda paths, last: None
        return
    store = Store(str(name))
    path = cached_path("written", store.address)
    busy = f"Another command on this machine is writing {name}. Wait for it, or give another address."
    with locked(path.with_name(f".{path.name}.writing"), busy, _WAY_OUT, str(path)):
        store.require_writable()
        mirror = Mirror(store, path)
        before = store.find()
        mirror.pull(before, keep_new=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        one_at_a_time = threading.Lock()

        def send(paths: Collection[Path], last: Collection[Path]) -> None:
            with one_at_a_time, store.briefly(BRIEFLY_S):
                names = mirror.names(*paths)
                mirror.push([each for each in names if mirror.local(each) not in last])
                mirror.push([each for each in names if mirror.local(each) in last])
                mirror.note_sent(store.find())

        yield path, send
        mirror.push([name for name in mirror.names() if "/" in name])
        mirror.push()  # what lies above, such as the record of an index, names what lies in folders
        store.delete([gone for gone in before if gone not in mirror.names() and not _is_hidden(gone)])
        mirror.note_sent(store.find())


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))

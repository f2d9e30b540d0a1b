"""Keep a run at an address of an object store, such as gs://bucket/run: `--workdir=gs://bucket/run`.

Each process works in a folder of its own in the cache, as hosts share no disk. Process 0 writes the run there, as it
does in a local run folder, and sends whole objects: a checkpoint's list of files last, so that it counts once it is
whole; metrics and all else every few seconds. At the start the store is the truth. Only a folder of the same run whose
last checkpoint is newer, as after a lost connection, is sent first.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from simcse_jax.hosts.agreement import broadcast, fail_together, is_first, processes
from simcse_jax.model_folder.frozen_base import BASE
from simcse_jax.model_folder.run_folder import FILE_LIST, complete_steps, require_intact
from simcse_jax.runs.folder import DRAFT, is_foreign, locked_folder, require_no_others
from simcse_jax.runs.store_lock import StoreLock
from simcse_jax.system.errors import Unreachable, UserError
from simcse_jax.system.json_file import read_json
from simcse_jax.system.mirror import Mirror, cached_path
from simcse_jax.system.object_store import Entry, Store, is_address
from simcse_jax.system.whole_file import write_whole_text

SEND_EVERY_S = 10.0  # metrics, curves and whatever else has changed
IDENTITY = ".run-id"  # an object that tells a run from another one at the same address
# What a start fetches of a run; all else in it is only written.
_READ = ("config.json", BASE, "resumed_from.json", "metrics.jsonl", "trackers.json")
_CHECKPOINTS = "checkpoints/"
_READ_FOLDERS = ("tokenizer/", "tensorboard/", "checkpoints/", "heldout/", "model/")
_READ_BY_OTHERS = ("config.json", BASE, "tokenizer/", "checkpoints/last/")
_BRIEF_S = 5.0  # for how long is tried again what need not be sent now, or is sent after an error


class StoredRun:
    """Hold one process's folder of a run at an address; process 0 also holds the lock, and sends what is written."""

    def __init__(self, address: str, say: Callable[[str], None]):
        self.store, self._say = Store(address, say), say
        self.address = self.store.address
        self.folder = cached_path("runs", f"process-{jax.process_index()} of {self.address}/{_own_name(self.address)}")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._mirror = Mirror(self.store, self.folder, _grows)
        self._identity = self.folder.with_name("run-id")
        self._lock = StoreLock(self.store, say)
        self._sending = threading.RLock()
        self._steps: dict[str, set[int]] = {"last": set(), "best": set()}  # that the store has, whole
        self._ended, self._is_ours, self._is_open = threading.Event(), False, False
        self._thread = threading.Thread(target=self._send_now_and_then, name="stored-run", daemon=True)

    def named(self, text: str) -> str:
        """Return a text with the address where it names the folder."""
        return text.replace(str(self.folder), self.address)

    # Process 0, at the start and the end.

    def open(self) -> None:
        """Take the lock, and make folder and store equal; UserError where the address holds something else."""
        top = self.store.top()
        if "config.json" not in top:
            require_no_others(self.address, sorted(name for name in top if is_foreign(name)))
        self._lock.acquire()
        self._is_ours = True
        entries = self.store.find()
        identity = self.store.read(IDENTITY)
        if identity is None:
            identity = secrets.token_hex(8).encode()
            self.store.write(IDENTITY, identity)
        if self._known_identity() != identity.decode():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._remove_incomplete(entries)
        self._mirror.forget_others(entries)
        self._steps = {kind: _complete(entries, kind) for kind in self._steps}
        if not self._send_what_is_ahead():
            self._pull(entries, (*_READ, *_READ_FOLDERS))
        write_whole_text(self._identity, identity.decode())
        self._is_open = True
        self._thread.start()

    def close(self, failed: bool) -> None:
        """Send what is left, and release the lock. failed: after an error, which counts more than what fails here.

        Where `open` has failed, the folder may be behind the store, and nothing of it is sent.
        """
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._is_ours:
            return
        self._lock.stop()
        with contextlib.ExitStack() as stack:
            if failed:
                stack.enter_context(suppress(Exception))
                stack.enter_context(self.store.briefly(_BRIEF_S))
            try:
                self._send_what_is_left()
            except Exception:
                with suppress(Exception), self.store.briefly(_BRIEF_S):
                    self._lock.release()
                raise
            self._lock.release()

    def _send_what_is_left(self) -> None:
        self._lock.require_own()
        if self._is_open and ((self.folder / "config.json").exists() or any(self._steps.values())):
            self._send()
        elif self._is_open:  # a run that was refused
            self.store.delete([IDENTITY])

    def _known_identity(self) -> str:
        with suppress(OSError):
            return self._identity.read_text(encoding="utf-8")
        return ""

    def _remove_incomplete(self, entries: dict[str, Entry]) -> None:
        """Delete what an interrupted save has left, and what processes shared at an interrupted start."""
        whole = {(kind, step) for kind in self._steps for step in _complete(entries, kind)}
        left = [name for name in entries if (at := _step_of(name)) and at not in whole]
        left += [name for name in entries if name.startswith(f"{DRAFT}/")]
        self.store.delete(left)
        for name in left:
            del entries[name]

    def _send_what_is_ahead(self) -> bool:
        """Send the folder where its last state is newer than the store's; return whether it was."""
        checkpoints = self.folder / "checkpoints"
        newest = max(complete_steps(checkpoints / "last"), default=-1)
        if newest <= max(self._steps["last"], default=-1):
            return False
        try:
            require_intact(checkpoints / "last" / str(newest))
        except (OSError, ValueError, UserError):
            return False
        self._say(
            f"step {newest} is in this machine's copy of the run, and not yet in {self.address}: it is sent first"
        )
        for kind in ("best", "last"):
            for step in complete_steps(checkpoints / kind):
                if step not in self._steps[kind]:
                    self.send_step(kind, step)
        return True

    # Other processes, at the start.

    def fetch(self) -> None:
        """Make this process's folder equal to the store, as far as it reads it."""
        self._pull(self.store.find(), _READ_BY_OTHERS)

    def _pull(self, entries: dict[str, Entry], wanted: tuple[str, ...]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / DRAFT, ignore_errors=True)
        chosen = {name: entry for name, entry in entries.items() if name.startswith(wanted)}
        for list_name in [name for name in chosen if name.endswith(f"/{FILE_LIST}") and _step_of(name)]:
            self._trust_step(list_name.removesuffix(FILE_LIST), chosen)
        self._mirror.pull(chosen)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _trust_step(self, prefix: str, entries: dict[str, Entry]) -> None:
        """Fetch no checkpoint that is here already, whole and with the same list of files, and any other one anew."""
        folder, of_step = self.folder / prefix, {n: entry for n, entry in entries.items() if n.startswith(prefix)}
        with suppress(OSError, ValueError, UserError):
            if (folder / FILE_LIST).read_bytes() == self.store.read(prefix + FILE_LIST):
                require_intact(folder)
                self._mirror.note_equal(of_step)
                return
        self._mirror.forget(of_step)

    # Process 0, while it trains.

    def _send_now_and_then(self) -> None:
        while not self._ended.wait(SEND_EVERY_S):
            # What fails is sent with the next checkpoint, which tells of it.
            with suppress(Exception), self._sending, self.store.briefly(_BRIEF_S):
                self._lock.require_own()
                self._send()

    def _send(self) -> None:
        """Send all files that have changed, and delete what is gone here, but for checkpoints."""
        with self._sending:
            self._require_folder()
            self._mirror.push([name for name in self._mirror.names() if not name.startswith(_CHECKPOINTS)])
            self._mirror.delete_gone(lambda name: not name.startswith(_CHECKPOINTS))

    def _require_folder(self) -> None:
        """Raise UserError where the folder was emptied from outside: nothing may be deleted in the store for that."""
        if any(self._steps.values()) and not (self.folder / "config.json").exists():
            raise UserError(
                f"{self.folder}, where this host works on {self.address}, was emptied while the run was at work.\nThe "
                "same command goes on from the last checkpoint there. Keep $SIMCSE_CACHE while runs are at work."
            )

    def send_step(self, kind: str, step: int) -> None:
        """Send a complete checkpoint, after the metrics before it, and delete those that are no longer kept.

        Its list of files goes last: without it, no checkpoint counts. UserError where another run has taken over;
        Unreachable after the limit.
        """
        with self._sending, self._kept():
            self._lock.require_own()
            self._send()
            prefix = f"checkpoints/{kind}/{step}/"
            self._mirror.push([prefix + name for name in read_json(self.folder / prefix / FILE_LIST)])
            self._mirror.push([prefix + FILE_LIST])
            self._steps[kind].add(step)
            self._delete_steps(kind, self._steps[kind] - {*complete_steps(self.folder / "checkpoints" / kind)})

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Say where the work is when the store is out of reach for too long."""
        try:
            yield
        except Unreachable as error:
            raise Unreachable(
                f"{error}\nAll that was saved is kept in {self.folder.parent} on {socket.gethostname()}: the same "
                "command there sends it first, and goes on with it. Elsewhere it goes on from the last checkpoint in "
                f"{self.address}."
            ) from error

    def set_aside(self, step: int, aside: Path) -> None:
        """Send a damaged state under the name that it has here now, and delete it where it was."""
        with self._sending:
            self._lock.require_own()
            prefix = f"checkpoints/{aside.name}/"
            self._mirror.push([name for name in self._mirror.names() if name.startswith(prefix)])
            self._delete_steps("last", {step})

    def _delete_steps(self, kind: str, steps: set[int]) -> None:
        for step in sorted(steps):
            prefix = f"checkpoints/{kind}/{step}/"
            self.store.delete([prefix + FILE_LIST])
            self.store.delete(self.store.find(prefix.rstrip("/")))
            self._steps[kind].discard(step)

    # All processes.

    def share_checkpoints(self) -> None:
        """Send the checkpoints that process 0 has put into its folder, and fetch them into those of the others."""
        with fail_together():
            if is_first():
                self._send_what_is_ahead()
        with fail_together():
            if not is_first():
                self.fetch()

    def share_tokenizer(self) -> None:
        """Give the tokenizer that process 0 has made, if it has, to the folders of the others, through the store."""
        if processes() == 1:
            return
        with fail_together():
            made = self.folder / DRAFT
            names = sorted(path.name for path in made.iterdir()) if is_first() and made.is_dir() else []
            with self._sending:  # which lets no other thread shorten the time that is tried for
                self.store.put_all({f"{DRAFT}/{name}": made / name for name in names})
        names = json.loads(broadcast(json.dumps(names)))
        with fail_together():
            if not is_first():
                self.store.get_all({f"{DRAFT}/{name}": self.folder / DRAFT / name for name in names})
        with fail_together():
            if is_first():
                with self._sending:
                    self.store.delete(f"{DRAFT}/{name}" for name in names)


@contextmanager
def run_folder(workdir: Path | str, say: Callable[[str], None] = print) -> Iterator[tuple[Path, StoredRun | None]]:
    """Keep other runs out of a run's folder or address during the block; yield the local folder, and the stored run.

    The latter is None for a local folder. Messages of errors name the address. All processes call this; UserError on
    all of them, when another run is at work there, or when it cannot be written.
    """
    if not is_address(workdir):
        with locked_folder(Path(workdir)):
            yield Path(workdir), None
        return
    with fail_together():
        stored = StoredRun(str(workdir), say if is_first() else lambda _: None)
    failed = True
    try:
        with fail_together():
            if is_first():
                stored.open()
        with fail_together():
            if not is_first():
                stored.fetch()
        yield stored.folder, stored
        failed = False
    except Exception as error:
        error.args = tuple(stored.named(text) if isinstance(text, str) else text for text in error.args)
        raise
    finally:
        with contextlib.nullcontext() if failed else fail_together():
            if is_first():
                stored.close(failed)


def _own_name(address: str) -> str:
    return address.rpartition("/")[2]


def _grows(name: str) -> bool:
    return name == "metrics.jsonl" or name.startswith("tensorboard/")


def _step_of(name: str) -> tuple[str, int] | None:
    """Return the kind and the step of the checkpoint that an object belongs to, None for others."""
    parts = name.split("/")
    is_step = len(parts) > 3 and parts[0] == "checkpoints" and parts[1] in ("last", "best")
    return (parts[1], int(parts[2])) if is_step and parts[2].isdecimal() else None


def _complete(entries: dict[str, Entry], kind: str) -> set[int]:
    """Return the steps of a kind whose list of files is there."""
    lists = [name for name in entries if name.startswith(f"checkpoints/{kind}/") and name.endswith(f"/{FILE_LIST}")]
    return {at[1] for name in lists if (at := _step_of(name)) and name.count("/") == 3}

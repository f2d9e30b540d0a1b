"""Keep a second run out of an address: an object names the run that holds it, and is renewed while that one lives."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from simcse_jax.system.errors import UserError
from simcse_jax.system.object_store import Store

NAME = ".lock"
BEAT_S = 15.0  # between two renewals
STALE_S = 60.0  # without one after which a run counts as dead
SETTLE_S = 1.0  # after a take-over, until it is certain that no other run has made the same
_held: set[str] = set()  # tokens of the runs that this process has at work


class StoreLock:
    """Hold an address for one run, from `acquire` to `release`; a thread renews the lock."""

    def __init__(self, store: Store, say: Callable[[str], None]):
        """say: called with lines on waiting for the sign of life of another run."""
        self._store, self._say = store, say
        self._renewed = Store(store.address, lambda _: None)  # which gives up sooner, and is silent
        self._renewed.retry_s = min(store.retry_s, BEAT_S)
        self._own: dict[str, Any] = {"token": secrets.token_hex(8), **_this_process()}
        self._beats, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="store-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock; UserError, with its holder, while another run is alive."""
        taken_over = False
        while not self._store.create(NAME, self._content()):
            holder = self._holder()
            if holder is None:
                continue  # released meanwhile
            self._require_dead(holder)
            self._store.delete([NAME])
            taken_over = True
        if taken_over:
            time.sleep(SETTLE_S)
        self.require_own()
        _held.add(self._own["token"])
        self._thread.start()

    def require_own(self, store: Store | None = None) -> None:
        """Raise UserError where another run has taken the lock, as it got no sign of life of this one."""
        holder = self._holder(store)
        if holder and holder["token"] != self._own["token"]:
            raise UserError(
                f"{self._store.address} was taken over by {_described(holder)}, which got no sign of life of this run "
                f"for {STALE_S:.0f} s.\nThis one ends; that one goes on from the last checkpoint there."
            )

    def stop(self) -> None:
        """Renew the lock no more."""
        _held.discard(self._own["token"])
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def release(self) -> None:
        """Give the lock back, unless another run has taken it."""
        self.stop()
        holder = self._holder()
        if holder and holder["token"] == self._own["token"]:
            self._store.delete([NAME])

    def _content(self) -> bytes:
        return json.dumps(self._own | {"beat": self._beats, "time": time.time()}).encode()

    def _holder(self, store: Store | None = None) -> dict[str, Any] | None:
        found = (store or self._store).read(NAME)
        if found is None:
            return None
        with suppress(ValueError):
            holder = json.loads(found)
            if isinstance(holder, dict) and isinstance(holder.get("token"), str):
                return holder
        return {"token": "", "host": "unknown"}

    def _require_dead(self, holder: dict[str, Any]) -> None:
        """Return once the holder is dead; UserError while it is alive.

        A process of this machine is asked for; another one is dead once it has not renewed the lock for `STALE_S`, by
        the clock of this machine.
        """
        alive = _is_alive(holder)
        if alive is None:
            self._say(f"note: {self._store.address} is held by {_described(holder)}; waiting {STALE_S:.0f} s for it")
            until = time.monotonic() + STALE_S
            while time.monotonic() < until:
                time.sleep(min(BEAT_S / 3, max(until - time.monotonic(), 0.0)))
                now = self._holder()
                if now is None:
                    return
                alive = now != holder
                if alive:
                    holder = now
                    break
        if alive:
            raise UserError(
                f"Another training is at work in {self._store.address}. Wait for it, stop it, or use "
                f"--workdir=ANOTHER.\nIt is {_described(holder)}."
            )

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._beats += 1
            with suppress(Exception):  # what is written next fails too, and says so
                self.require_own(self._renewed)
                self._renewed.write(NAME, self._content())


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "started": _started(os.getpid())}


def _machine() -> str:
    """Return what names this machine since it was started, and its space of process ids; "" where nothing does."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str:
    """Return when a process of this machine was started, in ticks; "" if there is none."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Return whether the holder lives, None where this machine cannot tell."""
    if not holder.get("machine") or holder["machine"] != _machine():
        return None
    if _started(int(holder["pid"])) != holder["started"] or not holder["started"]:
        return False
    # A run of this process may have ended while the store was out of reach, and left its lock.
    return int(holder["pid"]) != os.getpid() or holder["token"] in _held


def _described(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder['host']}"

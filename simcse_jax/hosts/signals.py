"""Turn SIGTERM and Ctrl-C into a request to save and stop, agreed by all processes of the run."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jax.experimental import multihost_utils

from simcse_jax.hosts.agreement import processes

# (step) -> the signal that asks for a stop at the end of this step, or None; called after every step
Stopping = Callable[[int], "int | None"]


@contextmanager
def stop_signals(say: Callable[[str], object]) -> Iterator[Stopping]:
    """Yield a function that returns, after each step, the signal by which all processes are to stop there, or None.

    One process: SIGTERM or SIGINT; a second signal has its usual effect. Several: JAX's preemption service, which
    listens for SIGTERM since the processes joined, and agrees with all on a step. A Python handler would replace it
    silently, so SIGTERM is left alone there, and Ctrl-C sends SIGTERM. say: told at once that the run will stop.
    """
    if processes() > 1:
        words = "stopping: the processes agree on a step, and save it first"
        to_all = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        with _announced(lambda: say(words)), _handled(to_all):
            yield lambda step: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    words = "stopping: this step is finished and saved first (a second signal ends the run unsaved)"
    with _announced(lambda: say(words)), _handled({signal.SIGTERM: note, signal.SIGINT: note}) as restore:
        yield lambda _: received[0] if received else None


@contextmanager
def _handled(handlers: dict[int, Any]) -> Iterator[Callable[[], None]]:
    """Set these signal handlers until the end of the block, or until the yielded function is called."""
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    with suppress(ValueError):  # not the main thread, which handles signals
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield restore
    finally:
        restore()


@contextmanager
def _announced(announce: Callable[[], object]) -> Iterator[None]:
    """Call `announce` from a thread at the first signal: Python's handlers wait until a step has run."""
    reader, writer = socket.socketpair()

    def listen() -> None:
        while signals := reader.recv(1):
            if signals[0] in (signal.SIGINT, signal.SIGTERM):
                announce()
                return

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    writer.setblocking(False)
    with suppress(RuntimeError):  # no further thread can start: nothing is said
        thread.start()
    try:
        with writer, _wakeup(writer.fileno()):
            yield
    finally:
        if thread.is_alive():
            thread.join()
        reader.close()


@contextmanager
def _wakeup(file: int) -> Iterator[None]:
    """Have the numbers of signals written to a file until the end of the block, if this is the main thread."""
    try:
        before = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)

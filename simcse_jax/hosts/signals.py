"""Turn SIGTERM and Ctrl-C into a request to save and stop, agreed by all processes of the run."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
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
    silently, so SIGTERM is left alone there, and Ctrl-C sends SIGTERM. say: told at once that a signal will stop the
    run; of several processes, of a Ctrl-C alone.
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

    words = "stopping: this step is finished and saved first (a further signal after this step ends the run unsaved)"
    with _announced(lambda: say(words)), _handled({signal.SIGTERM: note, signal.SIGINT: note}) as restore:
        yield lambda _: received[0] if received else None


@contextmanager
def _handled(handlers: Mapping[Any, Any]) -> Iterator[Callable[[], None]]:
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
                with suppress(BrokenPipeError):  # the next line that is shown meets it too
                    announce()
                return

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    writer.setblocking(False)
    with suppress(RuntimeError):  # no further thread can start: nothing is said
        thread.start()
    try:
        with _wakeup(writer.fileno()):
            yield
    finally:
        writer.shutdown(socket.SHUT_WR)  # a process that was forked meanwhile may hold it open
        writer.close()
        if thread.is_alive():
            thread.join()
        reader.close()


@contextmanager
def _wakeup(file: int) -> Iterator[None]:
    """Have the numbers of signals to this process written to a file, if this is the main thread."""
    try:
        before = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    except ValueError:
        yield
        return
    _announcing.append(file)
    try:
        yield
    finally:
        _announcing.remove(file)
        signal.set_wakeup_fd(before)


_announcing: list[int] = []  # files of `_wakeup`


def _forget_announcing() -> None:
    if _announcing:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_announcing)  # else its signals would be announced here

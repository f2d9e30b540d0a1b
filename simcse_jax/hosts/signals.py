"""Turn SIGTERM and Ctrl-C into a request to save and stop, agreed by all processes of the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jax.experimental import multihost_utils

from simcse_jax.hosts.agreement import processes

# (step) -> the signal that asks for a stop at the end of this step, or None; called after every step
Stopping = Callable[[int], "int | None"]


@contextmanager
def stop_signals() -> Iterator[Stopping]:
    """Yield a function that returns, after each step, the signal by which all processes are to stop there, or None.

    One process: SIGTERM or SIGINT; a second signal has its usual effect. Several: JAX's preemption service, which
    listens for SIGTERM since the processes joined, and agrees with all on a step. A Python handler would replace it
    silently, so SIGTERM is left alone there, and Ctrl-C sends SIGTERM.
    """
    if processes() > 1:
        with _handled({signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}):
            yield lambda step: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    with _handled({signal.SIGTERM: note, signal.SIGINT: note}) as restore:
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

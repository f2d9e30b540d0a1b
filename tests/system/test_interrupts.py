"""A Ctrl-C that Python ignores comes again: where a text was tokenised, nearly all were lost."""

import gc
import signal
import sys
import time

import pytest

from simcse_jax import cli
from simcse_jax.system.interrupts import interrupts_counted


def ignored_interrupt() -> None:
    """Let a Ctrl-C come within a callback of the garbage collector, such as JAX has; then wait for it."""

    def callback(phase: str, _: object) -> None:
        if phase == "stop":
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)
    time.sleep(60)


def test_in_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", cli._unraisable)
    with pytest.raises(KeyboardInterrupt):
        ignored_interrupt()


def test_in_a_block_of_a_program_with_a_hook_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: seen.append(failure.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    @interrupts_counted()
    def block() -> None:
        Broken()
        ignored_interrupt()

    with pytest.raises(KeyboardInterrupt):
        block()
    Broken()
    assert seen == [ValueError, ValueError]

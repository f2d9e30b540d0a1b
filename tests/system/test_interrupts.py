"""A Ctrl-C that Python ignores comes again: where a text was tokenised, nearly all were lost."""

import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simcse_jax import cli
from simcse_jax.system.interrupts import interrupts_counted

ROOT = Path(__file__).parents[2]


def ignored_interrupt() -> None:
    """Let a Ctrl-C come within a callback of the garbage collector, such as JAX has; then wait for it."""

    def callback(phase: str, _: object) -> None:
        if phase == "stop":
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)
    time.sleep(60)


def test_while_a_command_is_imported() -> None:
    line = "import simcse_jax.cli; from tests.system.test_interrupts import ignored_interrupt; ignored_interrupt()"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "KeyboardInterrupt" in done.stderr) == (-signal.SIGINT, True)


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

"""What every command does with its streams: closed ones, and encodings that lack a letter."""

import asyncio
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from simcse_jax import cli

ROOT = Path(__file__).parent.parent
COMMAND = """
import os, sys
from simcse_jax import cli

def main():
    print("a \\u4e2d \\udce9")
    print("b \\u4e2d", file=sys.stderr)
    return 3 if os.open(os.devnull, os.O_RDONLY) > 2 else 4  # else a library's messages would go into that file

cli.run(main)
"""


def run(redirected: str = "", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    line = f"{sys.executable} -c '{COMMAND.replace(chr(39), chr(34))}' {redirected}"
    return subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ | environment, capture_output=True)


def test_a_full_disk_and_a_reader_that_ends() -> None:
    done = run("> /dev/full")
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    assert b"No space left" in done.stderr
    for buffered in ("", "1"):
        done = run("| true; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=buffered)
        assert done.returncode == 128 + signal.SIGPIPE
        assert b"Error" not in done.stderr


def test_reports_to_an_event_loop_that_a_failed_save_has_closed_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", cli._unraisable)
    loop = asyncio.new_event_loop()
    loop.close()

    def lost(callback: Callable[..., object]) -> str:
        """Let native code call it, when an object goes; return what is printed."""
        seen = {1}
        reference = weakref.ref(seen, callback)
        del seen
        assert reference() is None
        return capsys.readouterr().err

    assert lost(loop.call_soon_threadsafe) == ""
    assert "Event loop is closed" in lost(lambda _: loop.call_soon_threadsafe(print))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    done = run(closed)
    assert done.returncode == 3, done.stderr
    assert (b"a " in done.stdout) == (" >&-" not in f" {closed}")


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rb"a \u4e2d "),
        ({"PYTHONIOENCODING": "latin-1"}, rb"a \u4e2d "),
        ({"LC_ALL": "C"}, "a 中 ".encode()),
    ],
)
def test_letters_that_the_terminal_lacks(variables: dict[str, str], printed: bytes) -> None:
    done = run(**variables)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(printed)

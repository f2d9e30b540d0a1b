"""Show how far long work has come: a bar on a terminal, a line every 30 seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

EVERY_S = 30.0  # seconds without a line after which a log gets one

Progress = Callable[[int], object]  # called with the number of items that were finished since the last call


class Bar(Protocol):
    """Count finished items for the reader; a context manager. `update` is a `Progress`."""

    def __enter__(self) -> Bar: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> bool | None: ...
    def update(self, n: int = 1) -> object: ...


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def progress_bar(
    total: int | None, shown: bool = True, what: str = "encoding", unit: str = "sentences", done: int = 0
) -> Bar:
    """Return a bar on a terminal or in a notebook, lines on standard error elsewhere, or nothing visible.

    total: the number of items, None if unknown. shown: False shows nothing. what, unit: the words of the bar
    and the lines. done: items that were finished before.
    """
    if shown and not (sys.stderr.isatty() or in_notebook()):
        return _Lines(total, what, unit, done)
    return tqdm(total=total, unit=f" {unit}", desc=what, initial=done, leave=False, disable=not shown)


class Heartbeat:
    """Print a line whenever none was printed for `EVERY_S` seconds, so that a log shows that work goes on.

    Of several in a process, the one that was entered last speaks: the innermost.
    """

    _last = 0.0  # when the process printed its last line
    _entered: ClassVar[list[Heartbeat]] = []

    def __init__(self, line: Callable[[], str], say: Callable[[str], object], goes_on: bool = False):
        """goes_on: count from the last line, not from the beginning: many short tasks in a row give lines too."""
        self._line, self._say, self._goes_on = line, say, goes_on
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Any:
        if not (self._goes_on and Heartbeat._last):
            self.beat()
        with suppress(RuntimeError):  # no further thread can start, and the work goes on
            self._thread.start()
            Heartbeat._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self in Heartbeat._entered:
            Heartbeat._entered.remove(self)
        if self._thread.is_alive():
            self._thread.join()

    @staticmethod
    def beat() -> None:
        """Note that a line was printed."""
        Heartbeat._last = time.monotonic()

    def _run(self) -> None:
        while not self._end.wait(max(Heartbeat._last + EVERY_S - time.monotonic(), EVERY_S / 100)):
            is_innermost = Heartbeat._entered[-1:] == [self]
            if is_innermost and time.monotonic() >= Heartbeat._last + EVERY_S:
                self.beat()
                self._say(self._line())


def while_doing(what: str) -> Heartbeat:
    """Return a context in which a line says every 30 seconds that this is still going on."""
    start = time.monotonic()
    return Heartbeat(lambda: f"{what} ... {duration(time.monotonic() - start)}", lambda line: print(line, flush=True))


class _Lines(Heartbeat):
    """Print a line when none was printed for `EVERY_S` seconds, also while a single item takes long."""

    def __init__(self, total: int | None, what: str, unit: str, done: int):
        super().__init__(self._describe, lambda line: print(line, file=sys.stderr, flush=True), goes_on=True)
        self._total, self._what, self._unit = total, what, unit
        self._first = self._done = done
        self._start = time.monotonic()

    def update(self, n: int = 1) -> None:
        self._done += n

    def _describe(self) -> str:
        seconds = time.monotonic() - self._start
        of = "" if self._total is None else f" of {self._total:,}"
        rate = (self._done - self._first) / max(seconds, 1e-9)
        speed = f", {rate:,.0f} per second" if rate >= 1 else ""
        return f"{self._what}: {self._done:,}{of} {self._unit} after {seconds:,.0f} s{speed}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

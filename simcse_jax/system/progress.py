"""Show how far long work has come: a bar on a terminal, a line every 30 seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from tqdm import tqdm

EVERY_S = 30.0  # seconds without a line after which a log gets one

Progress = Callable[[int], object]  # called with the number of items that were finished since the last call


class Bar(Protocol):
    """Count finished items for the reader; a context manager. `update` is a `Progress`."""

    def __enter__(self) -> Bar: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> bool | None: ...
    def update(self, n: int = 1) -> object: ...


def progress_bar(
    total: int | None, shown: bool = True, what: str = "encoding", unit: str = "sentences", done: int = 0
) -> Bar:
    """Return a bar on a terminal or in a notebook, lines on standard error elsewhere, or nothing visible.

    total: the number of items, None if unknown. shown: False shows nothing. what, unit: the words of the bar
    and the lines. done: items that were finished before. The time between lines is counted over all bars of the
    process, so that many short tasks in a row also give a line every `EVERY_S` seconds.
    """
    if shown and not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        return _Lines(total, what, unit, done)
    return tqdm(total=total, unit=f" {unit}", desc=what, initial=done, leave=False, disable=not shown)


class _Lines:
    """Print a line when none was printed for `EVERY_S` seconds, also while a single item takes long."""

    _last = 0.0  # when a bar printed its last line, or the first bar began

    def __init__(self, total: int | None, what: str, unit: str, done: int):
        self._total, self._what, self._unit = total, what, unit
        self._first = self._done = done
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"progress of {what}", daemon=True)

    def __enter__(self) -> _Lines:
        self._start = time.monotonic()
        _Lines._last = _Lines._last or self._start
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def update(self, n: int = 1) -> None:
        self._done += n

    def _run(self) -> None:
        while not self._end.wait(max(_Lines._last + EVERY_S - time.monotonic(), 0)):
            if time.monotonic() >= _Lines._last + EVERY_S:  # a bar within this one may have printed meanwhile
                _Lines._last = time.monotonic()
                print(self._line(_Lines._last - self._start), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        rate = (self._done - self._first) / max(seconds, 1e-9)
        speed = f", {rate:,.0f} per second" if rate >= 1 else ""
        return f"{self._what}: {self._done:,}{of} {self._unit} after {seconds:,.0f} s{speed}"

"""How long steps take, and how much of that is waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Time per step, without compilations, evaluations and saves; and the share of it spent waiting for data."""

    def __init__(self, sentences: int):
        self.sentences, self.seconds_per_step = sentences, 0.0
        self._wait_s, self._busy_s, self._steps, self._since = 0.0, 0.0, 0, time.monotonic()

    def skip(self) -> None:
        """Leave what happened since the last step out of the account."""
        self._since = time.monotonic()

    def step(self) -> None:
        now = time.monotonic()
        self._busy_s, self._steps, self._since = self._busy_s + now - self._since, self._steps + 1, now

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._wait_s += time.monotonic() - started

    def read(self) -> dict[str, float]:
        """Figures since the last reading: sentences per second (each once, however many views), waiting per step."""
        steps, busy, wait = max(self._steps, 1), max(self._busy_s, 1e-9), self._wait_s
        self.seconds_per_step = busy / steps
        self._wait_s, self._busy_s, self._steps = 0.0, 0.0, 0
        return {"sentences_per_s": self.sentences * steps / busy, "data_wait_s": wait / steps}

"""What several clients ask at once, done together: one thread, one call for many."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Full(Exception):
    """Too much waits already; the same may be asked again in a while."""


class TooSlow(Exception):
    """The time limit passed before there was an answer."""


class Stopped(Exception):
    """The batcher takes nothing any more."""


@dataclasses.dataclass(eq=False)
class _Job(Generic[Item, Result]):
    items: Sequence[Item]
    size: int
    future: Future[list[Result]]


class Batcher(Generic[Item, Result]):
    """Jobs of many clients, worked off in the order of their coming by one thread, several in one call.

    work: gives one result for each item, in order; called from that thread alone, so it need not be thread-safe.
    size: what an item counts for. most_together: the size of one call; a larger job has a call for itself.
    most_waiting: the size of all that waits; what would go above is refused, unless nothing waits.
    time_limit_s: how long a job may take, its waiting included.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        most_together: int,
        most_waiting: int,
        time_limit_s: float,
        size: Callable[[Item], int] = lambda _: 1,
    ):
        self._work, self._size = work, size
        self._most_together, self._most_waiting, self._time_limit_s = most_together, most_waiting, time_limit_s
        self._jobs: deque[_Job[Item, Result]] = deque()
        self._waiting = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more, finish what waits, and return when that is done. A second call does nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """The size of all that waits, without what is being done."""
        return self._waiting

    async def results(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item; raises what `work` raises for them, Full, TooSlow or Stopped.

        A caller that is cancelled takes its job out of the queue, unless it is being done already.
        """
        job = _Job[Item, Result](items, sum(map(self._size, items)), Future())
        with self._changed:
            if self._stopping:
                raise Stopped
            if self._jobs and self._waiting + job.size > self._most_waiting:
                raise Full
            self._jobs.append(job)
            self._waiting += job.size
            self._changed.notify()
        try:
            async with asyncio.timeout(self._time_limit_s) as limit:
                return await asyncio.wrap_future(job.future)
        except TimeoutError as error:
            if limit.expired():
                raise TooSlow from error
            raise  # `work` itself raised it
        finally:
            self._forget(job)

    def _forget(self, job: _Job[Item, Result]) -> None:
        """Make the room of a job that nobody waits for any more free at once, not when its turn comes."""
        with self._changed:
            if job.future.cancelled() and job in self._jobs:
                self._jobs.remove(job)
                self._waiting -= job.size

    def _loop(self) -> None:
        while jobs := self._next():
            self._do(jobs)

    def _next(self) -> list[_Job[Item, Result]]:
        """The jobs of the next call, when there are any; [] when there will be none."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                jobs, size = [], 0
                while self._jobs and (not jobs or size + self._jobs[0].size <= self._most_together):
                    job = self._jobs.popleft()
                    self._waiting -= job.size
                    if job.future.set_running_or_notify_cancel():
                        jobs.append(job)
                        size += job.size
                if jobs or (self._stopping and not self._jobs):
                    return jobs

    def _do(self, jobs: list[_Job[Item, Result]]) -> None:
        try:
            results = self._work([item for job in jobs for item in job.items])
        except Exception as error:
            if len(jobs) > 1:  # one of them is to blame; the others shall not suffer
                for job in jobs:
                    self._do([job])
                return
            log.exception("A call for %d items failed", len(jobs[0].items))
            jobs[0].future.set_exception(error)
            return
        at = 0
        for job in jobs:
            job.future.set_result(list(results[at : at + len(job.items)]))
            at += len(job.items)

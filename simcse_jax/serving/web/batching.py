"""What several clients ask at once, done together: one thread, one call for many."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
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
    waiting: int  # the size of the items that were not yet taken
    future: Future[list[Result]]  # cancelled once nobody waits for it
    taken: int = 0  # items that are done, or being done
    results: list[Result] = dataclasses.field(default_factory=list)


# Some items of a job, which are done in one call with others.
_Piece = tuple[_Job[Item, Result], Sequence[Item]]


class Batcher(Generic[Item, Result]):
    """Jobs of many clients, worked off by one thread, several in one call.

    work: gives one result for each item, in order; called from that thread alone, so it need not be thread-safe.
    size: what an item counts for. most_together: the size of one call. A larger job is done in pieces, others in
    between, and no further once nobody waits for it; so what one client asks for does not hold up the rest.
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

        A caller that is cancelled takes what is not yet done of its job out of the queue.
        """
        job = _Job[Item, Result](items, sum(map(self._size, items)), Future())
        with self._changed:
            if self._stopping:
                raise Stopped
            if self._jobs and self._waiting + job.waiting > self._most_waiting:
                raise Full
            self._jobs.append(job)
            self._waiting += job.waiting
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
            if job.future.done() and job in self._jobs:
                self._jobs.remove(job)
                self._waiting -= job.waiting

    def _loop(self) -> None:
        while pieces := self._next():
            self._do(pieces)

    def _next(self) -> list[_Piece[Item, Result]]:
        """The pieces of the next call, when there are any; [] when there will be none."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                pieces, room = [], self._most_together
                for _ in range(len(self._jobs)):
                    job = self._jobs[0]
                    if not job.future.done():
                        count, size = self._fitting(job, room, at_least=not pieces)
                        if not count:
                            break
                        pieces.append((job, job.items[job.taken : job.taken + count]))
                        job.taken, job.waiting = job.taken + count, job.waiting - size
                        self._waiting, room = self._waiting - size, room - size
                    self._jobs.popleft()
                    if job.future.done():
                        self._waiting -= job.waiting
                    elif job.taken < len(job.items):
                        self._jobs.append(job)  # behind the others
                if pieces or (self._stopping and not self._jobs):
                    return pieces

    def _fitting(self, job: _Job[Item, Result], room: int, at_least: bool) -> tuple[int, int]:
        """How many of the next items of a job fit, and their size; at_least: one does in any case."""
        count = total = 0
        for item in itertools.islice(job.items, job.taken, None):
            size = self._size(item)
            if total + size > room and not (at_least and not count):
                break
            count, total = count + 1, total + size
        return count, total

    def _do(self, pieces: list[_Piece[Item, Result]]) -> None:
        try:
            results = self._work([item for _, items in pieces for item in items])
        except Exception as error:
            if len(pieces) > 1:  # one of them is to blame; the others shall not suffer
                for piece in pieces:
                    self._do([piece])
                return
            log.exception("A call for %d items failed", len(pieces[0][1]))
            with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
                pieces[0][0].future.set_exception(error)
            return
        at = 0
        for job, items in pieces:
            job.results.extend(results[at : at + len(items)])
            at += len(items)
            if len(job.results) == len(job.items):
                with contextlib.suppress(InvalidStateError):
                    job.future.set_result(job.results)

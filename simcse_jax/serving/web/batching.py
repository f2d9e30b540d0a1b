"""Batch the requests of several clients: one thread calls the model for all of them."""

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
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from fastapi import HTTPException

from simcse_jax.serving.web.guard import Settings
from simcse_jax.serving.web.requests import check_texts

if TYPE_CHECKING:
    from simcse_jax.serving.index.sentence_index import Hit

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Full(Exception):
    """Report that too many items are waiting; the same call may succeed later."""


class TooSlow(Exception):
    """Report that the time limit passed before there was an answer."""


class Stopped(Exception):
    """Report that the batcher takes no more jobs."""


@dataclasses.dataclass(eq=False)
class _Job(Generic[Item, Result]):
    items: Sequence[Item]
    waiting: int  # the size of the items that were not taken yet
    future: Future[list[Result]]  # cancelled when its client is gone
    taken: int = 0  # items that are done or in the current call
    results: list[Result] = dataclasses.field(default_factory=list)


# A job, and those of its items that are in the current call.
_Piece = tuple[_Job[Item, Result], Sequence[Item]]


class Batcher(Generic[Item, Result]):
    """Do the jobs of many clients in one thread, several jobs in one call.

    work: returns one result for each item, in order; it is called from that thread only, so it need not be thread-safe.
    size: the size of an item. most_together: the size of one call. A larger job is done in pieces, with other jobs in
    between, and is dropped once its client is gone; so no client blocks the others. most_waiting: the size of all
    waiting items; a job that would exceed it is refused, unless nothing is waiting. time_limit_s: the time that a job
    may take, including its wait.
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
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more jobs, finish those that wait, and return then. A second call does nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Return the size of all waiting items, without those of the current call."""
        return self._waiting

    async def results(self, items: Sequence[Item]) -> list[Result]:
        """Return one result for each item; raises Full, TooSlow, Stopped, or what `work` raises for these items.

        If the caller is cancelled, the rest of its job leaves the queue.
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
        """Remove a job from the queue as soon as its client is gone."""
        with self._changed:
            if job.future.done() and job in self._jobs:
                self._jobs.remove(job)
                self._waiting -= job.waiting

    def _loop(self) -> None:
        while pieces := self._next():
            self._do(pieces)

    def _next(self) -> list[_Piece[Item, Result]]:
        """Wait for the pieces of the next call and return them; [] once the batcher has stopped."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                pieces, room = [], self._most_together
                for _ in range(len(self._jobs)):
                    job = self._jobs[0]
                    if not job.future.done():
                        count, size = self._fitting(job, room, at_least_one=not pieces)
                        if not count:
                            break
                        pieces.append((job, job.items[job.taken : job.taken + count]))
                        job.taken, job.waiting = job.taken + count, job.waiting - size
                        self._waiting, room = self._waiting - size, room - size
                    self._jobs.popleft()
                    if job.future.done():
                        self._waiting -= job.waiting
                    elif job.taken < len(job.items):
                        self._jobs.append(job)  # at the end of the queue
                if pieces or (self._stopping and not self._jobs):
                    return pieces

    def _fitting(self, job: _Job[Item, Result], room: int, at_least_one: bool) -> tuple[int, int]:
        """Return how many of a job's next items fit into `room`, and their size; with at_least_one, 1 or more."""
        count = total = 0
        for item in itertools.islice(job.items, job.taken, None):
            size = self._size(item)
            if total + size > room and not (at_least_one and not count):
                break
            count, total = count + 1, total + size
        return count, total

    def _do(self, pieces: list[_Piece[Item, Result]]) -> None:
        try:
            results = self._work([item for _, items in pieces for item in items])
        except Exception as error:
            if len(pieces) > 1:  # one job is to blame; the others must not fail
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


LONG = 1000  # characters; in the queue, a text counts once more for each of these


class Model(Protocol):
    """Define what the server needs of `SimCSE`; encode, count_tokens and index.search each run in one thread only."""

    @property
    def width(self) -> int: ...
    @property
    def index(self) -> Any: ...
    def encode(self, sentences: list[str]) -> np.ndarray: ...
    def count_tokens(self, sentences: list[str]) -> Any: ...  # integers, one for each text


class _Text(NamedTuple):
    text: str
    counted: bool = False


class _Query(NamedTuple):
    vector: np.ndarray
    top_k: int
    threshold: float | None


class BatchedModel:
    """Encode and search for many clients at once; start `encoding` and `searching` first, and stop them at the end."""

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        limits = (settings.max_together, settings.max_waiting, settings.time_limit_s)
        self.encoding = Batcher(self._encode, *limits, size=lambda item: 1 + len(item.text) // LONG)
        self.searching = Batcher(self._search, *limits)

    async def vectors(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of these texts, float32[N, D] of length 1."""
        check_texts(texts, self.settings)
        return np.stack([vector for vector, _ in await self.encoding.results([_Text(text) for text in texts])])

    async def counted_vectors(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Return the vectors, float32[N, D], and the number of tokens that the model read."""
        check_texts(texts, self.settings)
        found = await self.encoding.results([_Text(text, counted=True) for text in texts])
        return np.stack([vector for vector, _ in found]), sum(count for _, count in found)

    async def hits(self, texts: list[str], top_k: int, threshold: float | None) -> list[list[Hit]]:
        """Return the hits of each text, best first; raises HTTPException 409 without an index."""
        if self.model.index is None:
            words = "This server has no sentences to search. Start it with --corpus=FILE, or with a saved index."
            raise HTTPException(409, words)
        if top_k > self.settings.max_top_k:
            raise HTTPException(422, f"top_k is {top_k:,}; the limit is {self.settings.max_top_k:,}.")
        if len(texts) * top_k > self.settings.max_hits:
            words = f"{len(texts):,} queries with top_k {top_k:,} are up to {len(texts) * top_k:,} hits; the limit is"
            raise HTTPException(422, f"{words} {self.settings.max_hits:,}.")
        vectors = await self.vectors(texts)
        return await self.searching.results([_Query(vector, top_k, threshold) for vector in vectors])

    def _encode(self, items: list[_Text]) -> list[tuple[np.ndarray, int]]:
        vectors = self.model.encode([text for text, _ in items])
        counted = [text for text, counted in items if counted]
        counts = iter(self.model.count_tokens(counted) if counted else ())
        return [
            (vector, int(next(counts)) if counted else 0) for vector, (_, counted) in zip(vectors, items, strict=True)
        ]

    def _search(self, queries: list[_Query]) -> list[list[Hit]]:
        found: dict[int, list[Hit]] = {}
        for top_k in {query.top_k for query in queries}:  # a query with many hits does not slow down the others
            places = [n for n, query in enumerate(queries) if query.top_k == top_k]
            hits = self.model.index.search(np.stack([queries[n].vector for n in places]), top_k)
            found |= dict(zip(places, hits, strict=True))
        return [
            [hit for hit in found[n] if query.threshold is None or hit.score >= query.threshold]
            for n, query in enumerate(queries)
        ]

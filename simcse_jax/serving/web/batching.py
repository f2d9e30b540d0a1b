"""Batch the requests of several clients: one thread calls the model for all of them."""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from fastapi import HTTPException

from simcse_jax.serving.web.guard import Settings
from simcse_jax.serving.web.requests import check_texts, name_text
from simcse_jax.system.errors import UserError
from simcse_jax.system.texts import NoTokensError

if TYPE_CHECKING:
    from simcse_jax.serving.index.sentence_index import Hit

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Job(Generic[Item, Result]):
    left: Sequence[Item]  # items that were not taken yet
    waiting: int  # their size
    count: int  # of all items
    future: asyncio.Future[list[Result]]  # cancelled when its client is gone
    results: list[Result] = dataclasses.field(default_factory=list)


# A job, and those of its items that are in the current call.
_Piece = tuple[_Job[Item, Result], Sequence[Item]]


class Batcher(Generic[Item, Result]):
    """Do the jobs of many clients of one event loop in one thread, several jobs in one call.

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
        self._thread = ThreadPoolExecutor(1, "batcher")
        self._working: asyncio.Task[None] | None = None
        self._stopping = False
        self.started_s: float | None = None  # when the current call began, by the loop's clock; None between calls

    async def stop(self) -> None:
        """Take no more jobs, and finish those that wait."""
        self._stopping = True
        if self._working:
            await self._working
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """Return the size of all waiting items, without those of the current call."""
        return sum(job.waiting for job in self._jobs)

    async def results(self, items: Sequence[Item]) -> list[Result]:
        """Return one result for each item; raises HTTPException 503 or 504, or what `work` raises for these items.

        If the caller is cancelled, the rest of its job leaves the queue.
        """
        if self._stopping:
            raise HTTPException(503, "The server is stopping.")
        future = asyncio.get_running_loop().create_future()
        job = _Job[Item, Result](items, sum(map(self._size, items)), len(items), future)
        if self._jobs and self.waiting + job.waiting > self._most_waiting:
            raise HTTPException(503, "Too many texts are waiting for the model. Try again in a second.")
        self._jobs.append(job)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._do_all())
        try:
            if not (await asyncio.wait([future], timeout=self._time_limit_s))[0]:
                raise HTTPException(504, "There was no answer within the time limit. Try again, or send fewer texts.")
            return future.result()
        finally:
            future.cancel()
            if job in self._jobs:
                self._jobs.remove(job)

    async def _do_all(self) -> None:
        while pieces := self._next():
            await self._do(pieces)

    def _next(self) -> list[_Piece[Item, Result]]:
        """Take the items of the next call from the queue; [] if nothing waits."""
        self._jobs = deque(job for job in self._jobs if not job.future.done())  # the rest of a job that failed
        pieces, room = [], self._most_together
        for _ in range(len(self._jobs)):
            job = self._jobs[0]
            sizes = list(itertools.accumulate(map(self._size, job.left)))
            count = bisect.bisect(sizes, room) or (0 if pieces else 1)  # one item may exceed a call
            if not count:
                break
            pieces.append((job, job.left[:count]))
            job.left, job.waiting = job.left[count:], job.waiting - sizes[count - 1]
            room -= sizes[count - 1]
            self._jobs.popleft()
            if job.left:
                self._jobs.append(job)  # at the end of the queue
        return pieces

    async def _do(self, pieces: list[_Piece[Item, Result]]) -> None:
        items = [item for _, items in pieces for item in items]
        loop = asyncio.get_running_loop()
        self.started_s = loop.time()
        try:
            results = iter(await loop.run_in_executor(self._thread, self._work, items))
        except Exception as error:
            if len(pieces) > 1:  # one job is to blame; the others must not fail
                for piece in pieces:
                    await self._do([piece])
                return
            if not isinstance(error, NoTokensError):  # that is the client's fault
                log.exception("A call for %d items failed", len(items))
            if not pieces[0][0].future.done():  # else its client is gone
                pieces[0][0].future.set_exception(error)
            return
        finally:
            self.started_s = None
        for job, part in pieces:
            job.results.extend(itertools.islice(results, len(part)))
            if len(job.results) == job.count and not job.future.done():
                job.future.set_result(job.results)


CHECK_S = 1.0  # how long a model that encoded is taken to work
LONG = 1000  # characters; in the queue, a text counts once more for each of these


class Model(Protocol):
    """Define what the server needs of `SimCSE`; encode, count_tokens and index.search each run in one thread only."""

    @property
    def width(self) -> int: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def max_length(self) -> int: ...
    @property
    def prompts(self) -> Mapping[str, str]: ...
    @property
    def index(self) -> Any: ...
    def encode(self, sentences: list[str], *, prompt: str | None = None) -> np.ndarray: ...
    def count_tokens(self, sentences: list[str], cut: bool = True, prompt: str | None = None) -> Any: ...  # integers


class _Text(NamedTuple):
    text: str
    cut: bool | None  # whether its tokens are counted after cutting; None: they are not counted
    prompt: str | None  # put before it; None: the model's own


class _Query(NamedTuple):
    vector: np.ndarray
    top_k: int
    threshold: float | None


class BatchedModel:
    """Encode and search for many clients at once, until stopped."""

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        limits = (settings.max_together, settings.max_waiting, settings.time_limit_s)
        self.encoding = Batcher(self._encode, *limits, size=lambda item: 1 + len(item.text) // LONG)
        self.searching = Batcher(self._search, *limits)
        self._good_s = float("-inf")  # when vectors were last finite, by the loop's clock
        self._is_broken = False  # whether others came since

    async def stop(self) -> None:
        """Finish what waits; later calls raise HTTPException 503."""
        await self.encoding.stop()
        await self.searching.stop()

    async def vectors(
        self, texts: list[str], truncate: bool | None, counted: bool = False, prompt_name: str | None = None
    ) -> tuple[np.ndarray, int]:
        """Return the vectors of these texts, float32[N, D] of length 1; and, if counted, the tokens the model read.

        truncate: False refuses texts that would be cut. prompt_name: a prompt of the model that is put before each.
        Raises HTTPException 422 for texts that are refused or have no tokens and for an unknown name, and 500 for a
        vector that is not finite.
        """
        check_texts(texts, self.settings)
        prompts = self.model.prompts
        if prompt_name is not None and prompt_name not in prompts:
            words = f"prompt_name is {prompt_name:.80}; this model has {', '.join(prompts) or 'no prompts'}."
            raise HTTPException(422, words)
        prompt = None if prompt_name is None else prompts[prompt_name]
        cut = False if truncate is False else True if counted else None
        try:
            found, counts = zip(*await self.encoding.results([_Text(text, cut, prompt) for text in texts]), strict=True)
        except NoTokensError as error:
            raise HTTPException(422, str(error)) from error
        except UserError as error:  # the model itself refuses to give such a vector
            self._is_broken = True
            raise HTTPException(500, str(error)) from error
        vectors = np.stack(found)
        for number in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
            self._is_broken = True
            words = "has a vector that is not finite: the model's weights are broken."
            log.error("A text of %d characters %s", len(texts[number]), words)
            raise HTTPException(500, f"{name_text(int(number), texts)} {words}")
        self._good_s, self._is_broken = asyncio.get_running_loop().time(), False
        for number, count in enumerate(counts if truncate is False else ()):
            if count > self.model.max_length:
                words = f"has {count:,} tokens; the model's limit is {self.model.max_length:,}."
                raise HTTPException(422, f"{name_text(number, texts)} {words}")
        return vectors, sum(counts)

    async def check(self) -> None:
        """Raise HTTPException 503 unless the model encodes; tries it if it is idle and has not just done so."""
        now, started_s, limit_s = asyncio.get_running_loop().time(), self.encoding.started_s, self.settings.time_limit_s
        if started_s is not None and now - started_s > limit_s:
            raise HTTPException(503, f"The model has been busy with one call for more than {limit_s:g} s.")
        if not self._is_broken and (started_s is not None or now - self._good_s < CHECK_S):
            return
        try:
            await self.vectors(["A man is playing guitar."], truncate=None)
        except Exception as error:
            reason = error.detail if isinstance(error, HTTPException) else "The server's log says why."
            raise HTTPException(503, f"The model does not encode. {reason}") from error

    async def hits(
        self,
        texts: list[str],
        top_k: int,
        threshold: float | None,
        truncate: bool | None,
        prompt_name: str | None = None,
    ) -> list[list[Hit]]:
        """Return the hits of each text, best first; raises HTTPException 409 without an index."""
        if self.model.index is None:
            words = "This server has no sentences to search. Start it with --corpus=FILE, or with a saved index."
            raise HTTPException(409, words)
        if top_k > self.settings.max_top_k:
            raise HTTPException(422, f"top_k is {top_k:,}; the limit is {self.settings.max_top_k:,}.")
        if len(texts) * top_k > self.settings.max_hits:
            words = f"{len(texts):,} queries with top_k {top_k:,} are up to {len(texts) * top_k:,} hits; the limit is"
            raise HTTPException(422, f"{words} {self.settings.max_hits:,}.")
        vectors, _ = await self.vectors(texts, truncate, prompt_name=prompt_name)
        return await self.searching.results([_Query(vector, top_k, threshold) for vector in vectors])

    def _encode(self, items: list[_Text]) -> list[tuple[np.ndarray, int]]:
        found: list[Any] = [None] * len(items)
        for prompt in dict.fromkeys(item.prompt for item in items):
            places = [n for n, item in enumerate(items) if item.prompt == prompt]
            for n, vector in zip(
                places, self.model.encode([items[n].text for n in places], prompt=prompt), strict=True
            ):
                found[n] = vector, 0
        for cut, prompt in dict.fromkeys((item.cut, item.prompt) for item in items if item.cut is not None):
            places = [n for n, item in enumerate(items) if (item.cut, item.prompt) == (cut, prompt)]
            counts = self.model.count_tokens([items[n].text for n in places], bool(cut), prompt)
            for n, count in zip(places, counts, strict=True):
                found[n] = found[n][0], int(count)
        return found

    def _search(self, queries: list[_Query]) -> list[list[Hit]]:
        found: list[list[Hit]] = [[] for _ in queries]
        for wanted in {query[1:] for query in queries}:  # a query with many hits does not slow down the others
            places = [n for n, query in enumerate(queries) if query[1:] == wanted]
            hits = self.model.index.search(np.stack([queries[n].vector for n in places]), *wanted)
            for n, one in zip(places, hits, strict=True):
                found[n] = one
        return found

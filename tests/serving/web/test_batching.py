"""Batching: together but apart, in order, bounded, and done with when nobody waits."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import HTTPException

from simcse_jax.serving.web.batching import Batcher

pytestmark = pytest.mark.anyio
Task = asyncio.Task[list[int]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Doubler:
    """Doubles numbers while its gate is open; a negative one is an error."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        self.entered.set()
        assert self.gate.wait(30)
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


@asynccontextmanager
async def busy(
    first: Sequence[int] = (1,), together: int = 10, waiting: int = 10, limit_s: float = 20, **more: Any
) -> AsyncIterator[tuple[Batcher[int, int], Doubler, Task]]:
    """Yield a batcher, what it calls, and the job that it is doing while the gate is closed."""
    doubler = Doubler()
    batcher = Batcher(doubler, together, waiting, limit_s, **more)
    task = asyncio.create_task(batcher.results(first))
    assert await asyncio.to_thread(doubler.entered.wait, 30)
    try:
        yield batcher, doubler, task
    finally:
        doubler.gate.set()
        await batcher.stop()


async def queued(batcher: Batcher[int, int], *jobs: list[int]) -> list[Task]:
    tasks = [asyncio.create_task(batcher.results(items)) for items in jobs]
    await asyncio.sleep(0)
    return tasks


async def gone(task: Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def refused(batcher: Batcher[int, int], items: list[int], status: int) -> None:
    with pytest.raises(HTTPException) as caught:
        await batcher.results(items)
    assert caught.value.status_code == status


async def test_what_waits_is_done_together_and_each_gets_its_own() -> None:
    async with busy() as (batcher, doubler, first):
        rest = await queued(batcher, [2, 3], [4], [5, 6, 7])
        assert batcher.waiting == 6
        doubler.gate.set()
        assert await asyncio.gather(first, *rest) == [[2], [4, 6], [8], [10, 12, 14]]
        assert batcher.waiting == 0
    assert doubler.calls == [[1], [2, 3, 4, 5, 6, 7]]


async def test_a_call_has_a_size_and_a_larger_job_several_with_others_in_between() -> None:
    async with busy(together=4, waiting=100, size=lambda number: 1 + number // 10) as (batcher, doubler, _):
        rest = await queued(batcher, [2, 3], [20], [4], [5] * 9, [6], [50])
        doubler.gate.set()
        assert (await asyncio.gather(*rest))[3:] == [[10] * 9, [12], [100]]
    assert doubler.calls == [[1], [2, 3], [20, 4], [5] * 4, [6], [50], [5] * 4, [5]]


async def test_what_nobody_waits_for_any_more_is_done_no_further() -> None:
    async with busy(first=[1, 2, 3, 4, 5], together=2) as (batcher, doubler, large):
        leaves, stays = await queued(batcher, [6], [7])
        assert batcher.waiting == 5
        await gone(large)
        await gone(leaves)
        assert batcher.waiting == 1
        doubler.gate.set()
        assert await stays == [14]
    assert doubler.calls == [[1, 2], [7]]


async def test_a_full_queue_refuses_but_never_when_nothing_waits() -> None:
    async with busy(waiting=3) as (batcher, doubler, _):
        (large,) = await queued(batcher, [2] * 7)  # alone in the queue: taken, or it would never be
        await refused(batcher, [3], 503)
        doubler.gate.set()
        await large
        assert await batcher.results([3]) == [6]


async def test_the_time_limit_counts_the_waiting_and_frees_the_room() -> None:
    async with busy(limit_s=0.2) as (batcher, doubler, first):
        await refused(batcher, [2, 3], 504)
        assert batcher.waiting == 0
        with pytest.raises(HTTPException):
            await first
    assert doubler.calls == [[1]]


async def test_a_failure_is_its_own_jobs_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with busy(together=4) as (batcher, doubler, _):
        good, bad, also_good = await queued(batcher, [2], [-1, 4, 5, 6, 7], [3])
        doubler.gate.set()
        assert (await good, await also_good) == ([4], [6])
        with pytest.raises(ValueError, match="negative"):
            await bad
        assert batcher.waiting == 0
        assert await batcher.results([5]) == [10]  # and it lives on
    assert not any(6 in call for call in doubler.calls)  # the rest of what has failed
    assert "A call for 3 items failed" in caplog.text


async def test_stopping_finishes_what_waits_and_takes_no_more() -> None:
    async with busy() as (batcher, doubler, first):
        waiting, stopped = *await queued(batcher, [2]), asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        await refused(batcher, [3], 503)
        assert not stopped.done()
        doubler.gate.set()
        await stopped
        assert await asyncio.gather(first, waiting) == [[2], [4]]

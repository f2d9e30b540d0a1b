"""Batching: together but apart, in order, bounded, and done with when nobody waits."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from simcse_jax.serving.web.batching import Batcher, Full, Stopped, TooSlow


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


@pytest.fixture
def doubler() -> Iterator[Doubler]:
    made = Doubler()
    yield made
    made.gate.set()


@pytest.fixture
def batcher(doubler: Doubler) -> Iterator[Callable[..., Batcher[int, int]]]:
    """Yield a function that makes started batchers; stop them in the end."""
    made: list[Batcher[int, int]] = []

    def make(together: int = 10, waiting: int = 10, limit_s: float = 20, **more: Any) -> Batcher[int, int]:
        made.append(Batcher(doubler, together, waiting, limit_s, **more))
        made[-1].start()
        return made[-1]

    yield make
    doubler.gate.set()
    for each in made:
        each.stop()


async def _entered(doubler: Doubler) -> None:
    async with asyncio.timeout(60):
        while not doubler.entered.is_set():
            await asyncio.sleep(0.002)


async def _one_inside(batcher: Batcher[int, int], doubler: Doubler) -> "asyncio.Task[list[int]]":
    """Return a job that is being done, so that all later ones wait."""
    task = asyncio.create_task(batcher.results([1]))
    await _entered(doubler)
    return task


def test_what_waits_is_done_together_and_each_gets_its_own(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher()
        first = await _one_inside(one, doubler)
        rest = [asyncio.create_task(one.results(items)) for items in ([2, 3], [4], [5, 6, 7])]
        await asyncio.sleep(0.01)
        assert one.waiting == 6
        doubler.gate.set()
        assert await first == [2]
        assert await asyncio.gather(*rest) == [[4, 6], [8], [10, 12, 14]]
        assert one.waiting == 0

    asyncio.run(clients())
    assert doubler.calls == [[1], [2, 3, 4, 5, 6, 7]]


def test_a_call_has_a_size_and_a_larger_job_several_with_others_in_between(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher(together=4, waiting=100, size=lambda number: 1 + number // 10)
        first = await _one_inside(one, doubler)
        jobs = ([2, 3], [20], [4], [5] * 9, [6])
        rest = [asyncio.create_task(one.results(items)) for items in jobs]
        await asyncio.sleep(0.01)
        doubler.gate.set()
        assert (await asyncio.gather(first, *rest))[4] == [10] * 9

    asyncio.run(clients())
    assert doubler.calls == [[1], [2, 3], [20, 4], [5] * 4, [6, 5, 5, 5], [5, 5]]


def test_what_nobody_waits_for_any_more_is_done_no_further(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher(together=2)
        large = asyncio.create_task(one.results([1, 2, 3, 4, 5]))
        await _entered(doubler)
        assert one.waiting == 3
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        assert one.waiting == 0
        doubler.gate.set()
        assert await one.results([6]) == [12]

    asyncio.run(clients())
    assert doubler.calls == [[1, 2], [6]]


def test_a_full_queue_refuses_but_never_when_nothing_waits(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher(waiting=3)
        first = await _one_inside(one, doubler)
        large = asyncio.create_task(one.results([2] * 7))  # alone in the queue: taken, or it would never be
        await asyncio.sleep(0.01)
        with pytest.raises(Full):
            await one.results([3])
        doubler.gate.set()
        await asyncio.gather(first, large)
        assert await one.results([3]) == [6]

    asyncio.run(clients())


def test_the_time_limit_counts_the_waiting_and_frees_the_room(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher(waiting=2, limit_s=1)
        first = await _one_inside(one, doubler)
        with pytest.raises(TooSlow):
            await one.results([2, 3])
        assert one.waiting == 0
        with pytest.raises(TooSlow):
            await first

    asyncio.run(clients())
    doubler.gate.set()
    assert doubler.calls == [[1]]


def test_a_client_that_goes_is_skipped(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher()
        first = await _one_inside(one, doubler)
        gone, stays = asyncio.create_task(one.results([2])), asyncio.create_task(one.results([3]))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert one.waiting == 1
        doubler.gate.set()
        assert await asyncio.gather(first, stays) == [[2], [6]]

    asyncio.run(clients())
    assert doubler.calls == [[1], [3]]


def test_a_failure_is_its_own_jobs_alone(doubler: Doubler, batcher: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def clients() -> None:
        one = batcher()
        first = await _one_inside(one, doubler)
        rest = [asyncio.create_task(one.results(items)) for items in ([2], [-1], [3])]
        await asyncio.sleep(0.01)
        doubler.gate.set()
        await first
        good, bad, also_good = await asyncio.gather(*rest, return_exceptions=True)
        assert (good, also_good) == ([4], [6])
        assert isinstance(bad, ValueError)
        assert await one.results([5]) == [10]  # and it lives on

    asyncio.run(clients())
    assert "A call for 1 items failed" in caplog.text


def test_stopping_finishes_what_waits_and_takes_no_more(doubler: Doubler, batcher: Any) -> None:
    async def clients() -> None:
        one = batcher()
        first = await _one_inside(one, doubler)
        waiting = asyncio.create_task(one.results([2]))
        await asyncio.sleep(0.01)
        stopped = asyncio.create_task(asyncio.to_thread(one.stop))
        while not one._stopping:
            await asyncio.sleep(0.002)
        with pytest.raises(Stopped):
            await one.results([3])
        doubler.gate.set()
        await stopped
        assert await asyncio.gather(first, waiting) == [[2], [4]]
        one.stop()

    asyncio.run(clients())


def test_many_threads_and_loops_get_their_own_answers(doubler: Doubler, batcher: Any) -> None:
    doubler.gate.set()
    one = batcher(together=7, waiting=10_000)
    wrong: list[int] = []

    def client(number: int) -> None:
        async def ask() -> None:
            answers = [await one.results([number, turn]) for turn in range(20)]
            wrong.extend(number for turn in range(20) if answers[turn] != [2 * number, 2 * turn])

        asyncio.run(ask())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(map(len, doubler.calls)) == 16 * 20 * 2
    assert max(map(len, doubler.calls)) <= 7

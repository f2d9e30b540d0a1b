"""The step, compiled for every shape that a run can meet: when a batch needs it, or before, behind other steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from simcse_jax.data.batches import Batch, Rows
from simcse_jax.training.program import Program
from simcse_jax.training.step import TrainStep


class Compilations:
    """The compiled steps of a run, one for each of the row counts that its batches have.

    One thread compiles them one after another, in the order in which they were asked for. That is the same on every
    process, as it must be: compilers that share their findings between processes (a GPU's autotuning) wait for each
    other.
    """

    def __init__(self, program: Program, shapes: Callable[[Rows], Batch]):
        """shapes: row counts -> ShapeDtypeStructs of a batch."""
        self._program, self._shapes = program, shapes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps: dict[Rows, Future[TrainStep]] = {}
        self._told: set[Rows] = set()

    def begin(self, *row_counts: Rows) -> None:
        """Have these compiled, unless they are already.

        They are traced here, under the caller's own settings of JAX, which other threads do not have.
        """
        step: Any = self._program.train_step
        for rows in row_counts:
            if rows not in self._steps:
                self._steps[rows] = self._pool.submit(step.lower(self._program.shapes, self._shapes(rows)).compile)

    def ready(self, rows: Rows) -> bool:
        """Whether the step for these row counts can run at once."""
        return rows in self._steps and self._steps[rows].done()

    def step(self, rows: Rows) -> TrainStep:
        """The step for these row counts; waits until it is compiled. Raises what the compiler raised."""
        self.begin(rows)
        return self._steps[rows].result()

    def finished(self) -> int:
        """How many are compiled."""
        return sum(_ended(step) and not step.exception() for step in self._steps.values())

    def failures(self) -> list[tuple[Rows, BaseException]]:
        """(row counts, error) of those that did not compile; each once."""
        found = [(rows, error) for rows, step in self._steps.items() if _ended(step) and (error := step.exception())]
        new = [(rows, error) for rows, error in found if rows not in self._told]
        self._told |= {rows for rows, _ in new}
        return new

    def close(self) -> None:
        """Begin no further one. What is being compiled goes on; `cli.run` does not wait for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _ended(step: Future[Any]) -> bool:
    return step.done() and not step.cancelled()

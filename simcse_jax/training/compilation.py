"""The step, compiled for every shape that a run can meet: when a batch needs it, or before, behind other steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from simcse_jax.data.batches import Batch
from simcse_jax.training.program import Program
from simcse_jax.training.step import TrainStep


class Compilations:
    """The compiled step for each row count.

    One thread compiles them one after another, in the order in which they were asked for. That is the same on every
    process, as it must be: compilers that share their findings between processes (a GPU's autotuning) wait for each
    other.
    """

    def __init__(self, program: Program, shapes: Callable[[int], Batch]):
        """shapes: row count -> ShapeDtypeStructs of a batch."""
        self._program, self._shapes = program, shapes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps: dict[int, Future[TrainStep]] = {}

    def begin(self, *row_counts: int) -> None:
        """Have these compiled, unless they are already."""
        for rows in row_counts:
            if rows not in self._steps:
                self._steps[rows] = self._pool.submit(self._compile, rows)

    def ready(self, rows: int) -> bool:
        """Whether the step for this row count can run at once."""
        return rows in self._steps and self._steps[rows].done()

    def step(self, rows: int) -> TrainStep:
        """The step for this row count; waits until it is compiled. Raises what the compiler raised."""
        self.begin(rows)
        return self._steps[rows].result()

    def finished(self) -> int:
        """How many are compiled."""
        return sum(step.done() and not step.cancelled() for step in self._steps.values())

    def close(self) -> None:
        """Begin no further one. What is being compiled goes on; the interpreter's end waits for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, rows: int) -> TrainStep:
        step: Any = self._program.train_step
        return step.lower(self._program.shapes, self._shapes(rows)).compile()

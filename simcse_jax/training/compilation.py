"""The step, compiled for every shape that a run can meet: the first while the run waits, the others behind steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from simcse_jax.data.batches import Batch
from simcse_jax.training.program import Program
from simcse_jax.training.step import TrainStep


class Compilations:
    """The compiled step for each row count.

    One thread compiles them one after another, in the same order on every process: compilers that share their findings
    between processes (a GPU's autotuning) wait for each other.
    """

    def __init__(self, program: Program, shapes: Callable[[int], Batch], row_counts: Iterable[int], first: int):
        """shapes: row count -> ShapeDtypeStructs of a batch; first: the row count that is needed at once."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        step: Any = program.train_step

        def compiled(rows: int) -> TrainStep:
            return step.lower(program.shapes, shapes(rows)).compile()

        ordered = [first, *(rows for rows in row_counts if rows != first)]
        self._steps: dict[int, Future[TrainStep]] = {rows: self._pool.submit(compiled, rows) for rows in ordered}

    def ready(self, rows: int) -> bool:
        """Whether the step for this row count can run at once."""
        return self._steps[rows].done()

    def step(self, rows: int) -> TrainStep:
        """The step for this row count; waits until it is compiled. Raises what the compiler raised."""
        return self._steps[rows].result()

    def finished(self) -> int:
        """How many are compiled."""
        return sum(step.done() and not step.cancelled() for step in self._steps.values())

    def close(self) -> None:
        """Begin no further one. What is being compiled goes on; the interpreter's end waits for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

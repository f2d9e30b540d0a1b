"""A trace of some steps of a run, for Perfetto and TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

# Traced, counted from the start of the process: past the first compilations, and before the loop compiles ahead.
FIRST, LAST = 11, 15


class Profile:
    """Traces the steps FIRST to LAST of this process into a folder; nothing without one. Use as a context."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        """say: takes lines on where the trace is and how to look at it."""
        self._folder, self._say = folder, say
        self._taken, self._tracing = 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._stop()
        elif self._folder and self._taken < FIRST:
            self._say(f"no profile was written: it begins with a run's {FIRST}th step, and this one had {self._taken}")

    def step(self, step: int) -> AbstractContextManager[Any]:
        """The context in which a step is dispatched; step: its number, for the trace."""
        self._taken += 1
        if self._folder and self._taken == FIRST:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would be most of the trace, and slow it down
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
            self._tracing = True
        if not self._tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def dispatched(self, figures: Any) -> bool:
        """To be called after each step; figures: its results, which the last traced one has to be waited for.

        Whether tracing began or ended with this step, so that it is no measure of a step's time.
        """
        if self._tracing and self._taken == LAST:
            jax.block_until_ready(figures)
            self._stop()
        return self._folder is not None and self._taken in (FIRST, LAST)

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        self._say(
            f"a trace of steps is in {self._folder}: open its perfetto_trace.json.gz at https://ui.perfetto.dev, or\n"
            f"tensorboard --logdir={self._folder}  # pip install tensorboard tensorboard-plugin-profile"
        )

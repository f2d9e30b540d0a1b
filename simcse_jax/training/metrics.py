"""Measure a run: metrics.jsonl and TensorBoard, time per step, a profile of some steps."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax

from simcse_jax.system.whole_file import write_whole_text

# Significant digits of a figure: what the numbers hold.
FLOAT32_DIGITS, FLOAT64_DIGITS = 7, 16


class MetricsWriter:
    """Appends figures to `metrics.jsonl`, one object a line with its `step`, and to `tensorboard/`."""

    def __init__(self, workdir: Path, resumed_step: int | None, digits: int = FLOAT32_DIGITS):
        """resumed_step: figures of later steps are dropped, as these are about to run again; None = a new run."""
        self._digits = digits
        from tensorboardX import SummaryWriter  # imports PyTorch where there is one: seconds, and only writing needs it

        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _keep_until(path, -1 if resumed_step is None else resumed_step)
        if resumed_step is None:
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)  # of a run that never came to a checkpoint
        self._file = path.open("a", encoding="utf-8")
        purge = None if resumed_step is None else resumed_step + 1
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge, flush_secs=10)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one line, and one TensorBoard scalar a figure."""
        line: dict[str, Any] = {"step": step}
        line.update({name: _rounded(value, self._digits) for name, value in figures.items()})
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMetrics:
    """The writer of a process whose figures another one writes."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        pass

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics.jsonl; a line cut by a kill is left out."""
    path = workdir / "metrics.jsonl"
    return _parsed(path.read_text(encoding="utf-8")) if path.exists() else []


def _parsed(text: str) -> list[dict[str, Any]]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _keep_until(path: Path, step: int) -> None:
    """Rewrite the file without the lines of later steps, whole or not at all."""
    if not path.exists():
        return
    kept = [line for line in _parsed(path.read_text(encoding="utf-8")) if line["step"] <= step]
    write_whole_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _rounded(value: float, digits: int) -> float | None:
    """So many significant digits; null for what JSON has no word for."""
    return float(f"{float(value):.{digits}g}") if math.isfinite(value) else None


class Clock:
    """Time per step, without compilations, evaluations and saves; and the share of it spent waiting for data."""

    def __init__(self, sentences: int):
        self.sentences, self.seconds_per_step = sentences, 0.0
        self._wait_s, self._busy_s, self._steps, self._since = 0.0, 0.0, 0, time.monotonic()

    def skip(self) -> None:
        """Leave what happened since the last step out of the account."""
        self._since = time.monotonic()

    def step(self) -> None:
        now = time.monotonic()
        self._busy_s, self._steps, self._since = self._busy_s + now - self._since, self._steps + 1, now

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._wait_s += time.monotonic() - started

    def read(self) -> dict[str, float]:
        """Figures since the last reading: sentences per second (each once, however many views), waiting per step."""
        steps, busy, wait = max(self._steps, 1), max(self._busy_s, 1e-9), self._wait_s
        self.seconds_per_step = busy / steps
        self._wait_s, self._busy_s, self._steps = 0.0, 0.0, 0
        return {"sentences_per_s": self.sentences * steps / busy, "data_wait_s": wait / steps}


# Traced, counted from the start of the process: past the first compilations, and before the loop compiles ahead.
FIRST_TRACED, LAST_TRACED = 11, 15


class Profile:
    """Trace some steps of this process into a folder; nothing without one. Use as a context."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        """say: takes lines on where the trace is and how to look at it."""
        self._folder, self._say = folder, say
        self._taken, self._tracing = 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._stop()
        elif self._folder and self._taken < FIRST_TRACED:
            self._say(
                f"no profile was written: it begins with a run's {FIRST_TRACED}th step, and this one had {self._taken}"
            )

    def step(self, step: int) -> AbstractContextManager[Any]:
        """The context in which a step is dispatched; step: its number, for the trace."""
        self._taken += 1
        if self._folder and self._taken == FIRST_TRACED:
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
        if self._tracing and self._taken == LAST_TRACED:
            jax.block_until_ready(figures)
            self._stop()
        return self._folder is not None and self._taken in (FIRST_TRACED, LAST_TRACED)

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        self._say(
            f"a trace of steps is in {self._folder}: open its perfetto_trace.json.gz at https://ui.perfetto.dev, or\n"
            f"tensorboard --logdir={self._folder}  # pip install tensorboard tensorboard-plugin-profile"
        )

"""Record a run: metrics.jsonl and TensorBoard, time per step, a profile of some steps."""

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

from simcse_jax.system.whole_file import write_whole_text

FLOAT32_DIGITS, FLOAT64_DIGITS = 7, 16  # significant digits of a metric that are written
# Steps that a profile traces, counted from the start of the process: after the first compilations, and before the loop
# compiles ahead.
FIRST_TRACED, LAST_TRACED = 11, 15


class MetricsWriter:
    """Append metrics to `metrics.jsonl`, one object a line with its `step`, and to `tensorboard/`."""

    def __init__(self, workdir: Path, resumed_step: int | None, digits: int = FLOAT32_DIGITS):
        """resumed_step: lines of later steps are dropped, as these are about to run again; None in a new run."""
        self._digits = digits
        from tensorboardX import SummaryWriter  # imports PyTorch where there is one: seconds, and only writing needs it

        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _keep_until(path, -1 if resumed_step is None else resumed_step)
        if resumed_step is None:
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)  # of a run that had no checkpoint
        self._file = path.open("a", encoding="utf-8")
        purge = None if resumed_step is None else resumed_step + 1
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge, flush_secs=10)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, and one TensorBoard scalar for each metric."""
        line: dict[str, Any] = {"step": step}
        line.update({name: _rounded(value, self._digits) for name, value in metrics.items()})
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMetrics:
    """Write nothing: for all processes but the first, which writes the metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return every whole line of a run's metrics.jsonl; a line that a kill has cut is left out."""
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
    """Rewrite the file without the lines of later steps."""
    if not path.exists():
        return
    kept = [line for line in _parsed(path.read_text(encoding="utf-8")) if line["step"] <= step]
    write_whole_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _rounded(value: float, digits: int) -> float | None:
    """Return the value with so many significant digits, None for NaN and infinity, which JSON does not have."""
    return float(f"{float(value):.{digits}g}") if math.isfinite(value) else None


class Clock:
    """Measure the time per step, without compilations, evaluations and saves, and the wait for data in it."""

    def __init__(self, sentences: int):
        """sentences: the number in each step."""
        self.sentences, self.seconds_per_step = sentences, 0.0
        self._wait_s, self._busy_s, self._steps, self._since = 0.0, 0.0, 0, time.monotonic()

    def skip(self) -> None:
        """Do not count the time since the last step."""
        self._since = time.monotonic()

    def step(self) -> None:
        """Count the time since the last step as that of one step."""
        now = time.monotonic()
        self._busy_s, self._steps, self._since = self._busy_s + now - self._since, self._steps + 1, now

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.monotonic()
        yield
        self._wait_s += time.monotonic() - started

    def read(self) -> dict[str, float]:
        """Return sentences per second (however many views) and seconds of waiting a step since the last call."""
        steps, busy, wait = max(self._steps, 1), max(self._busy_s, 1e-9), self._wait_s
        self.seconds_per_step = busy / steps
        self._wait_s, self._busy_s, self._steps = 0.0, 0.0, 0
        return {"sentences_per_s": self.sentences * steps / busy, "data_wait_s": wait / steps}


class Profile:
    """Trace some steps of this process into a folder, for Perfetto and TensorBoard. A context manager."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        """folder: None to trace nothing. say: called with lines on where the trace is and how to look at it."""
        self._folder, self._say = folder, say
        self._taken, self._tracing = 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._stop()
        elif self._folder and self._taken < FIRST_TRACED:
            self._say(
                f"no profile was written: tracing begins at step {FIRST_TRACED} of a start, and this had {self._taken}"
            )

    def step(self, step: int) -> AbstractContextManager[Any]:
        """Return the context in which this step is to be dispatched."""
        import jax  # not at the top: others read metrics from this file, and need no JAX

        self._taken += 1
        if self._folder and self._taken == FIRST_TRACED:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would be most of the trace, and slow it down
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
            self._tracing = True
        if not self._tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def dispatched(self, metrics: Any) -> bool:
        """Return whether tracing began or ended with this step, whose time then means nothing. Call it after each step.

        metrics: the step's results, for which the last traced step waits.
        """
        import jax

        if self._tracing and self._taken == LAST_TRACED:
            jax.block_until_ready(metrics)
            self._stop()
        return self._folder is not None and self._taken in (FIRST_TRACED, LAST_TRACED)

    def _stop(self) -> None:
        import jax

        self._tracing = False
        jax.profiler.stop_trace()
        self._say(
            f"a trace of steps is in {self._folder}: open its perfetto_trace.json.gz at https://ui.perfetto.dev, or\n"
            f"tensorboard --logdir={self._folder}  # pip install tensorboard tensorboard-plugin-profile"
        )


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

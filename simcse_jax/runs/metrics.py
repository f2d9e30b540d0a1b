"""Record a run: metrics.jsonl, TensorBoard and trackers, time per step, a profile of some steps."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from simcse_jax.runs.trackers import Trackers
from simcse_jax.system.errors import short
from simcse_jax.system.whole_file import write_whole_text, writing

OF_SOURCE = "loss/"  # begins the name of the loss of a source's batches
FLOAT32_DIGITS, FLOAT64_DIGITS = 7, 16  # significant digits of a metric that are written
# Steps that a profile traces, counted from the start of the process: after the first compilations, and before the loop
# compiles ahead.
FIRST_TRACED, LAST_TRACED = 11, 15


class MetricsWriter:
    """Append metrics to `metrics.jsonl`, one object a line with its `step`, and to `tensorboard/`; tell the trackers.

    A context manager. None of them may stop a run: what cannot be written is a warning, once.
    """

    def __init__(
        self,
        workdir: Path,
        resumed_step: int | None,
        say: Callable[[str], None],
        digits: int = FLOAT32_DIGITS,
        trackers: Trackers | None = None,
    ):
        """resumed_step: lines of later steps are dropped, as these are about to run again; None in a new run."""
        self._digits, self._say, self._warned, self._trackers = digits, say, False, trackers
        path, board = workdir / "metrics.jsonl", workdir / "tensorboard"
        with writing(path, "Make the run folder writable; the same command goes on."):
            workdir.mkdir(parents=True, exist_ok=True)
            if path.exists():
                kept, foreign = _parsed(path)
                if foreign:
                    say(f"warning: {foreign} lines of {path} were no metrics, and are gone")
                kept = [line for line in kept if line["step"] <= (-1 if resumed_step is None else resumed_step)]
                write_whole_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
        if resumed_step is None:
            shutil.rmtree(board, ignore_errors=True)  # of a run that had no checkpoint
        self._board: _Board | None = None
        with self._without_board():
            self._board = _Board(board, resumed_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, and one TensorBoard scalar for each metric."""
        line = {"step": step} | {name: _rounded(value, self._digits) for name, value in metrics.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # what does not go out stays in the buffer, for the next time
        except OSError as error:
            if not self._warned:
                self._say(f"warning: {self._file.name} cannot be written, and the training goes on: {error.strerror}")
            self._warned = True
        if self._board is not None:
            with self._without_board():
                self._board.write(step, metrics)
        if self._trackers is not None:
            self._trackers.write(step, metrics)

    @contextmanager
    def _without_board(self) -> Iterator[None]:
        """Go on without TensorBoard when the block fails."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (of a file system, or of the library)
            self._board = None
            self._say(f"warning: there will be no more curves for TensorBoard; metrics.jsonl has all: {short(error)}")

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # `write` has told of it
            self._file.close()
        with suppress(Exception):
            if self._board is not None:
                self._board.close()


class _Board:
    """Write scalars for TensorBoard, in the calling thread.

    tensorboardX's `SummaryWriter` gives them to a thread. When that dies, as on a full disk, `add_scalar` waits for
    ever.
    """

    def __init__(self, folder: Path, resumed_step: int | None):
        # Not at the top: it imports PyTorch where there is one, which takes seconds.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        events: Any = event_pb2
        self._event, self._scalar = events.Event, summary.scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{resumed_step or 0}")  # names have the second only
        if resumed_step is not None:  # TensorBoard forgets the steps that run again
            start = events.SessionLog(status=events.SessionLog.START)
            self._writer.write_event(self._event(wall_time=time.time(), step=resumed_step + 1, session_log=start))
        self._writer.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            scalar = self._scalar(name if "/" in name else f"train/{name}", value)
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=scalar))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return every metric line of a run's metrics.jsonl; other lines, and one that a kill has cut, are left out."""
    path = workdir / "metrics.jsonl"
    return _parsed(path)[0] if path.exists() else []


def _parsed(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the metrics, and the number of other lines; an unfinished last line is none."""
    found, others = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        metrics = None
        with suppress(ValueError, RecursionError):
            metrics = json.loads(line)
        if isinstance(metrics, dict) and type(metrics.get("step")) is int:
            found.append(metrics)
        else:
            others += line.endswith("\n")
    return found, others


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

    def __init__(self, folder: Path | None, say: Callable[[str], None], skip: Callable[[], None]):
        """folder: None to trace nothing. say: called with lines on the trace; skip: after what takes time of a step."""
        self._folder, self._say, self._skip = folder, say, skip
        self._taken, self._tracing = 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder and self._taken < FIRST_TRACED:
            self._say(
                f"no profile was written: tracing begins at step {FIRST_TRACED} of a start, and this had {self._taken}"
            )
        self._stop()

    def step(self, step: int) -> AbstractContextManager[Any]:
        """Return the context in which this step is to be dispatched."""
        import jax  # not at the top: others read metrics from this file, and need no JAX

        self._taken += 1
        if self._folder and self._taken == FIRST_TRACED:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would be most of the trace, and slow it down
            with self._warning():
                jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
                self._tracing = True
        if self._taken == LAST_TRACED + 2:  # the metrics of the last one have been fetched by now
            self._stop()
        if not self._tracing or self._taken > LAST_TRACED:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def _stop(self) -> None:
        import jax

        if self._tracing:
            self._tracing = False
            with self._warning():
                jax.profiler.stop_trace()
                self._say(
                    f"a trace of steps is in {self._folder}: open its perfetto_trace.json.gz at https://ui.perfetto.dev"
                    f", or\ntensorboard --logdir={self._folder}  # pip install tensorboard tensorboard-plugin-profile"
                )

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """Say what goes wrong with a trace, which is no reason to stop."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (of a file system, or of the profiler)
            self._say(f"warning: no profile was written: {short(error)}")
        self._skip()

"""The queue: jobs as subprocesses on this machine, what they print into a file beside each run folder."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from simcse_jax.sweeping.folder import Lock
from simcse_jax.sweeping.jobs import Job, Step
from simcse_jax.training.metrics import duration

_POLL_S = 0.1
_TAIL = 12  # lines of a failed command's output
_TAIL_BYTES = 8192


class Ended(NamedTuple):
    """How a queue ended."""

    failed: list[Job]
    signal: int | None  # the signal that stopped it; None when every job had its turn


class _Running(NamedTuple):
    job: Job
    step: Step
    process: subprocess.Popen[bytes]
    since: float  # when the job began, time.monotonic()


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    lock: Lock,
    say: Callable[[str], None],
    told: Callable[[Job], str] = lambda _: "",
) -> Ended:
    """Run what is left of the jobs, so many at a time. SIGINT and SIGTERM go to the runs, which save; then it ends.

    say: takes lines on what is going on; told: what is worth saying of a finished job. A job that fails stops no other.
    """
    return _Queue(jobs, parallel, lock, say, told).run()


class _Queue:
    def __init__(
        self,
        jobs: Sequence[Job],
        parallel: int,
        lock: Lock,
        say: Callable[[str], None],
        told: Callable[[Job], str],
    ):
        self.waiting = [job for job in jobs if not job.done]
        self.total, self.parallel, self.lock, self.say, self.told = len(self.waiting), parallel, lock, say, told
        self.running: list[_Running] = []
        self.failed: list[Job] = []
        self.finished: list[float] = []  # seconds that each took
        self.signal: int | None = None
        if len(jobs) > self.total:
            say(f"{len(jobs) - self.total} of {len(jobs)} runs are finished")

    def run(self) -> Ended:
        with self._signals():
            while self.running or (self.waiting and self.signal is None):
                while self.waiting and len(self.running) < self.parallel and self.signal is None:
                    self._next_step(self.waiting.pop(0), time.monotonic())
                self._collect()
                time.sleep(_POLL_S)
        return Ended(self.failed, self.signal)

    def _next_step(self, job: Job, since: float) -> None:
        """Start the first step that is not done; without one, the job is finished."""
        step = next((step for step in job.steps if not step.done), None)
        if step is None:
            self._finish(job, since)
            return
        job.run.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"{job.name}: {step.name} ... (output: {job.log})")
        with job.log.open("ab") as log:
            # A process group of its own: Ctrl-C in a terminal would else reach it twice, and the second one kills.
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=(self.lock.handle,),
            )
        self.running.append(_Running(job, step, process, since))
        if self.signal is not None:  # it came in between
            process.send_signal(self.signal)
        self._tell()

    def _collect(self) -> None:
        """Take the commands that have ended out of the running ones, and go on with their jobs."""
        for each in [each for each in self.running if each.process.poll() is not None]:
            self.running.remove(each)
            self._tell()
            status = each.process.returncode
            if status == 0:
                each.step.record()
                if self.signal is None or all(step.done for step in each.job.steps):
                    self._next_step(each.job, each.since)
            elif self.signal is None:
                self._fail(each.job, each.step, status)

    def _finish(self, job: Job, since: float) -> None:
        job.clear()
        self.finished.append(time.monotonic() - since)
        left = self.total - len(self.finished) - len(self.failed)
        ahead = left * sum(self.finished) / len(self.finished) / self.parallel
        about = f", about {duration(ahead)} to go" if left else ""
        figure = f": {told}" if (told := self.told(job)) else ""
        self.say(f"[{self._ended()}/{self.total}] {job.name}{figure}, in {duration(self.finished[-1])}{about}")

    def _fail(self, job: Job, step: Step, status: int) -> None:
        self.failed.append(job)
        how = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
        self.say(f"[{self._ended()}/{self.total}] {job.name} FAILED: {step.name} {how}. Its last lines ({job.log}):")
        self.say("\n".join(f"    {line}" for line in last_lines(job.log)))

    def _ended(self) -> int:
        return len(self.finished) + len(self.failed)

    def _tell(self) -> None:
        self.lock.tell(each.process.pid for each in self.running)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within, SIGINT and SIGTERM are passed on to what runs, and nothing new is started."""

        def pass_on(number: int, _: object) -> None:
            self.signal = number
            for each in self.running:
                if each.process.poll() is None:
                    each.process.send_signal(number)

        previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def last_lines(path: Path) -> list[str]:
    """The last lines of a file that are not empty."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - _TAIL_BYTES, 0))
        text = file.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-_TAIL:]

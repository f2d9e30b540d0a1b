"""Run the jobs of a sweep: each trains, and judges, one row with one seed.

A job is the commands of `train` and `evaluate`, so it may run here as subprocesses or elsewhere as a line of shell. A
file in its run folder marks each command that has ended well, and a command that is marked is not run again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.config.recipe import override_flags
from simcse_jax.evaluation.scores_json import SCORES
from simcse_jax.sweeping.plan import Judging, Row, SweepPlan
from simcse_jax.sweeping.rows import SEED
from simcse_jax.system.errors import UserError
from simcse_jax.training.metrics import duration

# By the value of --keep: folders of a finished run that are deleted.
DELETED = {"all": (), "model": ("checkpoints",), "scores": ("checkpoints", "model")}
LOCK = ".lock"
_POLL_S = 0.1
_TAIL_LINES = 12  # of a failed command's output
_TAIL_BYTES = 8192


class Command(NamedTuple):
    """Hold one command of a job. It is done once `mark` holds `digest`."""

    name: str
    arguments: list[str]
    mark: Path
    digest: str

    @property
    def done(self) -> bool:
        """Return whether the command has ended well with these settings."""
        try:
            return self.mark.read_text(encoding="utf-8").strip() == self.digest
        except OSError:
            return False

    def record(self) -> None:
        """Mark it as done."""
        self.mark.write_text(f"{self.digest}\n", encoding="utf-8")

    @property
    def line(self) -> str:
        """Return a line of shell that runs the command and marks it, unless it is marked."""
        mark = shlex.quote(str(self.mark))
        return (
            f"{{ grep -qsx {self.digest} {mark} || "
            f"{{ {shlex.join(self.arguments)} && echo {self.digest} > {mark}; }}; }}"
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """Hold one run of a sweep."""

    recipe: str
    row: Row
    seed: int
    run: Path  # its run folder
    judging: Judging
    deletes: tuple[str, ...] = ()  # folders of the run folder, deleted when all is done

    @property
    def name(self) -> str:
        """Return the name for messages."""
        return f"{self.row.label}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """Return the file with the output of the commands."""
        return self.run.with_name(f"{self.run.name}.log")

    @property
    def evaluation(self) -> Path:
        """Return the folder that `evaluate` writes."""
        return self.run / "evaluation"

    @property
    def scores(self) -> Path:
        """Return the file of scores that `evaluate` writes."""
        return self.evaluation / SCORES

    @property
    def commands(self) -> list[Command]:
        """Return the commands of the job, in order."""
        digest = _digest([self.row.identity, self.seed])
        flags = [*override_flags(self.row.overrides), f"--config.{SEED}={self.seed}"]
        train = _module("train", f"--config={self.recipe}", f"--workdir={self.run}", *flags)
        commands = [Command("train", train, self.run / "sweep-trained", digest)]
        if self.judging.asked:
            asked = [self.judging.tasks, self.judging.pairs, self.judging.fast]
            flags = [
                *([f"--tasks={self.judging.tasks}"] if self.judging.tasks else []),
                *([f"--data={self.judging.data}"] if self.judging.data else []),
                *(f"--pairs={source}" for source in self.judging.pairs),
                *(["--fast"] if self.judging.fast else []),
            ]
            judge = _module("evaluate", f"--model={self.run / 'model'}", f"--out={self.evaluation}", *flags)
            commands.append(Command("evaluate", judge, self.run / "sweep-judged", _digest([digest, *asked])))
        return commands

    @property
    def trained(self) -> bool:
        """Return whether the run is trained."""
        return self.commands[0].done

    @property
    def judged(self) -> bool:
        """Return whether the run is to be judged, and is."""
        return self.judging.asked and self.commands[1].done

    @property
    def undeleted(self) -> list[Path]:
        """Return the folders that are to be deleted and are still there."""
        return [self.run / name for name in self.deletes if (self.run / name).exists()]

    @property
    def done(self) -> bool:
        """Return whether nothing of the job is left to do."""
        return all(command.done for command in self.commands) and not self.undeleted

    def delete(self) -> None:
        """Delete the folders that are not to be kept."""
        for folder in self.undeleted:
            shutil.rmtree(folder)

    @property
    def line(self) -> str:
        """Return a line of shell that does the rest of the job, and nothing when all is done."""
        delete = [shlex.join(["rm", "-rf", *(str(self.run / name) for name in self.deletes)])] if self.deletes else []
        return " && ".join([*(command.line for command in self.commands), *delete])


def make_jobs(folder: Path, plan: SweepPlan, keep: str = "all") -> list[Job]:
    """Return a job for every row and seed, all rows of one seed together, so that early tables compare all rows."""
    seeds = sorted({seed for row in plan.rows for seed in row.seeds})
    return [
        Job(plan.recipe, row, seed, folder / row.folder / f"seed-{seed}", plan.judging, DELETED[keep])
        for seed in seeds
        for row in plan.rows
        if seed in row.seeds
    ]


def require_models(jobs: list[Job]) -> None:
    """Raise UserError when a run is to be judged whose model was deleted."""
    lost = [
        job for job in jobs if job.judging.asked and job.trained and not job.judged and not (job.run / "model").is_dir()
    ]
    if lost:
        raise UserError(
            f"{lost[0].run} is to be judged, and its model was deleted by --keep=scores (as in {len(lost)} of "
            f"{len(jobs)} runs).\nDelete those run folders to train them again, or judge as before."
        )


class Lock:
    """Hold the lock of a sweep folder. Commands that inherit `handle` hold it too, so a sweep finds those left over."""

    def __init__(self, handle: int):
        self.handle = handle

    def note_running(self, processes: Iterable[int]) -> None:
        """Write which commands are running, for a sweep that finds the folder locked."""
        pids = " ".join(map(str, [os.getpid(), *processes]))
        text = f"{pids} on {socket.gethostname()}".encode()
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text, 0)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Lock the folder for this process and its runs; UserError while another sweep, or a run of it, is at work."""
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is in use by another sweep, or by a run that a killed sweep has left behind: processes "
                f"{path.read_text(encoding='utf-8') or 'unknown'}.\n"
                "Wait for it, or end those that still run with `kill`: they save first. Then try again."
            ) from error
        except OSError:
            pass  # a file system without locks
        lock = Lock(handle)
        lock.note_running(())
        yield lock
    finally:
        os.close(handle)


class SweepOutcome(NamedTuple):
    """Hold how the jobs ended."""

    failed: list[Job]
    signal: int | None  # the signal that stopped them; None when every job had its turn


class _Running(NamedTuple):
    job: Job
    command: Command
    process: subprocess.Popen[bytes]
    since: float  # when the job began, time.monotonic()


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    lock: Lock,
    say: Callable[[str], None],
    score_of: Callable[[Job], str] = lambda _: "",
) -> SweepOutcome:
    """Run the rest of the jobs, `parallel` at a time; their output goes to a file beside each run folder.

    say: takes lines on what happens; score_of: a finished job's score in words. A job that fails stops no other.
    SIGINT and SIGTERM are passed on to the runs, which save; then no further job starts.
    """
    return _Queue(jobs, parallel, lock, say, score_of).run()


class _Queue:
    def __init__(
        self,
        jobs: Sequence[Job],
        parallel: int,
        lock: Lock,
        say: Callable[[str], None],
        score_of: Callable[[Job], str],
    ):
        self.waiting = [job for job in jobs if not job.done]
        self.total, self.parallel, self.lock = len(self.waiting), parallel, lock
        self.say, self.score_of = say, score_of
        self.running: list[_Running] = []
        self.failed: list[Job] = []
        self.durations_s: list[float] = []  # of the finished jobs
        self.signal: int | None = None
        if len(jobs) > self.total:
            say(f"{len(jobs) - self.total} of {len(jobs)} runs are finished")

    def run(self) -> SweepOutcome:
        with self._passing_signals_on():
            while self.running or (self.waiting and self.signal is None):
                while self.waiting and len(self.running) < self.parallel and self.signal is None:
                    self._start_next_command(self.waiting.pop(0), time.monotonic())
                self._collect()
                time.sleep(_POLL_S)
        return SweepOutcome(self.failed, self.signal)

    def _start_next_command(self, job: Job, since: float) -> None:
        """Start the first command that is not done; without one, the job is finished."""
        command = next((command for command in job.commands if not command.done), None)
        if command is None:
            self._finish(job, since)
            return
        job.run.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"{job.name}: {command.name} ... (output: {job.log})")
        with job.log.open("ab") as log:
            # In a process group of its own: Ctrl-C in a terminal would else reach it twice, and the second one kills.
            process = subprocess.Popen(
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=(self.lock.handle,),
            )
        self.running.append(_Running(job, command, process, since))
        if self.signal is not None:  # it came since the last check
            process.send_signal(self.signal)
        self._note_running()

    def _collect(self) -> None:
        """Remove the commands that have ended, and continue their jobs."""
        for each in [each for each in self.running if each.process.poll() is not None]:
            self.running.remove(each)
            self._note_running()
            status = each.process.returncode
            if status == 0:
                each.command.record()
                if self.signal is None or all(command.done for command in each.job.commands):
                    self._start_next_command(each.job, each.since)
            elif self.signal is None:
                self._fail(each.job, each.command, status)

    def _finish(self, job: Job, since: float) -> None:
        job.delete()
        self.durations_s.append(time.monotonic() - since)
        left = self.total - self._ended()
        ahead_s = left * sum(self.durations_s) / len(self.durations_s) / self.parallel
        about = f", about {duration(ahead_s)} to go" if left else ""
        score = f": {score}" if (score := self.score_of(job)) else ""
        self.say(f"[{self._ended()}/{self.total}] {job.name}{score}, in {duration(self.durations_s[-1])}{about}")

    def _fail(self, job: Job, command: Command, status: int) -> None:
        self.failed.append(job)
        how = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
        self.say(f"[{self._ended()}/{self.total}] {job.name} FAILED: {command.name} {how}. Its last lines ({job.log}):")
        self.say("\n".join(f"    {line}" for line in last_lines(job.log)))

    def _ended(self) -> int:
        return len(self.durations_s) + len(self.failed)

    def _note_running(self) -> None:
        self.lock.note_running(each.process.pid for each in self.running)

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on to the running commands, and start nothing new after one."""

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
    """Return the last non-empty lines of a file."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - _TAIL_BYTES, 0))
        text = file.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _module(name: str, *flags: str) -> list[str]:
    """Return the command that runs an entry point, from the folder that this command is run from."""
    here = Path(sys.executable)
    python = str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else sys.executable
    return [python, "-m", f"simcse_jax.{name}", *flags]

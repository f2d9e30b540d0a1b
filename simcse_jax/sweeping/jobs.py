"""Run the jobs of a sweep: each trains, and judges, one row with one seed.

A job is the commands of `train` and `evaluate`, so it may run here as subprocesses or elsewhere as a line of shell. A
file in its run folder marks each command that has ended well, and a command that is marked is not run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.config.recipe import override_flags
from simcse_jax.evaluation.kinds import parse_task
from simcse_jax.evaluation.scores_json import SCORES
from simcse_jax.sweeping.plan import Judging, PlanRow, SweepPlan
from simcse_jax.sweeping.rows import SEED
from simcse_jax.system import whole_file
from simcse_jax.system.errors import UserError, short
from simcse_jax.system.mirror import Send
from simcse_jax.system.progress import duration
from simcse_jax.system.whole_file import Lock, writing

# By the value of --keep: folders of a finished run that are deleted.
DELETED = {"all": (), "model": ("checkpoints",), "scores": ("checkpoints", "model")}
LOCK = ".lock"
WAY_OUT = "Give a folder that you can write with --workdir=DIR."
# A run saves on the first two; a terminal that closes sends the third to the sweep alone.
_PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
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
            return self.mark.read_text(encoding="utf-8", errors="replace").strip() == self.digest
        except OSError:
            return False

    def record(self) -> None:
        """Mark it as done."""
        with writing(self.mark, WAY_OUT):
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
    row: PlanRow
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
                *(f"--{kind}={source}" for kind, source in map(parse_task, self.judging.pairs)),
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


def lock_sweep(folder: Path) -> AbstractContextManager[Lock]:
    """Lock a sweep folder for this process and its runs, which inherit the lock, so that a sweep finds those left over.

    Raises UserError while another sweep, or a run of it, is at work.
    """
    busy = (
        f"{folder} is in use by another sweep, or by a run that a killed sweep has left behind.\n"
        "Wait for it, or end those that still run with `kill`: they save first. Then try again."
    )
    return whole_file.locked(folder / LOCK, busy, WAY_OUT, f"--workdir={folder}")


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    lock: Lock,
    say: Callable[[str], None],
    score_of: Callable[[Job], str] = lambda _: "",
    keep: Callable[[Job], None] = lambda _: None,
) -> tuple[list[Job], int | None]:
    """Run the rest of the jobs, `parallel` at a time; their output goes to a file beside each run folder.

    Returns the jobs that failed, and the signal that stopped the rest, None where every job had its turn. Signals
    are passed on to the runs, which save; then no further command starts. A job that fails stops no other.

    say: called with lines on what happens. score_of: returns a finished job's score in words. keep: called with each
    job once all of it is done, by the thread of the job.
    """
    runner = _Runner(jobs, parallel, lock, say, score_of, keep)
    with runner.passing_signals_on(), ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(runner.run, runner.waiting):
            pass
    return runner.failed, runner.signal


def keeping(plan: Path, send: Send, say: Callable[[str], None]) -> Callable[..., None]:
    """Return a function that sends the run folders of finished jobs, beside the plan, to where the sweep is kept.

    The marks of a job go last. What cannot be sent is said, and sent with the next job.
    """
    unsent: list[Job] = []

    def keep(*finished: Job) -> None:
        unsent.extend(finished)
        now = list(unsent)
        try:
            send(
                [plan, *(path for job in now for path in (job.run, job.log))],
                [command.mark for job in now for command in job.commands],
            )
        except (UserError, OSError) as error:
            say(f"note: {now[-1].name} is not sent yet, and will be with the next: {short(error)}")
        else:
            unsent[:] = [job for job in unsent if job not in now]

    return keep


class _Runner:
    """Run jobs, each in a thread that waits for its commands."""

    def __init__(
        self,
        jobs: Sequence[Job],
        parallel: int,
        lock: Lock,
        say: Callable[[str], None],
        score_of: Callable[[Job], str],
        keep: Callable[[Job], None],
    ):
        self.waiting = [job for job in jobs if not job.done]
        self.parallel, self.lock, self.say, self.score_of, self.keep = parallel, lock, say, score_of, keep
        self.running: set[subprocess.Popen[bytes]] = set()
        self.signal: int | None = None
        self.changing = threading.RLock()  # held to start a command and to pass a signal on: each gets a signal once
        self.reporting = threading.Lock()
        self.failed: list[Job] = []
        self.durations_s: list[float] = []  # of the finished jobs
        if len(jobs) > len(self.waiting):
            say(f"{len(jobs) - len(self.waiting)} of {len(jobs)} runs are finished")

    def run(self, job: Job) -> None:
        """Run the commands that are not done, until one fails or a signal comes."""
        since = time.monotonic()
        for command in job.commands:
            if command.done:
                continue
            if self.signal is not None:
                return
            with self.reporting:
                self.say(f"{job.name}: {command.name} ... (output: {job.log})")
            status = self._status_of(job, command)
            if status == 0:
                command.record()
            elif self.signal is not None:
                return
            else:
                how = f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"
                lines = "".join(f"\n    {line}" for line in last_lines(job.log))
                self._report(job, failure=f"{command.name} {how}. Its last lines ({job.log}):{lines}")
                return
        job.delete()
        self._report(job, took_s=time.monotonic() - since)
        self.keep(job)

    def _status_of(self, job: Job, command: Command) -> int:
        """Run a command and return its exit status; that of the signal where one came before it started."""
        with self.changing:
            if self.signal is not None:
                return -self.signal
            with writing(job.log, WAY_OUT):
                job.run.parent.mkdir(parents=True, exist_ok=True)
                log = job.log.open("ab")
            with log:
                # In a process group of its own: Ctrl-C in a terminal would else reach it twice, and the second kills.
                process = subprocess.Popen(
                    command.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    pass_fds=(self.lock.handle,),
                )
            self.running.add(process)
            self._note_running()
        status = process.wait()
        with self.changing:
            self.running.remove(process)
            self._note_running()
        return status

    def _note_running(self) -> None:
        self.lock.note_holders(*(process.pid for process in self.running))

    def _report(self, job: Job, took_s: float = 0.0, failure: str = "") -> None:
        """Count a job that has ended, and say how."""
        with self.reporting:
            if failure:
                self.failed.append(job)
            else:
                self.durations_s.append(took_s)
            total, ended = len(self.waiting), len(self.durations_s) + len(self.failed)
            name = f"[{ended}/{total}] {job.name}"
            if failure:
                self.say(f"{name} FAILED: {failure}")
                return
            ahead_s = (total - ended) * sum(self.durations_s) / len(self.durations_s) / self.parallel
            about = f", about {duration(ahead_s)} to go" if ended < total else ""
            score = f": {score}" if (score := self.score_of(job)) else ""
            self.say(f"{name}{score}, in {duration(took_s)}{about}")

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """Pass signals on to the running commands, SIGHUP as SIGTERM, and start nothing new after one."""

        def pass_on(number: int, _: object) -> None:
            self.signal = number
            with self.changing:
                for process in self.running:
                    process.send_signal(_PASSED_ON[signal.Signals(number)])

        heard = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        previous = {number: signal.signal(number, pass_on) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def last_lines(path: Path) -> list[str]:
    """Return the last non-empty lines of a file."""
    text = path.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _module(name: str, *flags: str) -> list[str]:
    """Return the command that runs an entry point, from the folder that this command is run from."""
    here = Path(sys.executable)
    python = str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else sys.executable
    return [python, "-m", f"simcse_jax.{name}", *flags]

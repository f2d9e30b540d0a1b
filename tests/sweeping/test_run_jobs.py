"""Jobs run in order, resume, fail alone, several at a time, and get signals: each a line of shell here."""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest

from simcse_jax.sweeping.jobs import Job, keeping, last_lines, lock_sweep, run_jobs
from tests.sweeping.made_sweep import shell_job


def queue(
    folder: Path, jobs: Sequence[Job], parallel: int = 1, keep: Callable[[Job], None] = lambda _: None
) -> tuple[tuple[list[Job], int | None], str]:
    """Run the jobs; return how they ended, and what was said."""
    said: list[str] = []
    with lock_sweep(folder) as lock:
        ended = run_jobs(jobs, parallel, lock, said.append, lambda job: f"figure {job.seed}", keep)
    return ended, "\n".join(said)


def started_count(jobs: Sequence[Job], name: str = "count") -> list[int]:
    return [len((job.run / name).read_text()) for job in jobs]


def test_steps_in_order_and_nothing_twice(tmp_path: Path) -> None:
    lines = ("printf x >> count; mkdir checkpoints", "test -d checkpoints && printf x >> judged")
    jobs = [shell_job(tmp_path, seed, *lines, drop=("checkpoints",)) for seed in range(3)]
    ended, said = queue(tmp_path, jobs)
    assert ended == ([], None)
    assert "[1/3] row, seed 0: figure 0, in 0:00, about 0:0" in said
    assert "[3/3] row, seed 2: figure 2" in said
    assert all(job.done for job in jobs)
    assert not any((job.run / "checkpoints").exists() for job in jobs)
    (jobs[1].run / "mark1").unlink()  # as if it had been killed before that
    (jobs[1].run / "checkpoints").mkdir()
    ended, said = queue(tmp_path, jobs)
    assert ended == ([], None)
    assert "2 of 3 runs are finished" in said
    assert started_count(jobs) == [1, 1, 1]
    assert started_count(jobs, "judged") == [1, 2, 1]


def test_what_cannot_be_sent_is_sent_with_the_next_and_stops_nothing(tmp_path: Path) -> None:
    jobs = [shell_job(tmp_path, seed, "true", "true") for seed in range(3)]
    sent: list[tuple[list[Path], list[Path]]] = []

    def send(paths: Collection[Path], last: Collection[Path]) -> None:
        sent.append(([*paths], [*last]))
        if len(sent) == 1:
            raise FileNotFoundError("gone")

    said: list[str] = []
    keep = keeping(tmp_path / "plan", send, said.append)
    assert queue(tmp_path, jobs, keep=keep)[0] == ([], None)
    assert said == ["note: row, seed 0 is not sent yet, and will be with the next: FileNotFoundError: gone"]
    of = [[path for job in some for path in (job.run, job.log)] for some in (jobs[:1], jobs[:2], jobs[2:])]
    assert [paths for paths, _ in sent] == [[tmp_path / "plan", *paths] for paths in of]
    assert sent[2][1] == [command.mark for command in jobs[2].commands]


def test_a_failure_shows_its_last_lines_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = [
        shell_job(tmp_path, 0, "for n in $(seq 40); do echo line $n; done; echo >&2; exit 3", "true"),
        shell_job(tmp_path, 1, "kill -9 $$"),
        shell_job(tmp_path, 2, "true"),
    ]
    kept: list[Job] = []
    ended, said = queue(tmp_path, jobs, keep=kept.append)
    assert ended == (jobs[:2], None)
    assert kept == [jobs[2]]
    assert "[1/3] row, seed 0 FAILED: step0 ended with status 3" in said
    assert "    line 40" in said
    assert "line 28\n" not in said
    assert "FAILED: step0 was ended by SIGKILL" in said
    assert [job.done for job in jobs] == [False, False, True]
    assert last_lines(jobs[0].log)[-1] == "line 40"


def test_several_at_a_time(tmp_path: Path) -> None:
    # Each waits for the other, which never comes if they run one after the other.
    jobs = [
        shell_job(tmp_path, seed, f"touch here; for n in $(seq 100); do test -e ../seed-{1 - seed}/here && exit 0; "
                  "sleep 0.1; done; exit 1")
        for seed in range(2)
    ]  # fmt: skip
    assert queue(tmp_path, jobs, parallel=2)[0] == ([], None)


@pytest.mark.parametrize(
    ("number", "passed"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM"), (signal.SIGHUP, "TERM")]
)
def test_a_signal_goes_to_the_run_once_and_nothing_new_begins(
    number: signal.Signals, passed: str, tmp_path: Path
) -> None:
    saves = f"trap 'printf s >> saved; exit 9' {passed}; printf x >> count; while :; do sleep 0.05; done"
    ends_well = f"trap 'exit 0' {passed}; printf x >> count; while :; do sleep 0.05; done"
    jobs = [
        shell_job(tmp_path, 0, saves),
        shell_job(tmp_path, 1, ends_well, "touch second"),
        shell_job(tmp_path, 2, ""),
    ]

    def interrupt() -> None:
        while not all((job.run / "count").exists() for job in jobs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    started_with = signal.signal(number, signal.default_int_handler)  # with nohup it is ignored, and so stays
    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(number)
    ended, said = queue(tmp_path, jobs, parallel=2)
    thread.join()
    assert ended == ([], number)
    assert "FAILED" not in said
    assert (jobs[0].run / "saved").read_text() == "s"
    assert not any(job.done for job in jobs)
    assert jobs[1].commands[0].done
    assert not (jobs[1].run / "second").exists()
    assert not jobs[2].run.exists()
    assert signal.getsignal(number) == before
    signal.signal(number, started_with)


def test_a_command_holds_the_lock_and_gets_no_signal_of_the_terminal(tmp_path: Path) -> None:
    """A killed sweep's runs are then found by the next, and Ctrl-C reaches a run once, from the sweep."""
    job = shell_job(tmp_path, 0, "ls -l /proc/$$/fd > files; cut -d ' ' -f 5 /proc/$$/stat > group")
    assert queue(tmp_path, [job])[0] == ([], None)
    assert str(tmp_path / ".lock") in (job.run / "files").read_text()
    assert int((job.run / "group").read_text()) != os.getpgrp()

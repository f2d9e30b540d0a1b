"""launch/local.sh with a stand-in for the trainer: output, the process that died first, restarts, signals, GPUs."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "launch" / "local.sh"
# What every stand-in begins with; `attempt` counts this process's starts from 1.
PRELUDE = """
import os, signal, sys, time
rank = int(sys.argv[-1].removeprefix("--process_id="))
here = os.path.dirname(os.path.abspath(__file__))
with open(f"{here}/starts-{rank}", "a+") as starts:
    print("started", file=starts, flush=True)
    starts.seek(0)
    attempt = len(starts.readlines())
def wait_for_all():
    while not all(os.path.exists(f"{here}/starts-{other}") for other in range(int(sys.argv[-2].split("=")[1]))):
        time.sleep(0.01)
def say(word):  # not print: a signal handler may interrupt one, and must not print then
    os.write(1, f"{word} {rank}\\n".encode())
"""
# Saves when it is told to end, as the trainer does.
SAVES = """
def save(number, frame):
    time.sleep(0.2)
    say("saved")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
say("ready")
time.sleep(60)
"""

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


def stand_in(folder: Path, plan: str) -> dict[str, str]:
    """Return the environment in which local.sh runs `plan` instead of the trainer."""
    trainer = folder / "trainer.py"
    trainer.write_text(f"#!{sys.executable} -S\n{PRELUDE}{plan}")
    trainer.chmod(0o755)
    return {"PATH": os.environ["PATH"], "PYTHON": str(trainer), "KILL_S": "1", "SAVE_S": "3"}


def command(*flags: str, processes: int = 3) -> list[str]:
    return [str(SCRIPT), f"--processes={processes}", "--platform=cpu", *flags, "--", "--config=a b.py"]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    def run(plan: str, *flags: str, processes: int = 3) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*flags, processes=processes),
            env=stand_in(tmp_path, plan),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


def starts(folder: Path, rank: int = 0) -> int:
    return len((folder / f"starts-{rank}").read_text().splitlines())


def told(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return what the launcher itself printed, with process ids replaced."""
    lines = [re.sub(r"pid \d+", "pid N", line) for line in done.stderr.splitlines()]
    return [line for line in lines if line.startswith("launch: ")][1:]


def test_lines_of_other_processes_have_their_number(launch: Launch):
    done = launch("say('hello'); print('oops', rank, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sorted(lines) == [
        "[process 1] hello 1",
        "[process 1] oops 1",
        "[process 2] hello 2",
        "[process 2] oops 2",
        "hello 0",
    ]
    assert "oops 0" in done.stderr.splitlines()
    assert done.stderr.splitlines()[0] == "launch: 3 processes on cpu, 1 devices each"


def test_each_process_gets_the_same_arguments_and_its_place(launch: Launch):
    done = launch("print(sys.argv[1:], os.environ['JAX_PLATFORMS'], sep='|')", "--port=23456", processes=2)
    for rank, prefix in enumerate(["", "[process 1] "]):
        arguments = ["-m", "simcse_jax.train", "--config=a b.py", "--coordinator=127.0.0.1:23456", "--num_processes=2"]
        assert f"{prefix}{[*arguments, f'--process_id={rank}']}|cpu" in done.stdout.splitlines()


def test_the_one_that_died_first_is_named_and_all_start_again(launch: Launch, tmp_path: Path):
    done = launch("""
if attempt == 1:
    wait_for_all()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # what a survivor does, a moment later
    os.abort()
say("done")
""")
    assert done.returncode == 0, done.stderr
    assert told(done) == [
        "launch: process 1 (pid N) was killed by SIGKILL; stopping the others",
        "launch: restart 1 of 3",
    ]
    assert [starts(tmp_path, rank) for rank in range(3)] == [2, 2, 2]
    assert "done 0" in done.stdout.splitlines()


def test_of_two_in_one_instant_the_culprit_is_not_the_one_that_aborted(launch: Launch):
    # Stopped, the launcher sees both ends at once.
    done = launch(
        """
launcher = os.getppid()
wait_for_all()
if rank == 2:
    os.kill(launcher, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(launcher, signal.SIGCONT)
    time.sleep(60)
time.sleep(0.5)
os.abort() if rank == 0 else sys.exit(7)
""",
        "--restarts=0",
    )
    assert told(done)[0] == "launch: process 1 (pid N) ended with status 7; stopping the others"
    assert done.returncode == 7


def test_one_that_is_stuck_does_not_hold_up_the_restart(launch: Launch):
    started = time.monotonic()
    done = launch(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if attempt == 1 and rank == 1:
    wait_for_all()
    sys.exit(3)
if attempt == 1:
    time.sleep(60)
""",
        processes=2,
    )
    assert done.returncode == 0, done.stderr
    assert told(done)[0] == "launch: process 1 (pid N) ended with status 3; stopping the others"
    assert time.monotonic() - started < 10


def test_restarts_are_counted_and_the_last_status_is_passed_on(launch: Launch, tmp_path: Path):
    done = launch("sys.exit(9 if rank == 1 else 0)", "--restarts=2", processes=2)
    assert done.returncode == 9
    assert starts(tmp_path, 1) == 3
    assert [line for line in told(done) if "restart" in line] == [
        "launch: restart 1 of 2",
        "launch: restart 2 of 2",
        "launch: 2 restarts are used up",
    ]


def test_a_user_error_is_passed_on_and_never_started_again(launch: Launch, tmp_path: Path):
    done = launch("time.sleep(60) if rank == 0 else sys.exit(2)", processes=2)
    assert done.returncode == 2
    assert starts(tmp_path, 1) == 1
    assert told(done) == ["launch: process 1 (pid N) ended with status 2; stopping the others"]


def test_a_preemption_is_no_crash(launch: Launch, tmp_path: Path):
    done = launch("time.sleep(0.2 * rank); sys.exit(143 if attempt < 3 else 0)", "--restarts=0")
    assert done.returncode == 0, done.stderr
    assert starts(tmp_path) == 3
    assert told(done) == ["launch: all were stopped by SIGTERM after saving; starting again"] * 2


def test_one_that_dies_while_the_others_save_is_a_crash(launch: Launch):
    done = launch(
        "wait_for_all(); time.sleep(0.3 * rank)\nif rank: os.kill(os.getpid(), 9)\nsys.exit(143)",
        "--restarts=0",
        processes=2,
    )
    assert done.returncode == 137
    assert told(done) == ["launch: process 1 (pid N) was killed by SIGKILL", "launch: 0 restarts are used up"]


# The second of them fails as it is told to save.
FAILS = SAVES.replace("sys.exit(128 + number)", "sys.exit(1 if rank == 1 else 128 + number)")


@pytest.mark.parametrize(
    ("plan", "number", "status"),
    [
        (SAVES, signal.SIGTERM, 143),
        (SAVES, signal.SIGINT, 130),
        (SAVES, signal.SIGHUP, 129),
        (FAILS, signal.SIGTERM, 1),
    ],
    ids=["SIGTERM", "SIGINT", "SIGHUP", "a save that fails"],
)
def test_a_signal_is_forwarded_and_ends_the_run_without_a_restart(plan: str, number: int, status: int, tmp_path: Path):
    # A launcher that was started with a signal ignored, as by a shell's & or nohup, could not react to it.
    default = (
        "import os, sys; from signal import *; signal(SIGINT, SIG_DFL); signal(SIGHUP, SIG_DFL)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", default, *command()],
        env=stand_in(tmp_path, plan),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        ready = {running.stdout.readline() for _ in range(3)}
        assert ready == {"ready 0\n", "[process 1] ready 1\n", "[process 2] ready 2\n"}
        running.send_signal(number)
        out, _ = running.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["[process 1] saved 1", "[process 2] saved 2", "saved 0"]
    assert running.returncode == status
    assert starts(tmp_path) == 1


def dry_run(*arguments: str, **environment: str) -> list[list[str]]:
    """Return the words of each command that would be run."""
    done = subprocess.run(
        [str(SCRIPT), "--dry-run", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_dry_run_prints_each_command_and_keeps_the_xla_flags_of_the_environment():
    first, second = dry_run("--platform=cpu", "--devices_per_process=4", "--", "--a=b c", XLA_FLAGS="--xla_mine=1")
    flags = (
        "--xla_mine=1 --xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    start = ["env", "JAX_PLATFORMS=cpu", f"XLA_FLAGS={flags}", sys.executable, "-m", "simcse_jax.train", "--a=b c"]
    assert first[:7] == second[:7] == start
    assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d{5}", first[7])
    assert first[7] == second[7]
    assert (first[8:], second[8:]) == (
        ["--num_processes=2", "--process_id=0"],
        ["--num_processes=2", "--process_id=1"],
    )


@pytest.mark.parametrize(
    ("flags", "visible", "dealt"),
    [
        ((), "2,3,5,7", ["2,3", "5,7"]),
        (("--devices_per_process=1",), "2,3,5", ["2", "3"]),
        ((), None, ["0,1", "2,3"]),
        ((), "", []),
        ((), "-1", []),
    ],
)
def test_gpus_are_dealt_evenly(flags: tuple[str, ...], visible: str | None, dealt: list[str], tmp_path: Path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    smi.chmod(0o755)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    commands = dry_run(*flags, "--", PATH=f"{tmp_path}:{os.environ['PATH']}", **environment)
    if dealt:
        expected = [["JAX_PLATFORMS=cuda", f"CUDA_VISIBLE_DEVICES={gpus}"] for gpus in dealt]
        assert [words[1:3] for words in commands] == expected
    else:
        assert [words[1] for words in commands] == ["JAX_PLATFORMS=cpu"] * 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--processes=0"], "--processes=0: a whole number from 1 to 9999"),
        (["--devices_per_process=x"], "--devices_per_process=x: a whole number"),
        (["--restarts=-1"], "--restarts=-1: a whole number from 0"),
        (["--port=80"], "--port=80: 'auto' or a number from 1024"),
        (["--platform=tpu"], "--platform=tpu: cpu or gpu"),
        (["--config=a.py"], "unknown argument '--config=a.py'. Flags of the training go after --"),
        (["--platform=gpu", "--processes=2"], "3 GPUs cannot be split evenly"),
        (["--platform=gpu", "--devices_per_process=2"], "there are 3 GPUs"),
    ],
)
def test_wrong_flags_are_refused_with_what_would_work(arguments: list[str], complaint: str):
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "0,1,2"}
    done = subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_help_is_the_head_of_the_file():
    done = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for flag in re.findall(r"^ {6}(--[a-z_-]+=|--dry-run)", SCRIPT.read_text(), re.MULTILINE):
        assert flag in done.stdout

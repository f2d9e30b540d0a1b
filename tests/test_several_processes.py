"""Several processes are one run: the commands that users type, on loopback, with real collectives between them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.data import demo
from simcse_jax.training.metrics import read_metrics
from simcse_jax.training.saved import load_best

pytestmark = pytest.mark.timeout(1500)  # on two busy cores, four processes that compile take minutes
ROOT = Path(__file__).parent.parent
STEPS = 30
SMALL = (
    "--config=configs/demo.py:scratch",
    "--config.model.dtype=float64",
    "--config.model.num_hidden_layers=1",
    "--config.model.hidden_size=64",  # wide enough for 8 devices to keep parts of kernels
    "--config.model.intermediate_size=128",
    "--config.model.vocab_size=300",
    "--config.mlm.weight=0.1",
    "--config.train.batch_size=528",  # two groups on each of 8 devices, eleven on one
    f"--config.train.steps={STEPS}",
    "--config.train.log_every_steps=1",
    "--config.optimizer.warmup_steps=4",
    "--config.eval.every_steps=10",
    "--config.checkpoint.every_steps=3",
)
# One shape to compile, and no evaluation.
CHEAP = ("--config.data.packed=False", "--config.eval.data=", "--config.mlm.validation=")
# What is compared of a run's figures.
DEV = {"dev/spearman", "dev/perplexity"}


class Folder:
    """A folder of runs that share the tokenised data."""

    def __init__(self, path: Path):
        self.path = path
        (path / "held_out.txt").write_text("\n".join(demo.sentences(seed=5, count=528)) + "\n")

    def start(self, name: str, processes: int, devices: int, *flags: str) -> subprocess.Popen[str]:
        """The launcher, with its output in `name.log`."""
        command = [str(ROOT / "launch" / "local.sh"), f"--processes={processes}", f"--devices_per_process={devices}"]
        command += ["--", *SMALL, f"--config.data.cache_dir={self.path / 'cache'}", f"--workdir={self.path / name}"]
        command += [f"--config.mlm.validation={self.path / 'held_out.txt'}"]
        environment = os.environ | {"JAX_ENABLE_X64": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles in half the time
        with (self.path / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [*command, *flags], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()

    def finish(self, name: str, launcher: subprocess.Popen[str]) -> None:
        assert launcher.wait(timeout=900) == 0, self.log(name)

    def run(self, name: str, processes: int, devices: int, *flags: str) -> None:
        self.finish(name, self.start(name, processes, devices, *flags))

    def require_equal(self, name: str, other: str) -> None:
        """The same losses and parameters within 1e-9, and, where there are any, dev scores."""
        lines = [
            [{k: v for k, v in line.items() if k in {"step", "loss", *DEV}} for line in read_metrics(self.path / n)]
            for n in (name, other)
        ]
        if not any(line.keys() >= DEV for line in lines[0]):
            lines[1] = [line for line in lines[1] if "loss" in line]
        assert [line["step"] for line in lines[0] if "loss" in line] == list(range(1, STEPS + 1))
        for one, two in zip(*lines, strict=True):
            assert one == pytest.approx(two, rel=1e-9 if "loss" in one else 1e-6), name  # scores are of float32 vectors
        with jax.enable_x64(True):
            (params, info), (expected, told) = load_best(self.path / name), load_best(self.path / other)
        assert info["step"] == told["step"]
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float64)}
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, expected)
        assert max(jax.tree.leaves(gaps)) < 1e-9, name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Runs, of which "one" is whole: one process, one device."""
    folder = Folder(tmp_path_factory.mktemp("runs"))
    folder.run("one", 1, 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "devices", "flags"),
    [
        ("eight-devices", 1, 8, []),
        ("two", 2, 4, []),
        ("four", 4, 2, [*CHEAP, "--config.train.groups_at_once=1", "--config.objective.tile=100"]),
        ("fsdp", 2, 4, [*CHEAP, "--config.mesh.fsdp=2"]),
    ],
)
def test_any_number_of_processes_gives_the_run_of_one(
    runs: Folder, name: str, processes: int, devices: int, flags: list[str]
) -> None:
    runs.run(name, processes, devices, *flags)
    runs.require_equal(name, "one")
    said = runs.log(name)
    assert said.count("What to do next") == 1  # one process talks
    assert (runs.path / name / "model" / "model.safetensors").exists()
    if processes > 1:
        assert f"{processes} processes on 1 host, {processes * devices} devices" in said


def pids(log: str) -> list[int]:
    """Of the processes that the newest table lists."""
    tables = re.split(r"\d+ processes on 1 host", log)
    return [int(pid) for pid in re.findall(r"^ *\d+  \S+ +(\d+)  \d+ x cpu *$", tables[-1], re.MULTILINE)]


def wait_for(what: Callable[[], Any], launcher: subprocess.Popen[str], seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert launcher.poll() is None, "the launcher ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture
def stopping() -> Iterator[list[subprocess.Popen[str]]]:
    """A list of launchers that are stopped at the end of the test, whatever happens in it."""
    launchers: list[subprocess.Popen[str]] = []
    yield launchers
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(timeout=60)


@pytest.mark.slow
def test_a_signal_to_one_and_the_death_of_another_change_nothing(
    runs: Folder, stopping: list[subprocess.Popen[str]]
) -> None:
    launcher = runs.start("faults", 2, 2, "--heartbeat_timeout_s=10", *CHEAP)
    stopping.append(launcher)

    def reached(step: int) -> bool:
        return max((line["step"] for line in read_metrics(runs.path / "faults")), default=-1) >= step

    wait_for(lambda: reached(4), launcher)
    os.kill(pids(runs.log("faults"))[1], signal.SIGTERM)
    wait_for(
        lambda: re.search(r"stopped by SIGTERM; the same command resumes from step \d+", runs.log("faults")), launcher
    )
    wait_for(lambda: runs.log("faults").count("processes on 1 host") == 2, launcher)
    wait_for(lambda: reached(16), launcher)
    victim, killed = pids(runs.log("faults"))[1], time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: "restart 1 of" in runs.log("faults"), launcher, 60)
    assert time.monotonic() - killed < 60
    assert f"process 1 (pid {victim}) was killed by SIGKILL" in runs.log("faults")
    runs.finish("faults", launcher)
    assert runs.log("faults").count("resumed from step") == 2
    runs.require_equal("faults", "one")


def spoken(*commands: list[str], folders: list[Path] | None = None) -> list[tuple[int, str]]:
    """(status, stderr) of train commands that run side by side, each in its folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "simcse_jax.train", f"--config={ROOT / 'configs' / 'demo.py'}", *command],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, folder in zip(commands, folders or [ROOT] * len(commands), strict=True)
    ]
    said = [process.communicate(timeout=200)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def member(port: int, process: int, processes: int, *flags: str) -> list[str]:
    return [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={process}", *flags]


def test_a_process_that_does_not_come_is_named(free_port: int, tmp_path: Path) -> None:
    flags = ("--join_timeout_s=15", f"--workdir={tmp_path}")
    for status, said in spoken(member(free_port, 0, 3, *flags), member(free_port, 2, 3, *flags)):
        assert status == 2, said
        assert "2 of 3 processes came" in said
        assert "Process 1 did not come" in said
        assert "Traceback" not in said


def test_what_is_wrong_on_one_process_ends_all(free_port: int, tmp_path: Path) -> None:
    flags = [f"--config.data.cache_dir={tmp_path / 'cache'}", "--join_timeout_s=60"]
    one, two = spoken(
        member(free_port, 0, 2, *flags, f"--workdir={tmp_path / 'a'}"),
        member(free_port, 1, 2, *flags, f"--workdir={tmp_path / 'a'}", "--config.train.seed=1"),
    )
    assert (one[0], two[0]) == (2, 2)
    assert "train.seed is 0 on process 0 and 1 on process 1" in one[1]


def test_a_folder_that_is_not_shared_is_found_out(free_port: int, tmp_path: Path) -> None:
    """Two folders under one name, as on two hosts without a shared file system."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    flags = ["--workdir=run", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    said = spoken(
        member(free_port, 0, 2, *flags), member(free_port, 1, 2, *flags), folders=[tmp_path / "a", tmp_path / "b"]
    )
    for status, text in said:
        assert status == 2, text
        assert "is not the folder that process 0 has under that name" in text

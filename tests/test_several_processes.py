"""Several processes are one run: launch/local.sh and the training command, with real collectives between them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.data import demo
from simcse_jax.model_folder.run_folder import load_run_params
from simcse_jax.runs.metrics import read_metrics
from tests.small_models import demo_files

ROOT = Path(__file__).parent.parent
RECIPE = "configs/demo.py:scratch"
STEPS = 12
# Wide enough for 8 devices to keep parts of kernels; two groups on each of 8 devices, eleven on one.
WIDE = {
    "data.files": str(demo_files() / "sentences.txt"),
    "model.dtype": "float64",
    "model.num_hidden_layers": "1",
    "model.vocab_size": "300",
    "model.hidden_size": "64",
    "model.intermediate_size": "128",
    "mlm.weight": "0.1",
    "train.batch_size": "528",
    "train.steps": str(STEPS),
    "train.log_every_steps": "1",
    "optimizer.warmup_steps": "4",
    "eval.data": str(demo_files() / "dev.tsv"),
    "eval.every_steps": "6",
    "checkpoint.every_steps": "3",
}
CHEAP = {"data.packed": "False", "eval.data": "", "mlm.validation": ""}
DEV = {"dev/spearman", "dev/perplexity"}


class Folder:
    """A folder of runs that share the tokenised data."""

    def __init__(self, path: Path):
        self.path = path

    def start(
        self, name: str, processes: int, devices: int, keys: Mapping[str, str], *flags: str
    ) -> subprocess.Popen[str]:
        """Start the launcher, with its output in `name.log`."""
        command = [str(ROOT / "launch" / "local.sh"), f"--processes={processes}", f"--devices_per_process={devices}"]
        command += ["--", f"--config={RECIPE}", f"--workdir={self.path / name}", *flags]
        command += [f"--config.{key}={value}" for key, value in keys.items()]
        command += [f"--config.data.cache_dir={self.path / 'cache'}"]
        environment = os.environ | {"JAX_ENABLE_X64": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles in half the time
        with (self.path / f"{name}.log").open("w") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()

    def finish(self, name: str, launcher: subprocess.Popen[str]) -> None:
        assert launcher.wait(timeout=900) == 0, self.log(name)

    def run(self, name: str, processes: int, devices: int, keys: Mapping[str, str]) -> None:
        self.finish(name, self.start(name, processes, devices, keys))

    def require_equal(self, name: str, other: str, steps: int) -> None:
        """Require the same losses and parameters within 1e-9, and, where there are any, the same dev scores."""
        lines = [
            [{k: v for k, v in line.items() if k in {"step", "loss", *DEV}} for line in read_metrics(self.path / n)]
            for n in (name, other)
        ]
        if not any(line.keys() >= DEV for line in lines[0]):
            lines = [[line for line in each if "loss" in line] for each in lines]
        assert [line["step"] for line in lines[0] if "loss" in line] == list(range(1, steps + 1))
        for one, two in zip(*lines, strict=True):
            assert one == pytest.approx(two, rel=1e-9 if "loss" in one else 1e-6), name  # scores are of float32 vectors
        with jax.enable_x64(True):
            (params, info), (expected, other_info) = (
                load_run_params(self.path / name),
                load_run_params(self.path / other),
            )
        assert info["step"] == other_info["step"]
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float64)}
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, expected)
        assert max(jax.tree.leaves(gaps)) < 1e-9, name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a folder in which the run "one", of one process and one device, is finished."""
    folder = Folder(tmp_path_factory.mktemp("runs"))
    held_out = folder.path / "held_out.txt"
    held_out.write_text("\n".join(demo.sentences(seed=5, count=528)) + "\n")
    folder.run("one", 1, 1, WIDE | {"mlm.validation": str(held_out)})
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("name", "processes", "devices", "keys"),
    [
        ("eight-devices", 1, 8, {}),
        ("two", 2, 4, {}),
        ("four", 4, 2, CHEAP | {"train.groups_at_once": "1", "objective.tile": "100"}),
        ("fsdp", 2, 4, CHEAP | {"mesh.fsdp": "2"}),
    ],
)
def test_any_number_of_processes_gives_the_run_of_one(
    runs: Folder, name: str, processes: int, devices: int, keys: dict[str, str]
) -> None:
    runs.run(name, processes, devices, WIDE | {"mlm.validation": str(runs.path / "held_out.txt")} | keys)
    runs.require_equal(name, "one", STEPS)
    assert runs.log(name).count("What to do next") == 1  # one process talks
    if processes > 1:
        assert f"{processes} processes on 1 host, {processes * devices} devices" in runs.log(name)


def pids(log: str) -> list[int]:
    """Return the process ids of the newest table in the log."""
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
    """Yield a list of launchers, and stop those that still run at the end of the test."""
    launchers: list[subprocess.Popen[str]] = []
    yield launchers
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_signal_to_one_and_the_death_of_another_change_nothing(
    runs: Folder, stopping: list[subprocess.Popen[str]]
) -> None:
    launcher = runs.start("faults", 2, 2, WIDE | CHEAP, "--heartbeat_timeout_s=10")
    stopping.append(launcher)

    def reached(step: int) -> bool:
        return max((line["step"] for line in read_metrics(runs.path / "faults")), default=-1) >= step

    wait_for(lambda: reached(3), launcher)
    os.kill(pids(runs.log("faults"))[1], signal.SIGTERM)
    wait_for(
        lambda: re.search(r"stopped by SIGTERM; the same command resumes from step \d+", runs.log("faults")), launcher
    )
    wait_for(lambda: runs.log("faults").count("processes on 1 host") == 2, launcher)
    wait_for(lambda: reached(8), launcher)
    victim, killed = pids(runs.log("faults"))[1], time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: "restart 1 of" in runs.log("faults"), launcher, 60)
    assert time.monotonic() - killed < 60
    assert f"process 1 (pid {victim}) was killed by SIGKILL" in runs.log("faults")
    runs.finish("faults", launcher)
    assert runs.log("faults").count("resumed from step") == 2
    runs.require_equal("faults", "one", STEPS)

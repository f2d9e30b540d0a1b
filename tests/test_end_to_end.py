"""The training command as users type it: a run and what it leaves, kill -9 and resume, errors on one screen."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax import SimCSE
from simcse_jax.model_folder.run_folder import load_run_params
from simcse_jax.runs.metrics import read_metrics
from tests.small_models import demo_files

ROOT = Path(__file__).parent.parent
STEPS = 16


def command(workdir: Path, *flags: str) -> list[str]:
    """Return the command of a small run, in float64 so that results can be compared to the last bits."""
    return [
        *(sys.executable, "-m", "simcse_jax.train", f"--workdir={workdir}", "--config=configs/demo.py:scratch"),
        *(f"--config.data.files={demo_files() / 'sentences.txt'}", f"--config.eval.data={demo_files() / 'dev.tsv'}"),
        *(f"--config.train.steps={STEPS}", "--config.train.log_every_steps=1", "--config.checkpoint.every_steps=2"),
        *(
            "--config.eval.every_steps=8",
            "--config.optimizer.warmup_steps=4",
            "--config.model.dtype=float64",
            "--config.model.hidden_size=16",
        ),
        *("--config.model.num_hidden_layers=1", "--config.model.intermediate_size=32", "--config.model.vocab_size=300"),
        "--config.data.packed=False",  # one shape to compile
        *("--config.data.cache_dir=" + str(workdir.parent / "cache"), *flags),
    ]


def environment(devices: int = 1) -> dict[str, str]:
    return os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        # Level 0 compiles in half the time, and computes the same in all runs that are compared.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }


def finish(workdir: Path, devices: int = 1, *flags: str) -> str:
    """Run the command to its end; return what it prints."""
    done = subprocess.run(
        command(workdir, *flags), cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a finished run, and what the command printed."""
    workdir = tmp_path_factory.mktemp("command") / "run"
    return workdir, finish(workdir, 1, "--config.train.steps=4", "--config.eval.every_steps=2")


@pytest.mark.medium
def test_the_command_leaves_a_run_folder_whose_model_encodes(finished: tuple[Path, str]) -> None:
    workdir, printed = finished
    assert "What to do next" in printed
    logged = read_metrics(workdir)
    assert [line["step"] for line in logged if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in logged if "dev/spearman" in line] == [0, 2, 4]
    for name in ("config.json", "tokenizer", "tensorboard", "checkpoints/last", "checkpoints/best", "report.html"):
        assert (workdir / name).exists(), name
    z = SimCSE(workdir / "model").encode(["a man plays the guitar", "a man plays a guitar", "a dog sleeps"])
    assert z.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=0, atol=1e-5)
    np.testing.assert_allclose(SimCSE(workdir).encode(["a dog sleeps"]), z[2:], rtol=0, atol=1e-5)


def kill_after(workdir: Path, step: int) -> None:
    """Start the run and kill -9 it once the metrics of a step are written."""
    process = subprocess.Popen(command(workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while max([line["step"] for line in read_metrics(workdir)], default=0) < step:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def best_in_float64(workdir: Path) -> tuple[Any, dict[str, Any]]:
    with jax.enable_x64(True):
        params, info = load_run_params(workdir)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
    return params, info


@pytest.mark.slow
@pytest.mark.timeout(1500)  # eight starts
def test_kill_9_and_the_same_command_again_give_the_parameters_of_an_unbroken_run(tmp_path: Path) -> None:
    finish(tmp_path / "whole")
    expected, info = best_in_float64(tmp_path / "whole")
    for name, devices, tolerance in (("same", 1, 0.0), ("four", 4, 1e-9)):
        kill_after(tmp_path / name, 7)
        finish(tmp_path / name, devices)
        params, other = best_in_float64(tmp_path / name)
        assert other["step"] == info["step"]
        gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, expected)
        assert max(jax.tree.leaves(gap)) <= tolerance, name
        assert [line["step"] for line in read_metrics(tmp_path / name) if "loss" in line] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_the_demo_learns_from_the_model_that_comes_along(tmp_path: Path) -> None:
    """What `make demo` runs, in a quarter of its steps."""
    flags = ["--config=configs/demo.py", "--config.train.steps=25", "--config.eval.every_steps=25"]
    done = subprocess.run(
        [sys.executable, "-m", "simcse_jax.train", *flags, f"--workdir={tmp_path / 'demo'}"],
        cwd=ROOT,
        env=environment()
        | {"JAX_ENABLE_X64": "0", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "SIMCSE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = [line["dev/spearman"] for line in read_metrics(tmp_path / "demo") if "dev/spearman" in line]
    assert after > before + 2
    assert json.loads((tmp_path / "demo" / "model" / "config.json").read_text())["hidden_size"] == 256
    card = (tmp_path / "demo" / "model" / "README.md").read_text()
    assert "base_model" not in card, "a folder of the clone is no model of the Hub"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config=configs/nothing.py"], ["configs/nothing.py", "configs/unsup.py"]),
        (["--config=configs/unsup.py", "--config.train.stepz=3"], ["stepz"]),
        (["--config=configs/unsup.py", "--config.model.dropout=2"], ["model.dropout", "2.0", "0.1"]),
        (["--config=configs/unsup.py", "--wrkdir=x"], ["wrkdir", "workdir"]),
        (
            ["--config=configs/demo.py", "--config.data.files=/nowhere.txt", "--config.eval.data="],
            ["/nowhere.txt"],
        ),
        (["--config=configs/unsup.py", "--config.eval.data="], ["bert-base-uncased", "HF_"]),
    ],
)
def test_errors_fit_on_one_screen(flags: list[str], says: list[str], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "simcse_jax.train", *flags, f"--workdir={tmp_path / 'run'}"]
    offline = environment() | {"JAX_ENABLE_X64": "0", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(arguments, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 24
    for words in says:
        assert words in done.stderr

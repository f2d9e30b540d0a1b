"""The sweep command: killed and started again, as lines for a cluster, and wrong commands on one screen."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from simcse_jax.runs.metrics import read_metrics
from tests.forked import run_commands

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--config=configs/demo.py:scratch", "--grid=objective.temperature=0.05,0.5", "--seeds=0..1"),
    *("--config.train.steps=200", "--config.eval.every_steps=50", "--config.train.log_every_steps=1"),
    *("--config.checkpoint.every_steps=20", "--config.optimizer.warmup_steps=1", "--config.model.hidden_size=16"),
    *("--config.model.num_hidden_layers=1", "--config.model.intermediate_size=32", "--config.model.vocab_size=300"),
    "--config.data.packed=False",  # one shape to compile
]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with one device, no network, and compiled programs kept for later runs."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "SIMCSE_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }


def command(workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "simcse_jax.sweep", f"--workdir={workdir}", *flags]


def sweep(workdir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(workdir, *flags), cwd=ROOT, env=environment(workdir.parent), capture_output=True, text=True, timeout=900
    )


def metrics(workdir: Path) -> dict[str, Any]:
    """Return every run's metrics by row and seed, from table.json."""
    rows = json.loads((workdir / "table.json").read_text())["rows"]
    return {row["label"]: row["seeds"] for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nine starts
def test_killed_and_resumed_it_ends_in_the_table_of_runs_from_a_cluster(tmp_path: Path) -> None:
    workdir = tmp_path / "resumed"
    second = workdir / "temperature=0.5" / "seed-0"
    process = subprocess.Popen(
        command(workdir, *SMALL), cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 600
    while max([line["step"] for line in read_metrics(second)], default=0) < 3:
        assert process.poll() is None, "the sweep ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM; the same command continues" in said
    first_mark = workdir / "temperature=0.05" / "seed-0" / "sweep-trained"
    written = first_mark.stat().st_mtime_ns

    done = sweep(workdir, *SMALL, "--keep=model")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("[1/4] temperature=0.05, seed 0"), "what is left of it is to drop its checkpoints"
    assert first_mark.stat().st_mtime_ns == written, "a finished run was run again"
    assert "resumed from step" in second.with_name("seed-0.log").read_text()
    assert not list(workdir.glob("*/*/checkpoints"))
    assert len(list(workdir.glob("*/*/model/model.safetensors"))) == 4
    for kind in ("md", "json", "png"):
        assert (workdir / f"table.{kind}").is_file()
    assert "temperature=0.5" in done.stdout

    cluster = tmp_path / "cluster"
    listed = sweep(cluster, *SMALL, "--pairs=demo:test", "--keep=scores", "--list")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert len(lines) == 4
    for line in lines[:2]:
        ran = subprocess.run(["bash"], input=line, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not [*cluster.glob("*/*/checkpoints"), *cluster.glob("*/*/model")]
    table = sweep(cluster, "--table", "--measure=dev/spearman")
    assert table.returncode == 0, table.stderr
    assert "MISSING: temperature=0.05: seed 1; temperature=0.5: seed 1." in table.stdout
    assert "demo:test" in (cluster / "table.md").read_text()
    whole = metrics(workdir)
    for label, seeds in metrics(cluster).items():
        assert list(seeds) == ["0"]
        assert seeds["0"]["dev/spearman"] == whole[label]["0"]["dev/spearman"], "another way to the same run"
    left = sweep(cluster, *SMALL, "--pairs=demo:test", "--list")
    assert left.stdout.splitlines() == [line.partition(" && rm ")[0] for line in lines[2:]]


@pytest.mark.slow
def test_a_run_that_fails_is_shown_and_missing_in_the_table(tmp_path: Path) -> None:
    done = sweep(
        tmp_path / "sweep", "--config=configs/demo.py", "--seeds=3", f"--config.data.files={tmp_path}/none.txt"
    )
    assert done.returncode == 1
    assert "FAILED: train ended with status 2" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("    ") and f"{tmp_path}/none.txt" in line]
    assert "MISSING: the recipe: seed 3." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


WRONG = [
    (["--config=configs/demo.py", "--seeds=5..1"], ["--seeds=1..5"]),
    (["--config=configs/demo.py", "--grid=objective.temprature=1,2"], ["temprature=1", "--help-config"]),
    (["--config=configs/demo.py", "--judge=stss"], ["--judge: 'stss' is unknown", "transfer"]),
    (["--config=configs/demo.py", "--judge=sts", "--data=/nowhere"], ["--data=/nowhere", "senteval.tar"]),
    (["--config=configs/demo.py", "--judge=sts"], ["--data=DIR", "senteval.tar", "HF_HUB_OFFLINE"]),
    (["--config=configs/demo.py", "--pairs=/nowhere.tsv"], ["/nowhere.tsv"]),
    (["--config=configs/demo.py", "--fast"], ["--fast", "--judge=sts,transfer"]),
    (["--config=configs/demo.py", "--measure=sts"], ["--measure=sts", "dev/spearman"]),
    (["--config=configs/demo.py", "--config.train.seed=2"], ["train.seed = 2", "--seeds=2"]),
    (["--config=configs/small.py", "--config.data.files=x.txt"], ["eval.data", "--judge=sts"]),
    (["--config=configs/nothing.py"], ["configs/nothing.py"]),
    (["--config=README.md"], ["README.md, line "]),
    (["--grid=model.dropout=0,1"], ["--grid", "--config=FILE"]),
    (["--table"], ["holds no sweep", "--config=FILE"]),
    (["--table", "--judge=sts"], ["--judge", "--table"]),
    (["--table", "--config=configs/demo.py", "--config.model.dropout=0.2"], ["--config.model.dropout", "--table"]),
    ([], ["holds no sweep"]),
]


@pytest.mark.medium
def test_wrong_commands_fit_on_one_screen_and_write_nothing(tmp_path: Path) -> None:
    late = [f"simcse_jax.sweeping.{name}" for name in ("plan", "jobs", "table")]
    commands = [[f"--workdir={tmp_path}/sweep", *given] for given, _ in WRONG]
    for done, (given, says) in zip(
        run_commands("simcse_jax.sweep", commands, environment(tmp_path), late), WRONG, strict=True
    ):
        assert done.returncode == 2, (given, done.stdout + done.stderr)
        assert "Traceback" not in done.stderr, given
        assert len(done.stderr.splitlines()) < 16, given
        for words in says:
            assert words in done.stderr, given
    assert not (tmp_path / "sweep").exists()

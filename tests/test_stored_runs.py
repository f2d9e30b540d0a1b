"""Runs at gs://: killed and resumed, a store that goes away and comes back, a second run, damage, bad addresses."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.model_folder.run_folder import load_run_params
from simcse_jax.runs.metrics import read_metrics
from tests.bucket import PRIVATE, Bucket, running_bucket
from tests.small_models import demo_files
from tests.stored_runs import RECIPE, ROOT, STEPS, Processes, fetch


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """Return a bucket of this test alone."""
    with running_bucket() as bucket:
        yield bucket


def require_same_model(folder: Path, other: Path) -> None:
    """Require the best of two runs to be equal, bit for bit, and the same steps in their metrics, each once."""
    (params, info), (expected, other_info) = load_run_params(folder), load_run_params(other)
    assert (info["step"], info["scores"]) == (other_info["step"], other_info["scores"])
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool(np.array_equal(a, b)), params, expected)
    assert all(jax.tree.leaves(same))
    losses, others = (
        [(line["step"], line["loss"]) for line in read_metrics(run) if "loss" in line] for run in (folder, other)
    )
    assert losses == others
    assert len(dict(losses)) == len(losses)


def lines_of_steps(processes: Processes) -> int:
    return processes.log().count("sentences/s ")


def kill_some_time(processes: Processes, chance: random.Random) -> None:
    """Kill -9 the processes at a random moment: while they start, or a while after some more steps."""
    if chance.random() < 0.25:
        time.sleep(chance.uniform(0, 20))
    else:
        wanted, until = lines_of_steps(processes) + chance.randint(1, 6), time.monotonic() + 300
        while lines_of_steps(processes) < wanted and time.monotonic() < until:
            if any(process.poll() is not None for process in processes.running):
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1.5))
    processes.kill()


@pytest.mark.slow
@pytest.mark.timeout(3600)  # forty starts
def test_two_processes_without_a_shared_disk_are_killed_20_times_and_end_as_an_unbroken_run(
    bucket: Bucket, tmp_path: Path
) -> None:
    steps, chance = "--config.train.steps=60", random.Random(7)
    processes = Processes(tmp_path, bucket, 2)
    for _ in range(20):
        processes.start("gs://runs/team/two", steps)
        kill_some_time(processes, chance)
    assert processes.run("gs://runs/team/two", steps) == [0, 0], processes.log()[-5000:]
    assert processes.log().count("resumed from step") > 5
    assert processes.run(tmp_path / "local", steps, log="local") == [0, 0], processes.log(0, "local")
    require_same_model(fetch(bucket, "team/two", tmp_path / "fetched"), tmp_path / "local")
    assert {path.parent.name for path in tmp_path.glob("cache-*/corpora/*/tokens-*.arrow")}, (
        "each host has its own tokens"
    )
    tokens = [path.read_bytes() for path in sorted(tmp_path.glob("cache-*/corpora/*/tokens-*.arrow"))]
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_store_that_goes_away_and_comes_back_in_time_is_waited_for(bucket: Bucket, tmp_path: Path) -> None:
    processes = Processes(tmp_path, bucket, 2, SIMCSE_STORE_RETRY_S="200")
    processes.start("gs://runs/a")
    for _ in range(2):
        await_step(processes, lines_of_steps(processes) + 2)
        bucket.stop()
        time.sleep(5)
        bucket.start()
    assert processes.wait() == [0, 0], processes.log()[-5000:]
    assert "out of reach" in processes.log()
    assert processes.run(tmp_path / "local", log="local") == [0, 0], processes.log(0, "local")
    require_same_model(fetch(bucket, "a", tmp_path / "fetched"), tmp_path / "local")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_store_that_stays_away_ends_all_processes_and_the_next_start_goes_on_with_what_they_saved(
    bucket: Bucket, tmp_path: Path
) -> None:
    processes = Processes(tmp_path, bucket, 2, SIMCSE_STORE_RETRY_S="3")
    processes.start("gs://runs/a")
    await_step(processes, 4)
    bucket.stop()
    assert processes.wait() == [1, 1], processes.log()[-5000:]
    assert "Traceback" not in processes.log()
    assert "is kept in" in processes.log()
    stored = complete_steps_of(bucket, "a")
    bucket.start()
    assert processes.run("gs://runs/a") == [0, 0], processes.log()[-5000:]
    assert "it is sent first" in processes.log()
    resumed = int(processes.log().partition("resumed from step ")[2].split()[0])
    assert resumed > max(stored, default=-1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_that_are_asked_to_stop_save_and_one_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    two, one = Processes(tmp_path / "two", bucket, 2), Processes(tmp_path / "one", bucket)
    two.start("gs://runs/a")
    await_step(two, 3)
    for process in two.running:
        process.terminate()
    assert two.wait() == [128 + signal.SIGTERM] * 2, two.log()[-5000:]
    assert "a/.lock" not in bucket.names()
    stopped = max(complete_steps_of(bucket, "a"))
    assert f"resumes from step {stopped}" in two.log()
    assert one.run("gs://runs/a") == [0], one.log()[-5000:]
    assert f"resumed from step {stopped}" in one.log()
    local = tmp_path / "local"
    assert one.run(local, log="local") == [0], one.log(0, "local")
    (params, info), (expected, other) = (
        load_run_params(run) for run in (fetch(bucket, "a", tmp_path / "fetched"), local)
    )
    assert info["step"] == other["step"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, expected)
    steps = [line["step"] for line in read_metrics(tmp_path / "fetched") if "loss" in line]
    assert steps == [*range(1, STEPS + 1)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_command_and_bad_addresses_are_refused_on_one_screen(bucket: Bucket, tmp_path: Path) -> None:
    first, second = Processes(tmp_path / "first", bucket), Processes(tmp_path / "second", bucket, 2)
    first.start("gs://runs/a")
    await_step(first, 1)
    assert second.run("gs://runs/a") == [2, 2]
    assert f"process {first.running[0].pid} on" in second.log()
    for address, words in (("gs://nowhere/a", "there is no bucket 'nowhere'"), (f"gs://{PRIVATE}/a", "gcloud auth")):
        assert second.run(address, log=address[5:10]) == [2, 2]
        assert words in second.log(0, address[5:10])
        assert "Traceback" not in second.log(0, address[5:10])
    assert first.wait() == [0]


def await_step(processes: Processes, lines: int) -> None:
    """Wait until so many steps are logged."""
    until = time.monotonic() + 300
    while lines_of_steps(processes) < lines:
        assert time.monotonic() < until, processes.log()
        assert all(process.poll() is None for process in processes.running), processes.log()
        time.sleep(0.05)


def complete_steps_of(bucket: Bucket, run: str) -> list[int]:
    lists = [name.split("/") for name in bucket.names(f"{run}/checkpoints/last/") if name.endswith("/files.json")]
    return sorted(int(parts[3]) for parts in lists)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_read_and_write_in_the_bucket(bucket: Bucket, small_run: Path, tmp_path: Path) -> None:
    for file in small_run.rglob("*"):
        if file.is_file() and "checkpoints/last" not in str(file):
            bucket.write(f"run/{file.relative_to(small_run)}", file.read_bytes())
    for name in ("sentences.txt", "dev.tsv"):
        bucket.write(f"data/{name}", (demo_files() / name).read_bytes())

    run = functools.partial(command, bucket, tmp_path / "cache")
    run("export", "--workdir=gs://runs/run", "--out=gs://runs/exported")
    assert {"exported/config.json", "exported/model.safetensors"} <= set(bucket.names("exported/"))
    printed = run("evaluate", "--model=gs://runs/run", "--pairs=gs://runs/data/dev.tsv", "--tasks=geometry")
    assert "written: gs://runs/run/evaluation/scores.json" in printed
    assert "run/evaluation/report.html" in bucket.names()
    vectors = "gs://runs/out/vectors.parquet"
    embed = ("--model=gs://runs/exported", "--input=gs://runs/data/sentences.txt", f"--out={vectors}")
    assert f"written: {vectors}" in run("embed", *embed)
    assert f"already complete: {vectors}" in run("embed", *embed)
    query = "--query=a man plays the guitar"
    first = run("search", "--model=gs://runs/exported", f"--corpus={vectors}", "--save_index=gs://runs/index", query)
    assert "index/index.json" in bucket.names()
    assert run("search", "--model=gs://runs/exported", "--corpus=gs://runs/index", query) == first
    assert len(first.splitlines()) > 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_goes_on_at_another_host(bucket: Bucket, tmp_path: Path) -> None:
    """With the runs that were done."""
    short = [flag for flag in RECIPE if "steps" not in flag] + ["--config.train.steps=2", "--seeds=0,1", "--row", "a:"]
    words = ("sweep", *short, "--workdir=gs://runs/sweep")
    with subprocess.Popen(**started(bucket, tmp_path / "cache-a", *words), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any(line.startswith("a, seed 1: train") for line in first.stdout), "the second run has begun"
        first.kill()
    kill_those_with(str(tmp_path / "cache-a"))
    assert "table.json" not in " ".join(bucket.names("sweep/"))
    printed = command(bucket, tmp_path / "cache-b", *words)
    assert printed.startswith("1 of 2 runs are finished")
    assert "written: gs://runs/sweep/table.md" in printed
    assert {"sweep/table.json", "sweep/a/seed-1/model/config.json"} <= set(bucket.names("sweep/"))
    bucket.storage.delete_file("runs", "sweep/table.json")
    command(bucket, tmp_path / "cache-b", "sweep", "--workdir=gs://runs/sweep", "--table")
    assert "sweep/table.json" in bucket.names()


def kill_those_with(words: str) -> None:
    """Kill the processes whose command has these words: what a killed sweep has left behind."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if words in (folder / "cmdline").read_text():
                os.kill(int(folder.name), signal.SIGKILL)


def started(bucket: Bucket, cache: Path, module: str, *flags: str) -> dict[str, Any]:
    """Return what `subprocess` needs to start a command at a host with this cache."""
    environment = os.environ | bucket.environment | {"SIMCSE_CACHE": str(cache), "XLA_FLAGS": ""}
    return {"args": [sys.executable, "-m", f"simcse_jax.{module}", *flags], "cwd": ROOT, "env": environment}


def command(bucket: Bucket, cache: Path, *words: str) -> str:
    """Run a command to its end; return what it prints."""
    done = subprocess.run(**started(bucket, cache, *words), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

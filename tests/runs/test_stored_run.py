"""A run at gs:// in one process: what it leaves, and how it goes on after loss, damage and a store out of reach."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax import SimCSE
from simcse_jax.config.resolve import resolve
from simcse_jax.model_folder.run_folder import load_run_params
from simcse_jax.runs.folder import seal
from simcse_jax.runs.metrics import MetricsWriter, read_metrics
from simcse_jax.runs.stored_run import StoredRun, run_folder
from simcse_jax.system.errors import Unreachable, UserError
from simcse_jax.training.loop import Outcome, train
from simcse_jax.training.run import prepare
from tests.bucket import Bucket, running_bucket
from tests.small_models import demo_files, small_recipe
from tests.stored_runs import fetch

ADDRESS = "gs://runs/team/run"
STEPS = 4  # and all else as in `train_small`, whose programs are compiled anyway
KEYS = {"checkpoint__every_steps": 1}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """Return a bucket that this process finds, as host "a"."""
    with running_bucket() as bucket:
        for name, value in {**bucket.environment, "SIMCSE_STORE_RETRY_S": "0.1"}.items():
            monkeypatch.setenv(name, value)
        be_host(monkeypatch, tmp_path, "a")
        yield bucket


def be_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Work with the cache of another host from now on."""
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / f"cache-{name}"))


def start(workdir: Path | str, say: Callable[[str], None] = print, **changes: Any) -> Outcome:
    """Train the small run, or what is left of it."""
    recipe = small_recipe(**KEYS, **changes)
    with run_folder(workdir, say) as (folder, stored):
        return train(prepare(resolve(recipe, (), jax.device_count()), folder, stored), folder, stored=stored)


@pytest.fixture(scope="module")
def whole(small_run: Path) -> Path:
    """Return the folder of an unbroken local run."""
    return small_run


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, stop: Callable[[], None]) -> None:
    """Call `stop` once the metrics of a step are written."""
    write = MetricsWriter.write

    def write_and_stop(self: MetricsWriter, now: int, metrics: Any) -> None:
        write(self, now, metrics)
        if now == step and "loss" in metrics:
            stop()

    monkeypatch.setattr(MetricsWriter, "write", write_and_stop)


class Killed(BaseException):
    """Stand for kill -9: nothing is sent or released after it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, bucket: Bucket, step: int) -> None:
    """Start the run and end it at a step, as a kill would for the bucket: nothing more reaches it."""

    def kill() -> None:
        bucket.stop()
        raise Killed

    with monkeypatch.context() as patch:
        stop_after(patch, step, kill)
        with pytest.raises(Killed):
            start(ADDRESS)
    bucket.restart_without_lock()


def require_same(bucket: Bucket, whole: Path, to: Path) -> None:
    """Require what is stored to be the unbroken run: its parameters, bit for bit, and each step once in the metrics."""
    run = fetch(bucket, "team/run", to)
    for step in (None, STEPS):  # the best, and the last
        (params, info), (expected, other) = load_run_params(run, step), load_run_params(whole, step)
        assert info["step"] == other["step"]
        assert info["scores"].get("spearman") == other["scores"].get("spearman")
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), params, expected)))
    losses, others = (
        [(line["step"], line["loss"]) for line in read_metrics(folder) if "loss" in line] for folder in (run, whole)
    )
    assert losses == others


def steps_of(bucket: Bucket, kind: str) -> list[int]:
    names = bucket.names(f"team/run/checkpoints/{kind}/")
    return sorted(int(name.split("/")[4]) for name in names if name.endswith("/files.json"))


@pytest.mark.medium
def test_a_run_leaves_what_a_local_one_leaves(bucket: Bucket, whole: Path, tmp_path: Path) -> None:
    assert start(ADDRESS).step == STEPS
    require_same(bucket, whole, tmp_path / "fetched")
    here = {path.relative_to(whole).parts[0] for path in whole.rglob("*") if path.is_file()} - {".lock"}
    there = {name.split("/")[2] for name in bucket.names("team/run/")} - {".run-id"}
    assert there == here
    kept = {name.split("/")[4] for name in bucket.names("team/run/checkpoints/last/")}
    assert kept == {str(STEPS - 1), str(STEPS)}, "older states are deleted"
    assert steps_of(bucket, "last") == [STEPS - 1, STEPS]
    written = {name: int(found["generation"]) for name, found in bucket.storage.objects["runs"].items()}
    for step in kept:
        names = bucket.names(f"team/run/checkpoints/last/{step}/")
        assert max(names, key=written.__getitem__).endswith("/files.json"), "the list of files makes it complete"


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_at_another_host(
    bucket: Bucket, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, bucket, 1)  # before its first checkpoint
    kill_at(monkeypatch, bucket, 3)
    bucket.write("team/run/checkpoints/last/4/state/d/part", b"of a save that was not finished")
    be_host(monkeypatch, tmp_path, "b")
    assert start(ADDRESS).first_step in (1, 2)
    assert not [name for name in bucket.names() if name.endswith("d/part")]
    assert len(bucket.names("team/run/tensorboard/")) == 2, "the curves of the first start are gone, as in a folder"
    require_same(bucket, whole, tmp_path / "fetched")


@pytest.mark.medium
def test_a_store_out_of_reach_for_too_long_ends_the_run_and_the_same_host_goes_on_from_what_it_saved(
    bucket: Bucket, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3, bucket.stop)
        with pytest.raises(Unreachable, match=f"{ADDRESS} is out of reach") as raised:
            start(ADDRESS)
    assert str(tmp_path / "cache-a") in str(raised.value), "it says where the work is kept"
    stored = max(steps_of(bucket, "last"))
    bucket.restart_without_lock()
    said: list[str] = []
    assert start(ADDRESS, said.append).first_step > stored
    assert any("is sent first" in line for line in said)
    require_same(bucket, whole, tmp_path / "fetched")


@pytest.mark.slow
def test_a_folder_here_that_is_behind_or_of_another_run_is_not_sent(
    bucket: Bucket, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, bucket, 3)
    be_host(monkeypatch, tmp_path, "b")
    start(ADDRESS)
    be_host(monkeypatch, tmp_path, "a")
    assert start(ADDRESS).first_step == STEPS, "host a takes what host b has done"
    for name in bucket.names():
        bucket.storage.delete_file("runs", name)
    assert start(ADDRESS).first_step == 0, "the run was deleted, so a new one begins"
    require_same(bucket, whole, tmp_path / "fetched")


@pytest.mark.slow
def test_a_damaged_state_is_set_aside_in_the_bucket(
    bucket: Bucket, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, bucket, 4)
    newest = max(steps_of(bucket, "last"))
    prefix = f"team/run/checkpoints/last/{newest}/state/"
    name = max(bucket.names(prefix), key=lambda name: len(bucket.read(name)))
    bucket.write(name, bucket.read(name)[:-1] + b"?")
    be_host(monkeypatch, tmp_path, "b")
    assert start(ADDRESS).first_step == newest - 1
    assert f"team/run/checkpoints/broken-{newest}/files.json" in bucket.names()
    require_same(bucket, whole, tmp_path / "fetched")


def write_step(folder: Path, step: int) -> None:
    """Write a run with a complete checkpoint, as far as the store looks at one."""
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(step + 1)))
    at = folder / "checkpoints" / "last" / str(step)
    at.mkdir(parents=True)
    (at / "array").write_bytes(bytes([step]))
    seal(at)


def test_an_emptied_cache_deletes_nothing_in_the_bucket(bucket: Bucket) -> None:
    with run_folder(ADDRESS) as (folder, stored):
        assert stored
        write_step(folder, 1)
        stored.send_step("last", 1)
    before = bucket.names()

    def empty_and_save() -> None:
        with run_folder(ADDRESS) as (folder, stored):
            assert stored
            shutil.rmtree(folder)
            (folder / "checkpoints" / "last" / "2").mkdir(parents=True)
            seal(folder / "checkpoints" / "last" / "2")
            stored.send_step("last", 2)

    def empty() -> None:
        with run_folder(ADDRESS) as (folder, _):
            shutil.rmtree(folder)

    for use in (empty_and_save, empty):
        with pytest.raises(UserError, match="was emptied"):
            use()
        assert bucket.names() == before


def test_a_start_that_fails_sends_nothing_of_a_folder_that_is_behind(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host, step in (("a", 1), ("b", 2)):
        be_host(monkeypatch, tmp_path, host)
        with run_folder(ADDRESS) as (folder, stored):
            assert stored
            write_step(folder, step)
            stored.send_step("last", step)
    before = {name: bucket.read(name) for name in bucket.names()}
    be_host(monkeypatch, tmp_path, "a")

    def fail(*_: object) -> None:
        raise UserError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(StoredRun, "_pull", fail)
        with pytest.raises(UserError, match="no space left"), run_folder(ADDRESS):
            pytest.fail("the run was begun")
    assert {name: bucket.read(name) for name in bucket.names()} == before


def test_a_copy_of_a_state_that_is_damaged_here_alone_is_fetched_again(bucket: Bucket) -> None:
    with run_folder(ADDRESS) as (folder, stored):
        assert stored
        write_step(folder, 1)
        stored.send_step("last", 1)
    for _ in range(2):  # the second start has recorded what it fetched
        with run_folder(ADDRESS) as (folder, _):
            array = folder / "checkpoints" / "last" / "1" / "array"
            assert array.read_bytes() == bytes([1])
    then = array.stat()
    array.write_bytes(b"?")
    os.utime(array, ns=(then.st_atime_ns, then.st_mtime_ns))  # as a disk would damage it
    with run_folder(ADDRESS):
        assert array.read_bytes() == bytes([1])


@pytest.mark.medium
def test_another_recipe_and_a_place_of_other_things_are_refused_and_left_as_they_are(bucket: Bucket) -> None:
    start(ADDRESS)
    before = {name: bucket.read(name) for name in bucket.names()}
    with pytest.raises(UserError, match="differs in what changes the result") as raised:
        start(ADDRESS, train__seed=5)
    assert ADDRESS in str(raised.value)
    assert {name: bucket.read(name) for name in bucket.names()} == before
    bucket.write("data/corpus.csv", b"a,b")
    for address in ("gs://runs/data", "gs://runs"):
        with pytest.raises(UserError, match="holds no run"):
            start(address)
    assert bucket.names("data/") == ["data/corpus.csv"]
    with pytest.raises(UserError, match="two slashes"):
        start("gs:/runs/a")


@pytest.mark.slow
def test_data_evaluation_and_a_model_are_read_from_the_bucket(
    bucket: Bucket, whole: Path, small_model: Path, tmp_path: Path
) -> None:
    for name in ("sentences.txt", "dev.tsv"):
        bucket.write(f"data/{name}", (demo_files() / name).read_bytes())
    there: Any = {"data__files": "gs://runs/data/sent*.txt", "eval__data": "gs://runs/data/dev.tsv"}
    start(ADDRESS, **there)
    require_same(bucket, whole, tmp_path / "fetched")
    model = small_model
    for file in model.rglob("*"):
        if file.is_file():
            bucket.write(f"models/small/{file.relative_to(model)}", file.read_bytes())
    own, fetched = (SimCSE(name).encode(["a man plays"]) for name in (str(model), "gs://runs/models/small"))
    np.testing.assert_array_equal(fetched, own)
    np.testing.assert_array_equal(SimCSE(ADDRESS).encode(["a"]), SimCSE(whole).encode(["a"]))

"""The lock of a run at an address: who holds it, who may take it over, and what the former holder notices."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from simcse_jax.runs import store_lock
from simcse_jax.runs.store_lock import StoreLock
from simcse_jax.system.errors import UserError
from simcse_jax.system.object_store import Store
from tests.bucket import Bucket, running_bucket

ADDRESS = "gs://runs/a"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Return a bucket; locks are renewed, and count as dead, within a second."""
    for name, value in (("BEAT_S", 0.1), ("STALE_S", 0.6), ("SETTLE_S", 0.01)):
        monkeypatch.setattr(store_lock, name, value)
    with running_bucket() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        yield bucket


def lock() -> StoreLock:
    return StoreLock(Store(ADDRESS), lambda _: None)


def held_by(bucket: Bucket, **holder: object) -> None:
    """Let the bucket have the lock of another process."""
    there = {"token": "other", "host": "host-b", "pid": 7, "machine": "another boot", "started": "1", "beat": 0}
    bucket.write("a/.lock", json.dumps(there | holder).encode())


def test_a_second_run_is_refused_while_the_first_lives(bucket: Bucket) -> None:
    first = lock()
    first.acquire()
    with pytest.raises(UserError, match=f"Another training is at work in {ADDRESS}") as raised:
        lock().acquire()
    assert f"process {os.getpid()} on" in str(raised.value)
    first.release()
    assert bucket.names() == []
    again = lock()
    again.acquire()
    again.release()


def test_the_lock_of_a_dead_process_of_this_machine_is_free_at_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lock, "STALE_S", 1000.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = store_lock._this_process()
    for dead in ({"pid": ended.pid}, {"started": "1"}):  # gone, or its number has been given to another
        held_by(bucket, **(own | dead))
        taken = lock()
        taken.acquire()
        taken.release()


def test_a_lock_that_a_run_of_this_process_could_not_give_back_is_free(bucket: Bucket) -> None:
    ended = lock()
    ended.acquire()
    ended.stop()  # as at the end of a run whose store is out of reach
    again = lock()
    again.acquire()
    again.release()


def test_a_run_elsewhere_counts_as_dead_once_it_is_silent(bucket: Bucket) -> None:
    held_by(bucket)
    taken, began = lock(), time.monotonic()
    taken.acquire()
    assert time.monotonic() - began >= store_lock.STALE_S
    taken.require_own()
    held_by(bucket)
    with pytest.raises(UserError, match="taken over by process 7 on host-b"):
        taken.require_own()
    taken.release()
    assert json.loads(bucket.read("a/.lock"))["token"] == "other", "it is not ours to delete"


def test_a_run_elsewhere_that_gives_a_sign_of_life_is_left_alone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lock, "_machine", lambda: "")  # neither can tell whether the other lives
    first = lock()
    first.acquire()
    with pytest.raises(UserError, match="Another training is at work"):
        lock().acquire()
    first.release()


def test_a_lock_that_cannot_be_read_counts_as_one_of_a_run_elsewhere(bucket: Bucket) -> None:
    bucket.write("a/.lock", b"{")
    taken = lock()
    taken.acquire()
    taken.release()

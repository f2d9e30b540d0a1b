"""Copies of what lies in a bucket, and what commands write there."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simcse_jax.data.sources import open_tables
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import BRIEFLY_S, local_path, written, written_by_parts
from simcse_jax.system.object_store import Store
from tests.bucket import Bucket, running_bucket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """Return a bucket that this process finds; its copies are kept in `tmp_path`."""
    with running_bucket() as bucket:
        for name, value in {**bucket.environment, "SIMCSE_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        yield bucket


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_path_stays_what_it_is() -> None:
    assert local_path("~/a") == Path("~/a").expanduser()
    with written("b/c") as path:
        assert path == Path("b/c")


def test_a_file_keeps_its_name_and_is_fetched_again_once_it_has_changed(bucket: Bucket) -> None:
    bucket.write("data/a.txt", b"one")
    path = local_path("gs://runs/data/a.txt")
    assert (path.name, path.read_bytes()) == ("a.txt", b"one")
    before = path.stat().st_mtime_ns
    assert local_path("gs://runs/data/a.txt").stat().st_mtime_ns == before, "it was fetched twice"
    bucket.write("data/a.txt", b"two")
    assert local_path("gs://runs/data/a.txt").read_bytes() == b"two"
    path.write_bytes(b"bad")
    assert local_path("gs://runs/data/a.txt").read_bytes() == b"two"
    with pytest.raises(UserError, match="no such object"):
        local_path("gs://runs/data/b.txt")


def test_a_folder_follows_the_bucket(bucket: Bucket) -> None:
    for name in ("a/x", "a/b/y", "ab/z"):
        bucket.write(name, name.encode())
    assert files_of(local_path("gs://runs/a")) == {"x": b"a/x", "b/y": b"a/b/y"}
    bucket.storage.delete_file("runs", "a/b/y")
    bucket.write("a/c", b"c")
    assert files_of(local_path("gs://runs/a/")) == {"x": b"a/x", "c": b"c"}


def test_of_a_run_folder_states_are_fetched_where_they_are_asked_for(bucket: Bucket) -> None:
    states, others = {"checkpoints/last/4/files.json"}, {"config.json", "checkpoints/best/4/files.json"}
    for name in (*states, *others, "tensorboard/events"):
        bucket.write(f"run/{name}", b"{}")
    assert files_of(local_path("gs://runs/run")).keys() == others
    assert files_of(local_path("gs://runs/run", states=True)).keys() == states | others | {"tensorboard/events"}


def test_what_a_block_writes_is_sent_when_it_is_done(bucket: Bucket) -> None:
    for name in ("old", "kept", ".hidden"):
        bucket.write(f"out/{name}", name.encode())
    with written("gs://runs/out") as path:
        assert (path / "old").read_bytes() == b"old", "a command may look at what is there"
        (path / "old").unlink()
        (path / "rows").mkdir()
        (path / "rows" / "1").write_bytes(b"new")
        (path / ".draft").write_bytes(b"not sent")
        assert "out/rows/1" not in bucket.names()
    assert bucket.names("out/") == ["out/.hidden", "out/kept", "out/rows/1"]
    block = written("gs://runs/out")
    (block.__enter__() / "kept").write_bytes(b"half")
    assert not block.__exit__(ValueError, ValueError("the work failed"), None)
    assert bucket.read("out/kept") == b"kept"
    with written("gs://runs/out") as path:
        assert (path / "kept").read_bytes() == b"kept"
    block = written("gs://runs/new/out")
    (path := block.__enter__()).mkdir()
    (path / "part").write_bytes(b"of a command that was stopped")
    block.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with written("gs://runs/new/out") as path:
        assert (path / "part").exists(), "the same command goes on with it"
    assert bucket.names("new/") == ["new/out/part"]
    with written("gs://runs/a.csv") as path:
        path.write_bytes(b"a,b")
    assert bucket.read("a.csv") == b"a,b"
    with written("gs://runs/a.csv"), pytest.raises(UserError, match="Another command"), written("gs://runs/a.csv"):
        pass


def test_a_finished_part_is_sent_while_the_block_goes_on(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCSE_STORE_RETRY_S", "300")
    with written_by_parts("gs://runs/out") as (path, send):
        for name in ("done/rows", "done/mark", "done-not/rows"):
            (path / name).parent.mkdir(exist_ok=True, parents=True)
            (path / name).write_bytes(name.encode())
        with monkeypatch.context() as broken:
            broken.setattr(Store, "put_all", functools.partialmethod(refuse, "done/rows"))
            with pytest.raises(UserError, match="refused"):
                send([path / "done"], [path / "done" / "mark"])
        assert bucket.names() == [], "the mark comes after what it marks"
        send([path / "done"], [path / "done" / "mark"])
        assert bucket.names() == ["out/done/mark", "out/done/rows"]
        bucket.write("out/done/rows", b"of another host")  # it is not sent again, also at the end
        send([path / "done"], [])
    assert bucket.names() == ["out/done-not/rows", "out/done/mark", "out/done/rows"]
    assert bucket.read("out/done/rows") == b"of another host"
    with written("gs://runs/out") as path:
        assert (path / "done" / "rows").read_bytes() == b"of another host"


def refuse(store: Store, name: str, paths: dict[str, Path], send: Callable[..., None] = Store.put_all) -> None:
    """Send all objects but that of the name, which raises."""
    assert store.retry_s <= BRIEFLY_S, "the work waits meanwhile"
    send(store, {each: path for each, path in paths.items() if each != name})
    if name in paths:
        raise UserError("refused")


def test_of_a_folder_named_as_data_nothing_is_fetched(bucket: Bucket, tmp_path: Path) -> None:
    bucket.write("data/a.txt", b"one\n")
    with pytest.raises(UserError, match=r"is a folder\. Name its files"):
        open_tables(["gs://runs/data"])
    assert not list(tmp_path.rglob("a.txt"))
    assert len(open_tables(["gs://runs/data/*.txt"])) == 1


def test_objects_that_stand_for_folders_stay(bucket: Bucket) -> None:
    for name in ("out/", "out/a/", "out/a/b"):
        bucket.write(name, name.encode() if name.endswith("b") else b"")
    assert files_of(local_path("gs://runs/out")) == {"a/b": b"out/a/b"}
    with written("gs://runs/out") as path:
        (path / "c").write_bytes(b"new")
    assert bucket.names() == ["out/", "out/a/", "out/a/b", "out/c"]


def test_an_unusable_place_is_found_before_the_work(bucket: Bucket) -> None:
    with pytest.raises(UserError, match="no bucket"), written("gs://nowhere/out"):
        pytest.fail("the block was entered")

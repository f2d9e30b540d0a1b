"""Objects of a bucket: written whole, created once, fetched; what is said of a bucket that cannot be used."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simcse_jax.system.errors import Unreachable, UserError
from simcse_jax.system.object_store import Store, is_address, place_of, require_spelling, shown_path
from tests.bucket import PRIVATE, Bucket, running_bucket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Return a bucket that this process finds."""
    with running_bucket() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("gs://bucket/run", True),
        ("s3://bucket/run", True),
        ("gs:/bucket/run", False),
        ("runs/unsup", False),
        ("run:gs://bucket/run", False),
        ("hf://datasets/a/b/c.txt", False),
        ("https://example.org/a.txt", False),
    ],
)
def test_what_an_address_is(name: str, is_one: bool) -> None:
    assert is_address(name) == is_one


@pytest.mark.parametrize("name", ["gs:/bucket/run", "GS://bucket/run", "gs:", "S3:bucket"])
def test_a_misspelt_address_is_no_folder(name: str) -> None:
    """Else a run would be on one host's disk, in a folder of that name."""
    with pytest.raises(UserError, match="gs://BUCKET/NAME"):
        require_spelling(name, "--workdir")
    for right in ("gs://bucket/run", "./gs:/bucket", "runs/gs"):
        require_spelling(right, "--workdir")


def test_trying_to_write_leaves_nothing_below_the_address(bucket: Bucket) -> None:
    """What lies there may be one object, and stores on disks make no object of a folder's name."""
    written: list[str] = []
    store = Store("gs://runs/vectors.parquet")
    pipe_file = store._files.pipe_file
    store._files.pipe_file = lambda path, content: (written.append(path), pipe_file(path, content))
    store.require_writable()
    assert len(written) == 1
    assert not written[0].startswith("runs/vectors.parquet/")
    assert Store("gs://runs").find() == {}


def test_names_below_a_folder_and_an_address() -> None:
    assert shown_path("gs://bucket/run/", "model") == "gs://bucket/run/model"
    assert shown_path(Path("runs/unsup"), "model") == "runs/unsup/model"
    assert (place_of("gs://bucket/run/"), place_of("runs/unsup/")) == ("gs://bucket/run", Path("runs/unsup"))


def test_objects_are_written_read_listed_and_deleted(bucket: Bucket, tmp_path: Path) -> None:
    store, file = Store("gs://runs/team/a"), tmp_path / "file"
    file.write_bytes(b"one")
    store.put_all({"x/file": file, "file": file})
    Store("gs://runs/team/ab").write("file", b"another's")  # not below the address
    assert {name: entry.size for name, entry in store.find().items()} == {"file": 3, "x/file": 3}
    assert (store.top(), Store("gs://runs/none").top()) == ({"file", "x"}, set())
    tag = store.find()["file"].tag
    store.write("file", b"two")
    assert store.find()["file"].tag != tag
    store.get("file", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == store.read("file") == b"two"
    with pytest.raises(FileNotFoundError):
        store.get("none", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert store.match("gs://runs/team/*/file") == ["gs://runs/team/a/file", "gs://runs/team/ab/file"]
    store.delete(["file", "not-there"])
    assert bucket.names() == ["team/a/x/file", "team/ab/file"]


@pytest.mark.parametrize("content", [b"", b"\r", b"a\n", b"\n\n--==0==\r\n", bytes(range(256)) + b"\r\n\r"])
def test_an_object_is_the_file_byte_by_byte(content: bytes, bucket: Bucket, tmp_path: Path) -> None:
    store, file = Store("gs://runs/team"), tmp_path / "file"
    file.write_bytes(content)
    store.put_all({"sent": file})
    store.write("written", content)
    store.get("sent", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == bucket.read("team/written") == content


def test_objects_that_stand_for_folders_are_none_and_names_that_lead_out_of_a_folder_are_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("team/", "team/a/", "team/a/x/", "team/a/x/file"):
        bucket.write(name, b"" if name.endswith("/") else b"content")
    store = Store("gs://runs/team/a")
    assert set(store.find()) == {"x/file"}
    assert store.top() == {"x"}
    assert store.match("gs://runs/team/a/*") == ["gs://runs/team/a/x"]
    found = {f"runs/team/a/{name}": {"size": 1} for name in ("x", "../../.bashrc")}
    monkeypatch.setattr(store._files, "find", lambda *_, **__: found)
    with pytest.raises(UserError, match="outside of the folder"):
        store.find()


def test_one_of_two_creates_an_object(bucket: Bucket) -> None:
    store = Store("gs://runs/a")
    assert store.create("lock", b"first")
    assert not store.create("lock", b"second")
    assert store.create("lock", b"first"), "as after an answer that was lost"
    assert store.read("lock") == b"first"


def test_a_store_out_of_reach_is_tried_again_up_to_a_limit(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    store = Store("gs://runs/a", said.append)
    store.write("b", b"content")
    bucket.stop()
    back = threading.Timer(0.5, bucket.start)
    back.start()
    assert store.read("b") == b"content"
    assert "gs://runs/a is out of reach" in said[0]
    back.join()
    bucket.stop()
    monkeypatch.setenv("SIMCSE_STORE_RETRY_S", "0.2")
    began = time.monotonic()
    with pytest.raises(Unreachable, match="gs://runs/a is out of reach") as raised:
        Store("gs://runs/a", said.append).write("b", b"")
    assert time.monotonic() - began < 5
    assert raised.value.status == 1
    monkeypatch.setenv("SIMCSE_STORE_RETRY_S", "soon")
    with pytest.raises(UserError, match="SIMCSE_STORE_RETRY_S=soon"):
        Store("gs://runs/a")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://no-such-bucket/run", "there is no bucket 'no-such-bucket'"),
        (f"gs://{PRIVATE}/run", "gcloud auth application-default login"),
        ("s3://bucket/run", "pip install s3fs"),
        ("xyz://bucket/run", "no object store that is known"),
        ("gs://", "no address"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_once(address: str, message: str, bucket: Bucket) -> None:
    for use in (lambda: Store(address).find(), lambda: Store(address).top(), lambda: Store(address).write("a", b"")):
        with pytest.raises(UserError) as raised:
            use()
        assert message in str(raised.value)
        assert raised.value.status == 2

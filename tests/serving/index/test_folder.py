"""Saving and opening: the same index, whole or not at all, and plain words for what is none."""

import json
import mmap
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.serving.index import folder as index_folder
from simcse_jax.serving.index import sentence_index
from simcse_jax.serving.index.rows import BLOCK, STORAGES, open_texts
from simcse_jax.serving.index.sentence_index import SentenceIndex, open_index
from simcse_jax.system import whole_file
from simcse_jax.system.errors import UserError

WIDTH = 8
ODD_TEXTS = ["", "näive", "two\nlines", "\x00", "日本語 🙂"]


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made(count: int, storage: str = "float32") -> SentenceIndex:
    index = SentenceIndex(WIDTH, "abc", storage=storage)
    index.add([ODD_TEXTS[n] if n < len(ODD_TEXTS) else f"text {n}" for n in range(count)], unit(count))
    return index


def is_mapped(array: Any) -> bool:
    """Whether it is a view of a memory-mapped file."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return isinstance(array, mmap.mmap)


def check_same(a: SentenceIndex, b: SentenceIndex, queries: np.ndarray) -> None:
    np.testing.assert_array_equal(a.ids(), b.ids())
    assert a.search(queries, 30) == b.search(queries, 30)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("count", [0, 1, 700, 2 * BLOCK + 300])
def test_round_trip(tmp_path: Path, count: int, storage: str) -> None:
    index, folder = made(count, storage), tmp_path / "new" / "index"
    index.save(folder)
    opened = open_index(folder, "abc")
    assert (opened.width, opened.kind, opened.storage, len(opened)) == (WIDTH, "exact", storage, count)
    check_same(opened, index, unit(20, seed=1))
    if count:
        mapped = [is_mapped(block.rows) for block in opened._vectors.blocks]
        assert mapped == [True] * (count // BLOCK) + [False]
        assert [opened.text(n) for n in range(min(count, 5))] == ODD_TEXTS[: min(count, 5)]


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_change_save_and_change_again(tmp_path: Path, storage: str) -> None:
    """Removed ones are gone from the files, ids stay and are never given again, and an opened index can be changed."""
    index, queries = made(BLOCK + 200, storage), unit(20, seed=1)
    gone = [0, 3, 5, *range(100, BLOCK, 2), BLOCK + 199]
    index.remove(gone)
    index.save(tmp_path)
    opened = open_index(tmp_path, "abc")
    assert json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))["count"] == len(index)
    check_same(opened, index, queries)
    for some in (opened, index):
        assert some.add(["new", "newer"], queries[:2]).tolist() == [BLOCK + 200, BLOCK + 201]
        some.remove([1, BLOCK + 200])
    check_same(opened, index, queries)
    opened.save(tmp_path)  # over the files that it is mapped from
    check_same(opened, index, queries)
    check_same(open_index(tmp_path, "abc"), index, queries)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_save_leaves_the_earlier_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made(50)
    index.save(tmp_path)
    before = made(50)
    index.remove([1])

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index_folder.os, "replace", stop)
        patch.setattr(index_folder.shutil, "rmtree", lambda *_, **__: None)  # as when nothing more can be done
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    check_same(open_index(tmp_path, "abc"), before, unit(5, seed=1))
    index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    check_same(open_index(tmp_path, "abc"), index, unit(5, seed=1))


def test_a_save_that_was_killed_at_first_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "rows-0123abcd").mkdir()
    made(5).save(tmp_path)
    assert len(open_index(tmp_path, "abc")) == 5
    assert not (tmp_path / "rows-0123abcd").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made(5)
    index.save(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_folder.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(open_index(tmp_path, "abc")) == 5


def test_other_folders_are_refused(tmp_path: Path) -> None:
    index, theirs = made(3), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"):
        index.save(theirs)
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        index.save(theirs / "thesis.tex")
    (theirs / "index.json").write_text('{"pages": 3}', encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json"):
        index.save(theirs)
    assert sorted(path.name for path in theirs.iterdir()) == ["index.json", "thesis.tex"]
    index.save(tmp_path / "ours")
    (tmp_path / "ours" / "notes.txt").touch()
    index.save(tmp_path / "ours")
    assert (tmp_path / "ours" / "notes.txt").exists()


def test_a_flipped_bit_is_found_and_older_indexes_have_no_checksums(tmp_path: Path) -> None:
    made(50, "int8").save(tmp_path)
    data = next(tmp_path.glob("rows-*"))
    for name in ("vectors.npy", "scales.npy", "texts.bin", "ends.npy", "ids.npy"):
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
        with pytest.raises(UserError, match=f"damaged: {name}"):
            open_index(tmp_path, "abc")
        (data / name).write_bytes(content)
    record = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    del record["checksums"]
    (tmp_path / "index.json").write_text(json.dumps(record), encoding="utf-8")
    check_same(open_index(tmp_path, "abc"), made(50, "int8"), unit(5, seed=1))


def test_half_of_a_surrogate_pair_in_an_older_index_comes_back(tmp_path: Path) -> None:
    made(1).save(tmp_path)
    data = next(tmp_path.glob("rows-*"))
    (data / "texts.bin").write_bytes("half \ud83d".encode("utf-8", "surrogatepass"))
    np.save(data / "ends.npy", np.array([8]))
    opened = open_texts(data, 1)
    assert opened[0] == "half \ud83d"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _changed(**fields: Any) -> Any:
    def change(folder: Path) -> None:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        (folder / "index.json").write_text(json.dumps(record | fields), encoding="utf-8")

    return change


def _file(name: str) -> Any:
    return lambda folder: next(folder.glob(f"rows-*/{name}"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no index"),
        (lambda folder: (folder / "index.json").unlink(), r"index\.json"),
        (lambda folder: _cut(_file("vectors.npy")(folder)), r"vectors\.npy"),
        (lambda folder: _cut(_file("texts.bin")(folder)), r"texts\.bin"),
        (lambda folder: _file("ids.npy")(folder).unlink(), r"ids\.npy"),
        (lambda folder: _file("ends.npy")(folder).write_bytes(b"\0" * 528), "damaged"),
        (lambda folder: (folder / "index.json").write_text("{", encoding="utf-8"), r"index\.json"),
        (lambda folder: (folder / "index.json").write_text("[]", encoding="utf-8"), r"index\.json"),
        (lambda folder: (folder / "index.json").write_text("[" * 10**5, encoding="utf-8"), r"index\.json"),
        (_changed(format=2), "format 2.*format 1"),
        (_changed(count="50"), "count"),
        (_changed(data="../rows"), "data"),
        (_changed(count=49), r"ids\.npy"),
        (_changed(next_id=49), r"ids\.npy"),
        (_changed(width=9), r"vectors\.npy .*\[50, 8\].*\[50, 9\]"),
        (_changed(storage="float16"), "damaged"),
        (_changed(kind="flat"), "'flat'"),
    ],
)
def test_damage_is_reported(tmp_path: Path, damage: Any, message: str) -> None:
    folder = tmp_path / "index"
    made(50).save(folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        open_index(folder, "abc")


SAVES = """
import sys
from pathlib import Path
from simcse_jax.serving.index.sentence_index import open_index
index = open_index(Path(sys.argv[1]), "abc")
vector = index._vectors.rows(index.ids()[:1] * 0)
print("begins", flush=True)
while True:
    index.add(["one more"], vector)
    index.save(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_whenever_it_is_killed_the_index_is_whole(tmp_path: Path) -> None:
    made(3000).save(tmp_path)
    first, counts = unit(3000)[:1], [3000]
    for wait_s in (0.05, 0.11, 0.23, 3.0):
        process = subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout
        with process.stdout as out:
            assert out.readline() == b"begins\n"
            time.sleep(wait_s)
            process.kill()
            process.wait()
        index = open_index(tmp_path, "abc")
        counts.append(len(index))
        assert [index.text(n) for n in range(5)] == ODD_TEXTS
        assert index.search(first, 1)[0][0].id == 0
        assert index.ids().tolist() == list(range(len(index)))
    assert counts == sorted(counts)
    assert counts[-1] > 3000
    index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_whose_names_cannot_be_synced_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse it; and by then the new index is in place."""
    made(5).save(tmp_path)

    def refuse(path: Path) -> None:
        if path == tmp_path:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(whole_file, "to_disk", refuse)
    made(9).save(tmp_path)
    assert len(open_index(tmp_path, "abc")) == 9


def test_a_save_while_it_is_opened_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(5).save(tmp_path)
    read = sentence_index.read_record

    def read_and_saved_over(folder: Path) -> dict[str, Any]:
        record = read(folder)
        monkeypatch.setattr(sentence_index, "read_record", read)
        made(9).save(folder)
        return record

    monkeypatch.setattr(sentence_index, "read_record", read_and_saved_over)
    assert len(open_index(tmp_path, "abc")) == 9

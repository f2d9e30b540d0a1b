"""Texts and vectors in a Parquet file: what other tools read, whole or resumed, and never something else's."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_jax.serving import vector_file
from simcse_jax.serving.index.folder import fingerprint_difference, vector_fingerprint
from simcse_jax.serving.vector_file import write_vectors
from simcse_jax.system.errors import UserError

WIDTH = 8
ABOUT = {"model": "m", "fingerprint": "f", "texts": "t"}


def vector(text: str) -> np.ndarray:
    return np.random.default_rng(abs(hash(text)) % 2**32).standard_normal(WIDTH).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_file, "PART", 10)


TEXTS = [f"sentence {n} Ωß 語 '\"," for n in range(47)]


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_others_read_the_texts_and_the_vectors(tmp_path: Path, storage: str) -> None:
    out = tmp_path / "new" / "vectors.parquet"
    assert write_vectors(out, iter(TEXTS), encode, WIDTH, ABOUT, storage) == len(TEXTS)
    table = pq.read_table(out)
    assert table.column("text").to_pylist() == TEXTS
    assert (
        str(table.schema.field("vector").type)
        == f"fixed_size_list<element: {'half' if storage == 'float16' else ''}float>[8]"
    )
    expected = encode(TEXTS).astype(storage)
    np.testing.assert_array_equal(np.array(table.column("vector").to_pylist(), storage), expected)
    assert pq.ParquetFile(out).metadata.num_row_groups == 5
    assert json.loads(table.schema.metadata[b"simcse_jax"]) == {**ABOUT, "storage": storage}
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_stopped_command_goes_on_and_encodes_nothing_twice(tmp_path: Path) -> None:
    out, encoded = tmp_path / "vectors.parquet", []

    def breaks(texts: list[str]) -> np.ndarray:
        if len(encoded) >= 20:
            raise KeyboardInterrupt
        encoded.extend(texts)
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        write_vectors(out, TEXTS, breaks, WIDTH, ABOUT)
    assert not out.exists()
    (tmp_path / "vectors.parquet.parts" / ".000002.parquet.partial").write_bytes(b"torn")

    def goes_on(texts: list[str]) -> np.ndarray:
        encoded.extend(texts)
        return encode(texts)

    seen: list[int] = []
    assert write_vectors(out, TEXTS, goes_on, WIDTH, ABOUT, started=seen.append) == len(TEXTS)
    assert encoded == TEXTS
    assert seen == [20]
    assert pq.read_table(out).column("text").to_pylist() == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    # A third time: nothing to do, the texts are not even read.
    assert write_vectors(out, unread(), goes_on, WIDTH, ABOUT) == len(TEXTS)


def unread() -> Iterator[str]:
    raise AssertionError
    yield ""


def test_a_part_that_a_crash_has_torn_is_written_again(tmp_path: Path) -> None:
    out, parts, calls = tmp_path / "vectors.parquet", tmp_path / "vectors.parquet.parts", []

    def breaks(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        write_vectors(out, TEXTS, breaks, WIDTH, ABOUT)
    (parts / "000001.parquet").write_bytes(b"")
    assert write_vectors(out, TEXTS, encode, WIDTH, ABOUT) == len(TEXTS)
    assert pq.read_table(out).column("text").to_pylist() == TEXTS
    # What a kill just before the end has left is cleared away the next time.
    parts.mkdir()
    (parts / "what.json").write_text(json.dumps({**ABOUT, "storage": "float32"}))
    write_vectors(out, TEXTS, encode, WIDTH, ABOUT)
    assert not parts.exists()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "vectors.parquet"
    write_vectors(out, TEXTS[:5], encode, WIDTH, ABOUT)
    with pytest.raises(UserError, match=r"vectors of m.*\bf, not g"):
        write_vectors(out, TEXTS, encode, WIDTH, {**ABOUT, "fingerprint": "g"})
    assert write_vectors(out, TEXTS, encode, WIDTH, {**ABOUT, "model": "./m"}) == 5  # the same by another name
    out.write_text("something")
    with pytest.raises(UserError, match=r"vectors\.parquet"):
        write_vectors(out, TEXTS, encode, WIDTH, ABOUT)
    assert out.read_text() == "something"
    out.unlink()
    (tmp_path / "vectors.parquet.parts").mkdir()
    (tmp_path / "vectors.parquet.parts" / "mine").write_text("")
    with pytest.raises(UserError, match=r"vectors\.parquet\.parts"):
        write_vectors(out, TEXTS, encode, WIDTH, ABOUT)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ("2931-avg-128", ("pooler=avg, not cls_before_pooler", "--pooler=avg")),
        ("2931-cls_before_pooler-32", ("max_length=32, not 128", "--max_length=32")),
        ("00ff-avg-128", ("other weights or another tokenizer, and pooler=avg, not cls_before_pooler", "")),
        ("abc", ("the fingerprint abc, not 2931-cls_before_pooler-128", "")),
    ],
)
def test_what_differs_between_two_models_is_named(found: str, names: tuple[str, str], tmp_path: Path) -> None:
    assert fingerprint_difference(found, vector_fingerprint("2931", "cls_before_pooler", 128)) == names
    about = {**ABOUT, "fingerprint": "2931-cls_before_pooler-128", "model": "n"}
    write_vectors(tmp_path / "v.parquet", TEXTS[:2], encode, WIDTH, {**ABOUT, "fingerprint": found})
    with pytest.raises(UserError, match=f"To go on with it, give {names[1] or '--model=m'}"):
        write_vectors(tmp_path / "v.parquet", TEXTS[:2], encode, WIDTH, about)


def stopped(out: Path, texts: list[str], parts: int) -> None:
    """Write so many parts of these texts, and stop."""
    left = parts

    def encode_some(block: list[str]) -> np.ndarray:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return encode(block)

    with pytest.raises(KeyboardInterrupt):
        write_vectors(out, texts, encode_some, WIDTH, ABOUT)


def test_parts_of_other_texts_continue_as_far_as_they_are_the_same(tmp_path: Path) -> None:
    """As when a line further down was corrected."""
    out, encoded = tmp_path / "vectors.parquet", []

    def counting(texts: list[str]) -> np.ndarray:
        encoded.extend(texts)
        return encode(texts)

    stopped(out, TEXTS, parts=3)
    with pytest.raises(UserError, match=r"other texts.*sentence 0"):
        write_vectors(out, [f"another {text}" for text in TEXTS], encode, WIDTH, {**ABOUT, "texts": "u"})
    corrected = [*TEXTS[:3], "corrected", *TEXTS[4:15], "corrected too", *TEXTS[16:40]]
    assert write_vectors(out, corrected, counting, WIDTH, {**ABOUT, "texts": "u"}) == 40
    assert encoded == [*corrected[:20], *corrected[30:]]
    assert pq.read_table(out).column("text").to_pylist() == corrected


def test_parts_of_another_model_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "vectors.parquet"
    stopped(out, TEXTS, parts=0)
    with pytest.raises(UserError, match="vectors of m, made with"):
        write_vectors(out, TEXTS, encode, WIDTH, {**ABOUT, "fingerprint": "g"})


def test_any_flipped_bit_of_a_part_is_found(tmp_path: Path) -> None:
    out, part = tmp_path / "vectors.parquet", tmp_path / "vectors.parquet.parts" / "000001.parquet"
    stopped(out, TEXTS, parts=3)
    whole = part.read_bytes()
    schema = vector_file._schema(WIDTH, "float32")
    for place in np.random.default_rng(0).permutation(len(whole))[:400].tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        part.write_bytes(damaged)
        found = vector_file._read(part, schema)
        if found is not None:  # a bit without a meaning
            assert found.column("text").to_pylist() == TEXTS[10:20]
            np.testing.assert_array_equal(found.column("vector").to_pylist(), encode(TEXTS[10:20]))
    part.write_bytes(whole[:200] + bytes(8) + whole[208:])
    write_vectors(out, TEXTS, encode, WIDTH, ABOUT)
    np.testing.assert_array_equal(pq.read_table(out).column("vector").to_pylist(), encode(TEXTS))


def test_nothing_to_embed_and_an_unknown_storage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        write_vectors(tmp_path / "v.parquet", [], encode, WIDTH, ABOUT)
    with pytest.raises(UserError, match="float8"):
        write_vectors(tmp_path / "v.parquet", TEXTS, encode, WIDTH, ABOUT, "float8")


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    width = 1000

    def peak(count: int) -> int:
        texts = (f"sentence {n}" for n in range(count))
        out = tmp_path / f"{count}.parquet"
        tracemalloc.reset_peak()
        write_vectors(out, texts, lambda t: np.zeros((len(t), width), np.float32), width, ABOUT)
        assert pa.total_allocated_bytes() < 10**6
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    peak(100)
    few, many = peak(200), peak(2000)
    tracemalloc.stop()
    assert many < few + 800_000  # all vectors would be 8,000,000 bytes


def test_one_command_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "vectors.parquet"

    def encode(texts: list[str]) -> np.ndarray:
        with pytest.raises(UserError, match=r"vectors\.parquet"):
            write_vectors(out, ["b"], encode, 2, {})
        return np.zeros((len(texts), 2), np.float32)

    assert write_vectors(out, ["a"], encode, 2, {}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.parquet"]

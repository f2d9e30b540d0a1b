"""Vectors of texts: each text once, by its hash, in any order; stopped and damaged; files that do not suit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_jax.data.text_vectors import Missing, TextVectors, wanted_texts, write_text_vectors
from simcse_jax.data.tokenise import text_hashes
from simcse_jax.data.vector_files import VectorFiles
from simcse_jax.system.errors import UserError

TEXTS = [f"text {n}" for n in range(20)]
VECTORS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32) * 100
HASHES = text_hashes(TEXTS)


class Source:
    """Give the vectors of a list of texts, four at a time; it counts them, and may fail before a block."""

    name, width, fingerprint = "a model", 6, "abc"

    def __init__(self, texts: list[str], fails_at: int = 1000):
        self.texts, self.fails_at, self.given = texts, fails_at, []

    def blocks(self, missing: Missing) -> Iterator[tuple[list[str], np.ndarray]]:
        for start in range(0, len(self.texts), 4):
            if start >= self.fails_at:
                raise KeyboardInterrupt
            block = self.texts[start : start + 4]
            chosen = [text for text, wanted in zip(block, missing(block), strict=True) if wanted]
            self.given += chosen
            yield chosen, VECTORS[[TEXTS.index(text) for text in chosen]]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_each_text_has_its_own_vector_of_length_one(tmp_path: Path) -> None:
    """Whatever the order, with texts that repeat, texts that nobody wants, and hashes of missing ones."""
    source = Source([*TEXTS[::-1][:9], *[TEXTS[7]] * 3, *TEXTS, *TEXTS[:5]])
    hashes = np.stack([HASHES[3:17], np.where(np.arange(14) % 2, HASHES[3:17], 0)], axis=1)
    write_text_vectors(tmp_path / "v", wanted_texts(hashes), source)
    found = TextVectors(tmp_path / "v", "abc")
    assert (len(found), found.width) == (14, 6)
    assert sorted(source.given) == sorted(TEXTS[3:17])
    vectors = found(hashes)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:, 0], unit(VECTORS[3:17]), atol=1e-3)
    np.testing.assert_array_equal(vectors[::2, 1], 0)
    np.testing.assert_array_equal(vectors[1::2, 1], vectors[1::2, 0])


def test_reduced_vectors_keep_their_products(tmp_path: Path) -> None:
    write_text_vectors(tmp_path / "v", wanted_texts(HASHES), Source(TEXTS))
    whole = TextVectors(tmp_path / "v", "abc")
    assert whole.reduced(0) is whole
    x = whole(HASHES).astype(np.float64)
    for width in (6, 3):
        reduced = whole.reduced(width)
        assert reduced.width == width
        u, s, vt = np.linalg.svd(x)
        best = (u[:, :width] * s[:width]) @ vt[:width]  # Eckart-Young
        found = reduced(HASHES)
        assert found.shape == (20, width)
        np.testing.assert_allclose(found @ found.T, best @ best.T, atol=1e-5)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(np.concatenate([reduced(HASHES[n : n + 1]) for n in range(20)]), found)
    with pytest.raises(UserError, match=r"teacher\.width = 7(.|\n)*teacher\.width=6"):
        whole.reduced(7)


def test_a_stopped_command_goes_on(tmp_path: Path) -> None:
    wanted = wanted_texts(HASHES)
    with pytest.raises(KeyboardInterrupt):
        write_text_vectors(tmp_path / "v", wanted, Source(TEXTS, fails_at=12))
    assert not (tmp_path / "v").exists()
    second = Source(TEXTS)
    write_text_vectors(tmp_path / "v", wanted, second)
    assert second.given == TEXTS[12:]
    np.testing.assert_allclose(TextVectors(tmp_path / "v", "")(HASHES), unit(VECTORS), atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def write(path: Path, texts: list[str], vectors: np.ndarray, storage: Any = None) -> str:
    storage = storage or pa.float32()
    flat = pa.array(vectors.ravel().astype(storage.to_pandas_dtype()), storage)
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({"text": texts, "vector": column}), path)
    return str(path)


def test_vectors_of_several_files_in_another_order(tmp_path: Path) -> None:
    names = [
        write(tmp_path / "a.parquet", TEXTS[10:][::-1], VECTORS[10:][::-1]),
        write(tmp_path / "b.parquet", TEXTS[:12], VECTORS[:12], pa.float16()),
    ]
    files = VectorFiles(names)
    write_text_vectors(tmp_path / "v", wanted_texts(HASHES), files)
    np.testing.assert_allclose(TextVectors(tmp_path / "v", "")(HASHES), unit(VECTORS), atol=2e-3)
    assert files.fingerprint != VectorFiles(names[:1]).fingerprint


def test_a_text_whose_vector_is_zero_keeps_it(tmp_path: Path) -> None:
    vectors = VECTORS.copy()
    vectors[3] = 0
    files = VectorFiles([write(tmp_path / "a.parquet", TEXTS, vectors)])
    write_text_vectors(tmp_path / "v", wanted_texts(HASHES), files)
    np.testing.assert_array_equal(TextVectors(tmp_path / "v", "")(HASHES[3:4]), np.zeros((1, 6)))


def test_files_that_do_not_suit(tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet", TEXTS[:5], VECTORS[:5])
    with pytest.raises(UserError, match=r"good.parquet holds no vector of 15 of the 20 texts"):
        write_text_vectors(tmp_path / "v", wanted_texts(HASHES), VectorFiles([good]))
    assert not list(tmp_path.glob("v*"))
    narrow = write(tmp_path / "narrow.parquet", TEXTS[5:], VECTORS[5:, :4])
    with pytest.raises(UserError, match="widths 6, 4"):
        VectorFiles([good, narrow])
    pq.write_table(pa.table({"sentence": TEXTS}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other.parquet has no columns `text` and `vector`.*it has sentence"):
        VectorFiles([str(tmp_path / "other.parquet")])
    with pytest.raises(UserError, match=r"no file .*none.parquet"):
        VectorFiles([str(tmp_path / "none.parquet")])
    broken = VECTORS.copy()
    broken[7, 2] = np.nan
    with pytest.raises(UserError, match=r"bad.parquet: .*not finite.*'text 7'"):
        write_text_vectors(
            tmp_path / "v", wanted_texts(HASHES), VectorFiles([write(tmp_path / "bad.parquet", TEXTS, broken)])
        )
    column = pa.array([None, *VECTORS[1:].tolist()], pa.list_(pa.float32(), 6))
    for holes in (
        {"text": TEXTS, "vector": column},
        {"text": [None, *TEXTS[1:]], "vector": column.fill_null([0.0] * 6)},
    ):
        pq.write_table(pa.table(holes), tmp_path / "holes.parquet")
        with pytest.raises(UserError, match=r"holes.parquet has rows without a text or a vector"):
            write_text_vectors(tmp_path / "w", wanted_texts(HASHES), VectorFiles([str(tmp_path / "holes.parquet")]))

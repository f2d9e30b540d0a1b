"""The binary index against its definition in NumPy: the fewest bits that differ, then inner products."""

from pathlib import Path

import numpy as np
import pytest

from simcse_jax.serving.index import binary
from simcse_jax.serving.index.rescoring import FEWEST
from simcse_jax.serving.index.rows import BLOCK
from simcse_jax.serving.index.sentence_index import SentenceIndex, open_index
from simcse_jax.system.errors import UserError

WIDTH = 40  # not a multiple of 32


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "SMALLEST", 1000)


def made(vectors: np.ndarray, storage: str = "float32") -> SentenceIndex:
    index = SentenceIndex(WIDTH, "abc", "binary", storage)
    index.add([f"text {n}" for n in range(len(vectors))], vectors)
    return index


def by_definition(index: SentenceIndex, queries: np.ndarray, top_k: int) -> np.ndarray:
    """Return the ids of the best of the candidates: those with the fewest features of another sign, then lower ids."""
    ids = index.ids()
    stored = index._vectors.rows(index._places(ids.tolist()))
    wanted = min(max(binary.OVERSAMPLED * top_k, FEWEST), len(ids))
    out = []
    for query in queries:
        differ = ((query > 0) != (stored > 0)).sum(axis=1)
        candidates = np.lexsort((ids, differ))[:wanted]
        scores = stored[candidates] @ query
        out.append(ids[candidates[np.lexsort((ids[candidates], -scores))[:top_k]]])
    return np.stack(out)


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("count", [1500, BLOCK + 700])
def test_what_is_found_is_the_best_of_the_nearest_by_bits(storage: str, count: int) -> None:
    index, queries = made(unit(count), storage), unit(5, seed=1)
    for top_k in (1, 10, 30):
        scores, ids = index.nearest(queries, top_k)
        np.testing.assert_array_equal(ids, by_definition(index, queries, top_k))
        stored = index._vectors.rows(index._places(ids.ravel().tolist())).reshape(*ids.shape, -1)
        np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, stored), rtol=0, atol=1e-6)


def test_codes_are_the_signs() -> None:
    vectors = unit(3)
    vectors[1, :5] = [0, -0.0, 1e-20, -1e-20, 1]
    codes = binary.signs(vectors)
    assert (codes.dtype, codes.shape) == (np.uint32, (3, 2))
    bits = [[code[n // 32] >> n % 32 & 1 for n in range(64)] for code in codes.tolist()]
    expected = np.zeros((3, 64), int)
    expected[:, :WIDTH] = vectors > 0
    assert bits == expected.tolist()


def test_through_additions_removal_and_files(tmp_path: Path) -> None:
    queries = unit(6, seed=1)
    index = made(unit(1400))
    index.remove(range(0, 900, 3))
    index.prepare()
    index.add(["more"] * 2000, unit(2000, seed=2))
    index.remove(index.nearest(queries, 2)[1].ravel().tolist())
    np.testing.assert_array_equal(index.nearest(queries, 9)[1], by_definition(index, queries, 9))
    index.save(tmp_path)
    opened = open_index(tmp_path, "abc")
    assert isinstance(opened._approximate, binary.BinarySearch)
    assert len(opened._approximate._codes) == len(opened)  # of the file: no vector had to be read
    np.testing.assert_array_equal(opened.nearest(queries, 9)[1], index.nearest(queries, 9)[1])
    opened.add(["new"] * len(queries), queries)
    assert {hits[0].text for hits in opened.search(queries)} == {"new"}
    path = next(tmp_path.glob("rows-*/codes.npy"))
    assert path.stat().st_size < 4 * 2 * len(index) + 200  # a bit for each feature
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"damaged: codes\.npy"):
        open_index(tmp_path, "abc")


def test_few_texts_are_searched_exactly(tmp_path: Path) -> None:
    index, queries = made(unit(900)), unit(4, seed=1)
    best = np.argsort(-(queries @ unit(900).T), axis=1)[:, :20]
    np.testing.assert_array_equal(index.nearest(queries, 20)[1], best)
    index.save(tmp_path)
    np.testing.assert_array_equal(open_index(tmp_path, "abc").nearest(queries, 20)[1], best)
    assert index.nearest(queries, 5000)[1].shape == (4, 900)


def test_all_may_be_wanted() -> None:
    index = made(unit(1200))
    scores, ids = index.nearest(unit(2, seed=1), 1200)
    assert all(sorted(row) == list(range(1200)) for row in ids.tolist())
    assert (np.diff(scores) <= 0).all()

"""HNSW and IVF-PQ through faiss: what they find of the best, exact scores, additions, removal and files."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.serving.index import approximate
from simcse_jax.serving.index.sentence_index import SentenceIndex, open_index
from simcse_jax.system.errors import UserError

WIDTH, COUNT = 16, 4000


def clustered(count: int, seed: int) -> np.ndarray:
    """float32[n, D] of length 1, around the same 50 centres whatever the seed."""
    centres = np.random.default_rng(99).standard_normal((50, WIDTH))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(50, size=count)] + 0.5 * rng.standard_normal((count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(COUNT, 0), clustered(60, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    # One thread: faiss's threads wait for each other by spinning, which is slow where tests run side by side.
    pytest.importorskip("faiss").omp_set_num_threads(1)
    monkeypatch.setattr(approximate, "SMALLEST", 1000)


def made(kind: str, count: int = COUNT, storage: str = "float32") -> SentenceIndex:
    index = SentenceIndex(WIDTH, "abc", kind, storage)
    index.add([f"text {n}" for n in range(count)], VECTORS[:count])
    return index


def recall(index: SentenceIndex, top_k: int = 10) -> float:
    """Return the share of the best that are found; check that the scores of what is found are exact."""
    alive = index.ids()
    scores, ids = index.nearest(QUERIES, top_k)
    assert set(ids.ravel().tolist()) <= set(alive.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    stored = index._vectors.rows(index._places(ids.ravel().tolist())).reshape(*ids.shape, -1)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", QUERIES, stored), rtol=0, atol=1e-6)
    all_stored = index._vectors.rows(index._places(alive.tolist()))
    best = alive[np.argsort(-(QUERIES @ all_stored.T), axis=1)[:, :top_k]]
    return float(np.mean([len(set(a) & set(b)) / top_k for a, b in zip(ids.tolist(), best.tolist(), strict=True)]))


def is_approximate(index: SentenceIndex) -> bool:
    found: Any = index._approximate
    return found is not None and found._index is not None


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.98), ("ivfpq", 0.9)])
def test_nearly_all_of_the_best_are_found(kind: str, least: float, storage: str) -> None:
    index = made(kind, storage=storage)
    assert recall(index) >= least
    assert is_approximate(index)


@pytest.mark.parametrize("kind", approximate.KINDS)
def test_few_texts_are_searched_exactly(kind: str, tmp_path: Path) -> None:
    index = made(kind, 900)
    assert recall(index) == 1
    assert not is_approximate(index)
    index.save(tmp_path)
    assert recall(open_index(tmp_path, "abc")) == 1


@pytest.mark.parametrize("kind", approximate.KINDS)
def test_through_additions_removal_and_files(kind: str, tmp_path: Path) -> None:
    index = made(kind, 2000)
    index.prepare()
    index.add(["more"] * (COUNT - 2000), VECTORS[2000:])
    index.remove(index.nearest(QUERIES, 3)[1].ravel().tolist())
    index.remove(set(range(0, COUNT, 3)) & set(index.ids().tolist()))
    assert recall(index) >= 0.9
    index.save(tmp_path)
    opened = open_index(tmp_path, "abc")
    np.testing.assert_array_equal(opened.nearest(QUERIES, 5)[1], index.nearest(QUERIES, 5)[1])
    opened.remove(opened.nearest(QUERIES, 1)[1].ravel().tolist())
    opened.add(["new"] * len(QUERIES), QUERIES)
    assert {hits[0].text for hits in opened.search(QUERIES)} == {"new"}
    assert recall(opened) >= 0.9
    opened.save(tmp_path)
    assert recall(open_index(tmp_path, "abc")) >= 0.9


def test_built_anew_once_most_is_gone_or_it_has_grown() -> None:
    for kind in approximate.KINDS:
        index = made(kind, 3000)
        index.prepare()
        index.remove(range(1700))
        assert recall(index) >= 0.9
        found: Any = index._approximate
        assert len(found._places) == 1300
    index = made("ivfpq", 1000)
    index.prepare()
    index.add([""] * (COUNT - 1000), VECTORS[1000:])
    index.add([""] * 500, VECTORS[:500])
    index.prepare()
    found = index._approximate
    assert found._index.nlist == 67  # the square root of 4,500; it was 31


def test_too_few_left_to_be_worth_it_lose_nothing(tmp_path: Path) -> None:
    """New rows that faiss has not seen are not forgotten by a save."""
    index = made("hnsw", 1500)
    index.prepare()
    index.remove(range(800))
    index.add(["new"], QUERIES[:1])
    index.save(tmp_path)
    opened = open_index(tmp_path, "abc")
    assert opened.search(QUERIES[:1])[0][0].text == "new"
    opened.add(["more"] * 1000, VECTORS[2000:3000])
    assert opened.search(QUERIES[:1])[0][0].text == "new"


def test_more_wanted_than_are_found() -> None:
    index = made("ivfpq")
    scores, ids = index.nearest(QUERIES, COUNT)
    assert ids.shape == (60, COUNT)
    found = ids[0] >= 0
    assert 100 < found.sum() < COUNT
    assert np.isneginf(scores[0, ~found]).all()
    assert found[: found.sum()].all()
    assert len(index.search(QUERIES[:1], COUNT)[0]) == found.sum()


def test_damage_is_reported(tmp_path: Path) -> None:
    for kind in approximate.KINDS:
        made(kind, 2000).save(tmp_path)
        path = next(tmp_path.glob("rows-*/faiss.bin"))
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(UserError, match=r"damaged: faiss\.bin"):
            open_index(tmp_path, "abc")
    made("hnsw", 2000).save(tmp_path)
    path = next(tmp_path.glob("rows-*/places.npy"))
    np.save(path, np.load(path) + 1)
    with pytest.raises(UserError, match=r"places\.npy"):
        open_index(tmp_path, "abc")


def test_without_faiss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made("hnsw", 5).save(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install faiss-cpu"):
        SentenceIndex(WIDTH, "abc", "ivfpq")
    with pytest.raises(UserError, match=r"pip install faiss-cpu"):
        open_index(tmp_path, "abc")
    assert len(SentenceIndex(WIDTH, "abc")) == 0

"""The index against a brute force in float64: values, ties, removal, storage, and what it says to bad input."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from simcse_jax.serving.index.exact import SEGMENT
from simcse_jax.serving.index.rows import BLOCK, STORAGES
from simcse_jax.serving.index.sentence_index import Hit, SentenceIndex, open_index
from simcse_jax.system.errors import UserError

WIDTH = 24


def unit(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """float32[n, D]: random vectors of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def texts(count: int) -> list[str]:
    return [f"text {n}" for n in range(count)]


def made(count: int, seed: int = 0, kind: str = "exact", storage: str = "float32") -> SentenceIndex:
    index = SentenceIndex(WIDTH, "abc", kind, storage)
    index.add(texts(count), unit(count, seed))
    return index


def brute_force(queries: np.ndarray, vectors: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.lexsort((np.broadcast_to(ids, scores.shape), -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), ids[order]


@pytest.mark.parametrize(
    ("count", "queries", "top_k"),
    [
        (1, 3, 10),
        (5, 1, 1),
        (300, 2, 100),
        (BLOCK, 130, 5),
        (2 * BLOCK + 777, 3, 10),
        (BLOCK + 500, 2, 200),
        (BLOCK + 500, 2, BLOCK + 100),
        (BLOCK + 500, 2, 10**9),
    ],
)
def test_the_best_of_all_are_found(count: int, queries: int, top_k: int) -> None:
    index, asked = made(count), unit(queries, seed=1)
    scores, ids = index.nearest(asked, top_k)
    expected, _ = brute_force(asked, unit(count), np.arange(count), top_k)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    assert scores.shape == ids.shape == (queries, min(top_k, count))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    found = np.einsum("qd,qkd->qk", asked.astype(np.float64), unit(count)[ids])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # ids belong to the scores
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.parametrize("storage", STORAGES)
def test_hits_from_one_and_from_several_segments_and_blocks(storage: str, tmp_path: Path) -> None:
    """Hits wherever they are: 16 neighbours of one segment, one in each segment, and both sides of each border."""
    count = BLOCK + 5 * SEGMENT + 17
    query, away = unit(1, seed=2)[0], -unit(1, seed=2)[0]
    for places in (
        range(3 * SEGMENT, 3 * SEGMENT + 16),
        range(5, 16 * SEGMENT, SEGMENT),
        [0, SEGMENT - 1, SEGMENT, BLOCK - 1, BLOCK, BLOCK + SEGMENT, count - 17, count - 1],
    ):
        vectors = np.tile(away, (count, 1))
        # The later, the more similar: the best so far has to change in each block.
        mix = np.linspace(0.3, 1, len(places), dtype=np.float32)[:, None] * query + 0.2 * unit(len(places), seed=3)
        vectors[list(places)] = mix / np.linalg.norm(mix, axis=1, keepdims=True)
        index = SentenceIndex(WIDTH, "abc", storage=storage)
        index.add(texts(BLOCK), vectors[:BLOCK])
        index.save(tmp_path)
        opened = open_index(tmp_path, "abc")  # its blocks and texts are of a file, and the rest is added in memory
        for some in (index, opened):
            some.add(texts(count)[BLOCK:], vectors[BLOCK:])
            expected = [int(n) for n in np.argsort(-(vectors @ query), kind="stable")[: len(places)]]
            hits = some.search(query[None], len(places))[0]
            assert {hit.id for hit in hits} == set(places)
            if storage != "int8":  # whose rounding may swap two
                assert [hit.id for hit in hits] == expected
            assert [hit.text for hit in hits] == [f"text {hit.id}" for hit in hits]


@pytest.mark.parametrize("better", [[18_500, 300, 7, 129, 16_500, 5000], [300, 5000, 16_500]])
def test_equal_scores_by_lower_id(better: list[int]) -> None:
    """Over segments and blocks, with more equal scores than results; the best may be in later segments only."""
    count = BLOCK + 3000
    vectors = np.tile(unit(1, seed=2), (count, 1))
    query = vectors[:1]
    vectors[better] = -vectors[better]
    index = SentenceIndex(WIDTH, "abc")
    index.add(texts(count), vectors)
    rest = [n for n in range(count) if n not in better]
    for top_k in (1, 4, 5, 9, 40):
        _, ids = index.nearest(query, top_k)
        assert ids[0].tolist() == rest[:top_k]
        _, ids = index.nearest(-query, top_k)
        assert ids[0].tolist() == (sorted(better) + rest)[:top_k]


def test_few_shapes_are_compiled() -> None:
    from simcse_jax.serving.index import exact

    index, step = made(2000), cast(Any, exact._step)
    for queries in (97, 100, 112, 1, 3, 4):
        for top_k in (1, 10, 16):
            index.nearest(unit(queries, seed=1), top_k)
    before = step._cache_size()
    index.add(texts(40), unit(40, seed=3))
    index.remove([5])
    index.nearest(unit(105, seed=1), 7)
    index.nearest(unit(2, seed=1), 2)
    assert step._cache_size() == before


def test_the_path_of_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    index, asked = made(1000), unit(5, seed=1)
    exact = index.nearest(asked, 10)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    scores, ids = index.nearest(asked, 10)
    np.testing.assert_array_equal(ids, exact[1])  # on a CPU, approx_max_k is exact
    np.testing.assert_allclose(scores, exact[0], rtol=0, atol=1e-6)


def test_a_cpu_searches_the_vectors_where_they_are(tmp_path: Path) -> None:
    """In memory and in a file: no copy is made, so memory stays flat and no time goes into it."""
    index = made(BLOCK + 300)
    index.save(tmp_path)
    for some in (index, open_index(tmp_path, "abc")):
        for b, count in ((0, BLOCK), (1, 300)):
            placed: Any = some._exact._on_device(b, count).rows
            assert placed.unsafe_buffer_pointer() == some._vectors.blocks[b].rows.ctypes.data
            assert len(placed) == (BLOCK if b == 0 else 512)


def test_blocks_stay_on_a_device_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from simcse_jax.serving.index import exact

    monkeypatch.setattr(exact, "_has_room", lambda: True)
    index, asked = made(2 * BLOCK + 10), unit(3, seed=1)
    first = index.nearest(asked, 5)
    assert sorted(index._exact._resident) == [0, 1]  # the third one is not full, and may change
    index.remove(first[1][:, 0].tolist())
    (new,) = index.add(["new"], asked[:1])
    _, ids = index.nearest(asked, 4)
    np.testing.assert_array_equal(ids[1:], first[1][1:, 1:])
    assert ids[0].tolist() == [new, *first[1][0, 1:4]]


def test_added_and_removed() -> None:
    index = SentenceIndex(WIDTH, "abc")
    assert len(index) == 0
    assert index.nearest(unit(2), 3)[0].shape == (2, 0)
    assert index.search(unit(2)) == [[], []]
    vectors = unit(600)
    assert index.add(texts(600)[:1], vectors[:1]).tolist() == [0]
    assert index.add(texts(600)[1:], vectors[1:]).tolist() == list(range(1, 600))
    assert index.add([], np.zeros((0, WIDTH), np.float32)).tolist() == []
    gone = [0, 599, *range(100, 200)]
    index.remove(gone)
    index.remove([])
    assert len(index) == 498
    left = np.setdiff1d(np.arange(600), gone)
    np.testing.assert_array_equal(index.ids(), left)
    scores, ids = index.nearest(vectors[:50], 498)
    expected, expected_ids = brute_force(vectors[:50], vectors[left], left, 498)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ids[:, :5], expected_ids[:, :5])
    assert index.add(["again"], vectors[:1]).tolist() == [600]
    assert index.text(600) == "again"
    ((hit,),) = index.search(vectors[:1], top_k=1)
    assert hit == Hit("again", hit.score, 600)
    assert hit.score == pytest.approx(1, abs=1e-6)


def test_hits_reach_the_threshold() -> None:
    index, asked = made(500), unit(3, seed=1)
    everything = index.search(asked, top_k=20)
    assert [len(hits) for hits in everything] == [20] * 3
    some = everything[1][7]
    assert some.text == index.text(some.id) == f"text {some.id}"
    assert index.search(asked, top_k=20, threshold=some.score)[1] == everything[1][:8]
    assert index.search(asked, threshold=0.999) == [[], [], []]
    assert len(index.search(asked)[0]) == 5


@pytest.mark.parametrize("storage", STORAGES)
def test_scores_are_of_the_stored_vectors(storage: str) -> None:
    index, asked, vectors = made(3000, storage=storage), unit(40, seed=1), unit(3000)
    scores, ids = index.nearest(asked, 10)
    stored = index._vectors.rows(np.arange(3000))
    np.testing.assert_allclose(stored, vectors, rtol=0, atol={"float32": 0, "float16": 3e-4, "int8": 4e-3}[storage])
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", asked, stored[ids]), rtol=0, atol=1e-6)
    _, expected = brute_force(asked, vectors, np.arange(3000), 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), expected.tolist(), strict=True)])
    assert recall >= {"float32": 1, "float16": 0.99, "int8": 0.95}[storage]
    assert index._vectors.blocks[0].rows.dtype == storage


def test_bad_input_is_named_and_changes_nothing() -> None:
    index = made(10)
    bad = unit(2)
    bad[1, 3] = np.nan
    calls = [
        (lambda: SentenceIndex(WIDTH, "abc", kind="flat"), "'flat'.*hnsw"),
        (lambda: SentenceIndex(WIDTH, "abc", storage="int4"), "'int4'.*int8"),
        (lambda: SentenceIndex(0, "abc"), "0"),
        (lambda: index.add(["a", "b"], bad), "Row 1 of the vectors"),
        (lambda: index.add(["a"], unit(2)), "1 texts but 2 vectors"),
        (lambda: index.add(["a"], 3 * unit(1)), "Vector 0 has length 3"),
        (lambda: index.add(["a"], unit(1, width=5)), r"\[1, 5\]"),
        (lambda: index.add(["a"], unit(1)[0]), r"\[24\]"),
        (lambda: index.nearest(bad, 3), "Row 1 of the queries"),
        (lambda: index.nearest(1e30 * unit(2), 3), "Row 0 of the queries"),
        (lambda: index.nearest(1e300 * unit(2).astype(np.float64), 3), "Row 0 of the queries"),
        (lambda: index.nearest(unit(1)[0], 3), r"\[24\]"),
        (lambda: index.nearest(unit(1), 0), "top_k is 0"),
        (lambda: index.nearest(unit(1), 2.5), "top_k is 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: index.search(unit(1), threshold=float("nan")), "threshold is nan"),
        (lambda: index.remove([3, 10]), "id 10: .*0 to 9"),
        (lambda: index.remove([-1]), "id -1"),
        (lambda: index.remove(3), "3"),  # pyright: ignore[reportArgumentType]
        (lambda: index.remove(["3"]), "'3'"),  # pyright: ignore[reportArgumentType]
        (lambda: index.text(10**30), "id 1000"),
    ]
    for texts in (["a", None], "ab"):
        with pytest.raises(TypeError):
            index.add(texts, unit(2))  # pyright: ignore[reportArgumentType]
    for call, message in calls:
        with pytest.raises(UserError, match=message):
            call()
    assert len(index) == 10
    index.remove([3])
    with pytest.raises(UserError, match=r"id 3 .*removed"):
        index.text(3)
    with pytest.raises(UserError, match=r"id 3 .*removed"):
        index.remove([4, 3])
    assert index.text(4) == "text 4"

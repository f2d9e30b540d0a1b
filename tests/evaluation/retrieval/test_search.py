"""Test exact search in blocks against sorting all scores."""

import tracemalloc

import numpy as np
import pytest

from simcse_jax.evaluation.retrieval import search
from simcse_jax.evaluation.retrieval.search import expand_equal, nearest


def _sorted(queries: np.ndarray, rows: np.ndarray, depth: int) -> np.ndarray:
    scores = queries @ rows.T
    return np.lexsort((np.broadcast_to(np.arange(len(rows)), scores.shape), -scores), axis=1)[:, :depth]


@pytest.mark.parametrize("levels", [4, 0], ids=["many equal scores", "one score"])
@pytest.mark.parametrize("depth", [1, 7, 40])
def test_the_best_are_found_and_equal_scores_go_by_place(
    monkeypatch: pytest.MonkeyPatch, levels: int, depth: int
) -> None:
    monkeypatch.setattr(search, "QUERIES", 4)
    monkeypatch.setattr(search, "ROWS", 16)
    rng = np.random.default_rng(0)
    queries, rows = (rng.integers(0, levels + 1, (n, 3)).astype(np.float32) for n in (10, 90))
    for sizes in ((90,), (5, 60, 25)):
        scores, places = nearest(queries, np.split(rows, np.cumsum(sizes)[:-1]), depth)
        np.testing.assert_array_equal(places, _sorted(queries, rows, depth))
        np.testing.assert_array_equal(scores, np.take_along_axis(queries @ rows.T, places, axis=1))


def test_fewer_rows_than_wanted() -> None:
    scores, places = nearest(np.eye(2, dtype=np.float32), [np.eye(2, dtype=np.float32)], 4)
    assert places.tolist() == [[0, 1, -1, -1], [1, 0, -1, -1]]
    assert scores.tolist() == [[1, 0, -np.inf, -np.inf]] * 2


def test_places_that_stand_for_several_rows() -> None:
    """Against a search of all rows, in which some are equal."""
    rng = np.random.default_rng(1)
    distinct = rng.integers(0, 3, (20, 3)).astype(np.float32)
    distinct = distinct[np.sort(np.unique(distinct, axis=0, return_index=True)[1])]
    owner = np.concatenate([np.arange(len(distinct)), rng.integers(0, len(distinct), 60)])
    queries = rng.normal(size=(8, 3)).astype(np.float32)
    starts = np.searchsorted(np.sort(owner), np.arange(len(distinct) + 1))
    for depth in (3, 30, 200):
        found = expand_equal(*nearest(queries, [distinct], depth), np.argsort(owner, kind="stable"), starts, depth)
        expected = np.full((8, depth), -1)
        expected[:, : min(depth, len(owner))] = _sorted(queries, distinct[owner], depth)
        np.testing.assert_array_equal(found[1], expected)


def test_scores_of_all_pairs_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUERIES", 50)
    monkeypatch.setattr(search, "ROWS", 500)
    queries = np.random.default_rng(2).normal(size=(500, 4)).astype(np.float32)
    tracemalloc.start()
    nearest(queries, (np.random.default_rng(n).normal(size=(500, 4)).astype(np.float32) for n in range(20)), 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 * 10_000 * 4 / 10

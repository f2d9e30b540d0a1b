"""Score candidates from the stored vectors: what every search does that finds them from shorter codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simcse_jax.serving.index.rows import Vectors

FEWEST = 64  # candidates of a query at least
BUDGET = 256 * 2**20  # bytes of the candidates' float32 vectors that are scored together


def rescored(
    vectors: Vectors, queries: np.ndarray, top_k: int, wanted: int, find: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best `top_k` of each query's candidates as `ExactSearch.nearest` does.

    queries: float32[Q, D]. find: takes some of them, and returns the places of `wanted` candidates for each, int64[q,
    wanted], -1 for none.
    """
    scores = np.full((len(queries), top_k), -np.inf, np.float32)
    places = np.full((len(queries), top_k), -1, np.int64)
    together = max(BUDGET // (4 * wanted * vectors.width), 1)
    for at in range(0, len(queries), together):
        some = np.ascontiguousarray(queries[at : at + together])
        found = find(some)
        # For -1 any row; its score is set to -inf.
        rows = vectors.rows(found.ravel()).reshape(*found.shape, -1)
        exact = np.where(found >= 0, np.einsum("qd,qcd->qc", some, rows), np.float32(-np.inf))
        order = np.lexsort((found, -exact))[:, :top_k]
        filled = slice(at, at + len(some)), slice(0, order.shape[1])
        scores[filled] = np.take_along_axis(exact, order, axis=1)
        places[filled] = np.take_along_axis(found, order, axis=1)
    return scores, places

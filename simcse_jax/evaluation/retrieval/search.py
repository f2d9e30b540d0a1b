"""Search exactly in bounded memory: score block by block, and keep the best of each query.

No more than QUERIES x ROWS scores are held at a time. Of equal scores the lower place comes first.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

QUERIES = 1024  # scored at a time
ROWS = 16384  # documents scored at a time


def nearest(queries: np.ndarray, chunks: Iterable[np.ndarray], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest inner products, float32[Q, depth] descending, and the places of their rows, int64[Q, depth].

    queries: float32[Q, D]. chunks: float32[n, D] each, rows with consecutive places from 0. With fewer than `depth`
    rows in all, the rest is -inf and -1.
    """
    scores = np.full((len(queries), depth), -np.inf, np.float32)
    places = np.full((len(queries), depth), -1, np.int64)
    first = 0
    for chunk in chunks:
        for start in range(0, len(chunk), ROWS):
            rows = chunk[start : start + ROWS]
            for at in range(0, len(queries), QUERIES):
                some = slice(at, at + QUERIES)
                _keep_best(scores[some], places[some], queries[some] @ rows.T, first + start)
        first += len(chunk)
    return scores, places


def _keep_best(best: np.ndarray, places: np.ndarray, found: np.ndarray, first: int) -> None:
    """Merge scores float32[q, n] of rows from place `first` on into the best so far, in place."""
    depth, count = best.shape[1], found.shape[1]
    if places[0, -1] >= 0:  # as many as wanted: a later row must be better than the last of them
        rows, columns = np.nonzero(found > best[:, -1:])
    elif count > depth:  # the first block: all that are as good as the last one to keep
        rows, columns = np.nonzero(found >= np.partition(found, count - depth, axis=1)[:, [count - depth]])
    else:
        rows, columns = np.divmod(np.arange(found.size), count)
    old = np.repeat(np.arange(len(best)), depth)
    all_rows = np.concatenate([old, rows])
    all_scores = np.concatenate([best.ravel(), found[rows, columns]])
    all_places = np.concatenate([places.ravel(), columns + first])
    order = np.lexsort((all_places, -all_scores, all_rows))
    starts = np.searchsorted(all_rows[order], np.arange(len(best)))
    kept = order[starts[:, None] + np.arange(depth)]
    best[:], places[:] = all_scores[kept], all_places[kept]


def expand_equal(
    scores: np.ndarray, places: np.ndarray, members: np.ndarray, starts: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the results of `nearest` with each place replaced by all rows that it stands for, cut at `depth`.

    members: int64[N], the rows, those of place p at members[starts[p] : starts[p + 1]], ascending; the first rows of
    the places ascend too. So what is cut here, or was cut before, comes after `depth` others.
    """
    counts = np.where(places >= 0, np.minimum(np.diff(starts)[places], depth), 1)
    flat = counts.ravel()
    owners = np.repeat(np.arange(places.size), flat)
    offsets = np.arange(len(owners)) - np.repeat(flat.cumsum() - flat, flat)
    place, row = places.ravel()[owners], owners // places.shape[1]
    of_row = np.where(place >= 0, members[np.where(place >= 0, starts[place] + offsets, 0)], -1)
    score = scores.ravel()[owners]
    order = np.lexsort((of_row, -score, row))
    kept = order[np.searchsorted(row[order], np.arange(len(places)))[:, None] + np.arange(depth)]
    return score[kept], of_row[kept]

"""Search exactly: compute every score on the accelerator, block by block, and keep the best.

The scores of a block are a matrix product. Its best are found in two steps: the maximum of each segment of 128
neighbours, then all scores of the best k segments. The k best scores always lie in those segments, also with ties to
the lower place, and the large matrix is read once. Only the best so far pass from block to block, so memory stays flat.

On a TPU `approx_max_k` replaces the two steps: its scores are exact, and it finds at least RECALL of the best on
average. There are few shapes (blocks of 2^n rows, QUERIES, `_kept`), so that new numbers of queries or results rarely
compile anew.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.serving.index.rows import BLOCK, Block, Rows
from simcse_jax.system.devices import require_unforked

SEGMENT = 128  # scores whose maximum is compared first
SMALLEST = 256  # rows of the smallest block
QUERIES = (1, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)  # compiled numbers of queries; more are split
FEWEST = 16  # results that are computed at least; more are FEWEST times a power of 4
RECALL = 0.99  # of `approx_max_k` on a TPU
AHEAD = 2  # blocks that are sent to the device while one is computed


class ExactSearch:
    """Find the nearest of all stored vectors; full blocks stay in the memory of a GPU or TPU while there is room.

    Of codes, which are uint32, the score is minus the number of bits that differ.
    """

    def __init__(self, vectors: Rows):
        self._vectors = vectors
        self._resident: dict[int, Block] = {}

    def nearest(self, queries: np.ndarray, alive: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inner products float32[Q, k], descending, and places int64[Q, k]; equal scores by place.

        queries: float32[Q, D]. alive: bool[N], the rows that may be found. With fewer than k such rows, the rest is
        -inf and -1.
        """
        require_unforked()
        kept = _kept(top_k)
        parts = [queries[at : at + QUERIES[-1]] for at in range(0, len(queries), QUERIES[-1])]
        padded = [jax.device_put(_pad(part, next(n for n in QUERIES if n >= len(part)))) for part in parts]
        best = [
            (jnp.full((len(part), kept), -jnp.inf, jnp.float32), jnp.full((len(part), kept), -1, jnp.int32))
            for part in padded
        ]
        approximate, previous = jax.default_backend() == "tpu", [best] * AHEAD
        for b in range(len(self._vectors.blocks)):
            some = alive[b * BLOCK : (b + 1) * BLOCK]
            if some.any():
                rows, scales = self._on_device(b, len(some))
                open_ = jax.device_put(_pad(some, len(rows)))
                best = [
                    _step(*old, part, rows, scales, open_, b * BLOCK, approximate)
                    for old, part in zip(best, padded, strict=True)
                ]
                jax.block_until_ready(previous.pop(0))  # otherwise all blocks would be sent at once
                previous.append(best)
        scores = [np.asarray(found[0])[: len(part), :top_k] for found, part in zip(best, parts, strict=True)]
        places = [np.asarray(found[1])[: len(part), :top_k] for found, part in zip(best, parts, strict=True)]
        empty = np.zeros((0, top_k))
        return (
            np.concatenate([*scores, empty.astype(np.float32)]),
            np.concatenate([*places, empty.astype(np.int64)]).astype(np.int64),
        )

    def _on_device(self, b: int, count: int) -> Block:
        """Return block b on the device, cut to the smallest compiled number of rows that holds `count`."""
        if b in self._resident:
            return self._resident[b]
        size = max(SMALLEST, 1 << (count - 1).bit_length())
        block = self._vectors.blocks[b]
        # On a CPU this copies nothing, since the arrays are aligned. Rows that are not filled yet are masked.
        placed = Block(*jax.device_put((block.rows[:size], None if block.scales is None else block.scales[:size])))
        if count == BLOCK and _has_room():
            self._resident[b] = placed
        return placed


def _has_room() -> bool:
    """Return whether the device has its own memory, and uses less than half of it."""
    device = jax.devices()[0]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    return 2 * stats.get("bytes_in_use", 0) < stats.get("bytes_limit", 0)


def _kept(top_k: int) -> int:
    """Return the number of results to compute when `top_k` are wanted."""
    kept = FEWEST
    while kept < top_k:
        kept *= 4
    return kept


def _pad(array: np.ndarray, size: int) -> np.ndarray:
    """Append zeros (False) up to that many rows."""
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


@functools.partial(jax.jit, static_argnames="approximate")
def _step(
    best_scores: jax.Array,
    best_places: jax.Array,
    queries: jax.Array,
    rows: jax.Array,
    scales: jax.Array | None,
    alive: jax.Array,
    first: int,
    approximate: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return the best so far, float32[Q, K] and int32[Q, K], after one more block, whose first row is place `first`."""
    scores = _same_bits(queries, rows) if rows.dtype == jnp.uint32 else _products(queries, rows, scales)
    scores = jnp.where(alive[None, :], scores, -jnp.inf)
    kept = min(best_scores.shape[1], scores.shape[1])
    if approximate:
        found, columns = jax.lax.approx_max_k(scores, kept, recall_target=RECALL)
    else:
        found, columns = _top(scores, kept)
    # Earlier results have lower places and come first, so of equal scores top_k takes the lower place.
    places = jnp.where(found > -jnp.inf, columns.astype(jnp.int32) + first, -1)
    scores = jnp.concatenate([best_scores, found], axis=1)
    scores, order = jax.lax.top_k(scores, best_scores.shape[1])
    return scores, jnp.take_along_axis(jnp.concatenate([best_places, places], axis=1), order, axis=1)


def _products(queries: jax.Array, rows: jax.Array, scales: jax.Array | None) -> jax.Array:
    """Return the inner products of queries and stored vectors, float32[Q, B]."""
    scores = jnp.dot(queries, rows.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)
    return scores if scales is None else scores * scales[None, :]


def _same_bits(queries: jax.Array, rows: jax.Array) -> jax.Array:
    """Return minus the number of bits that differ in codes uint32[Q, W] and uint32[B, W], float32[Q, B]."""
    columns = rows.T  # one word of all rows at a time, which a CPU counts side by side
    differ = [jax.lax.population_count(queries[:, w, None] ^ columns[None, w]) for w in range(len(columns))]
    return -functools.reduce(jnp.add, differ).astype(jnp.float32)


def _top(scores: jax.Array, kept: int) -> tuple[jax.Array, jax.Array]:
    """Return the largest `kept` of float32[Q, B] and their columns; of equal scores the lower column first."""
    count, columns = scores.shape
    if columns // SEGMENT <= kept:
        return jax.lax.top_k(scores, kept)
    segments = scores.reshape(count, columns // SEGMENT, SEGMENT)
    _, best = jax.lax.top_k(segments.max(axis=2), kept)
    best = jnp.sort(best, axis=1)  # in order of columns; otherwise ties would go by the segment's maximum
    inside = jnp.take_along_axis(segments, best[:, :, None], axis=1).reshape(count, kept * SEGMENT)
    found, at = jax.lax.top_k(inside, kept)
    return found, jnp.take_along_axis(best, at // SEGMENT, axis=1) * SEGMENT + at % SEGMENT

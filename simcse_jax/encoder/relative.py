"""Make a bias on attention scores from the distance of two tokens: relative positions in buckets (T5; MPNet)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

FARTHEST = 128  # distances from here on share the last bucket


def relative_bias(table: jax.Array, tokens: int) -> jax.Array:
    """Return [H, T, T]: the bias of each head for a query (second axis) and a key (third), for rows of T tokens.

    table: [buckets, H]. Tokens of a sentence are contiguous in a row, so a distance within a row is that within the
    sentence, and one bias serves all rows.
    """
    distances = np.arange(1 - tokens, tokens)  # of the key from the query
    one_hot = buckets(distances, len(table))[None] == np.arange(len(table))[:, None]
    by_distance = jnp.einsum("bh,bd->hd", table, jnp.asarray(one_hot, table.dtype), precision=jax.lax.Precision.HIGHEST)
    # Row q of the result is `by_distance` from entry T - 1 - q on. Written again and again at a period that is one
    # longer than the rows read from it, it is shifted by one from row to row.
    repeated = jnp.tile(jnp.pad(by_distance, ((0, 0), (0, 1))), (1, tokens))[:, : tokens * (2 * tokens - 1)]
    return repeated.reshape(-1, tokens, 2 * tokens - 1)[:, :, tokens - 1 :]


def buckets(distances: np.ndarray, count: int) -> np.ndarray:
    """Return the bucket of each distance, int64: half of them for keys after the query, half for others.

    A quarter of the buckets are for one distance each; the others grow with its logarithm up to FARTHEST. Computed in
    float32, as in PyTorch's models: a distance at a bucket's edge depends on the rounding.
    """
    half = count // 2
    exact = half // 2
    far = np.abs(distances).astype(np.int64)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    grown = exact + (ratio / np.float32(math.log(FARTHEST / exact)) * np.float32(half - exact)).astype(np.int64)
    return np.where(distances > 0, half, 0) + np.where(far < exact, far, np.minimum(grown, half - 1))

"""Score distances apart from contents: the disentangled attention of DeBERTa.

A score is (q k + q k' + k q') / sqrt(3 D), where k' and q' are the key and the query of a vector for the distance of
the two tokens. Tokens of a sentence are contiguous in a row, so a distance within a row is that within the sentence,
and the vectors of the 2 T + 1 distances -T to T serve all rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

SUMMED = 3  # products in a score


def by_distance(table: jax.Array, tokens: int, farthest: int) -> jax.Array:
    """Return [2 T + 1, D]: the vector for each distance of a query from a key, -T to T.

    table: [2 * buckets, D]. farthest: see `buckets`. A product, so that its gradient adds in a fixed order.
    """
    rows = table_rows(np.arange(-tokens, tokens + 1), len(table) // 2, farthest)
    one_hot = rows[:, None] == np.arange(len(table))[None]
    return jnp.matmul(jnp.asarray(one_hot, table.dtype), table, precision=jax.lax.Precision.HIGHEST)


def with_distances(qkv: jax.Array, of_distances: jax.Array, heads: int) -> tuple[jax.Array, jax.Array]:
    """Return qkv [B, T, 3 * H * D] with queries divided by sqrt(3), and [B, H, T, T]: what is added to their scores.

    of_distances: [2 T + 1, 3 * H * D], the same product of the vectors of `by_distance`. The scores are of at least
    float32.
    """
    wide = jnp.promote_types(qkv.dtype, jnp.float32)
    parts = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
    distance_parts = of_distances.reshape(len(of_distances), 3, heads, -1)

    def scores(part: jax.Array, of_distances: jax.Array) -> jax.Array:
        """Return [B, H, T, T], where the vector for column c of row r is entry T - 1 - r + c of 2 T."""
        return _shifted(jnp.einsum("bthd,shd->bhts", part, of_distances, preferred_element_type=wide))

    q, k = parts[:, :, 0], parts[:, :, 1]
    of_queries = scores(q, distance_parts[-2::-1, 1])  # from T - 1 down: keys are the columns
    of_keys = scores(k, distance_parts[1:, 0])  # from 1 - T up: queries are the columns
    bias = (of_queries + jnp.swapaxes(of_keys, -1, -2)) * (SUMMED * q.shape[-1]) ** -0.5
    scale = jnp.asarray([SUMMED**-0.5, 1, 1], wide)[None, None, :, None, None]
    return (parts.astype(wide) * scale).astype(qkv.dtype).reshape(qkv.shape), bias


def _shifted(x: jax.Array) -> jax.Array:
    """Return [..., T, T]: of x [..., T, 2 T], row r from entry T - 1 - r on.

    Read at a period that is one shorter than the rows, these are shifted by one from row to row.
    """
    tokens = x.shape[-2]
    flat = x.reshape(*x.shape[:-2], -1)[..., tokens - 1 : -1]
    return flat.reshape(*x.shape[:-1], 2 * tokens - 1)[..., :tokens]


def table_rows(distances: np.ndarray, count: int, farthest: int) -> np.ndarray:
    """Return the row of a table of 2 * count rows for each distance of a query from a key, int64."""
    return np.clip(buckets(distances, count, farthest) + count, 0, 2 * count - 1)


def buckets(distances: np.ndarray, count: int, farthest: int) -> np.ndarray:
    """Return the bucket of each distance, int64, with the distance's sign.

    Distances up to half of `count` are their own bucket; beyond, buckets grow with the logarithm, so that farthest - 1
    is in bucket count - 1.
    """
    exact = count // 2
    far = np.abs(distances)
    ratio = np.log(np.maximum(far, exact) / exact) / np.log(max(farthest - 1, exact + 1) / exact)
    grown = exact + np.ceil(ratio * (exact - 1)).astype(np.int64)
    return np.where(far <= exact, distances, np.sign(distances) * grown)

"""Measure the shape of a set of embeddings: how close, how even, in how many directions.

Every metric is of rows scaled to length 1 (a zero row stays zero), because only the cosines of embeddings are used,
and none is of centred rows: the matrix is the W whose W W^T SimCSE's section 5 is about. There the contrastive loss
pushes down the sum over all entries of W W^T (Jensen), which bounds its largest eigenvalue from above when no entry is
negative (Merikoski): the spectrum gets flatter. Centring would hide just that, as the direction that all sentences
share is most of the largest singular value of a model that has not been trained so.

Arrays are whole, on one device, float32 or wider; narrower ones are computed in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from simcse_jax.objective.tiles import HIGHEST

BLOCK = 1024  # rows that are compared, or summed, at a time


@jax.jit
def alignment(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Return the mean of |x_i - y_i|^2 over pairs of rows, a scalar between 0 and 4; lower = closer.

    x, y float[n, D]: row i of x is paired with row i of y. Wang & Isola 2020, with alpha = 2.
    """
    first, second = _unit_rows(x, at_least=1), _unit_rows(y, at_least=1)
    if first.shape != second.shape:
        raise ValueError(f"Alignment is of pairs of rows; got shapes {first.shape} and {second.shape}.")
    return jnp.square(first - second).sum(-1).mean()


@jax.jit
def uniformity(x: ArrayLike) -> jax.Array:
    """Return the log of the mean of exp(-2 |x_i - x_j|^2) over i != j, a scalar between -8 and 0; lower = more even.

    x float[n, D], n at least 2. The n^2 distances are never in memory together. Wang & Isola 2020, with t = 2.
    """
    rows = _unit_rows(x, at_least=2)
    count = len(rows)
    parts = _blocks(rows)
    places = jnp.arange(parts.shape[0] * parts.shape[1]).reshape(parts.shape[:2])  # from `count` on: padding

    def potential(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Return the sum over pairs of different rows, one of each block."""
        (a, i), (b, j) = one, other
        products = jnp.matmul(a, b.T, precision=HIGHEST)
        squares = (a * a).sum(-1)[:, None] + (b * b).sum(-1)[None] - 2 * products
        counts = (i[:, None] != j[None]) & (i[:, None] < count) & (j[None] < count)
        return jnp.where(counts, jnp.exp(-2 * jnp.maximum(squares, 0)), 0).sum()

    blocks = parts, places
    sums = jax.lax.map(lambda one: jax.lax.map(lambda other: potential(one, other), blocks), blocks)
    return jnp.log(sums.sum(1).sum() / (count * (count - 1.0)))


@jax.jit
def mean_cosine(x: ArrayLike) -> jax.Array:
    """Return the mean cosine of all pairs of different rows of x float[n, D], a scalar between -1 / (n - 1) and 1."""
    rows = _unit_rows(x, at_least=2)
    count = len(rows)
    own = _sum((rows * rows).sum(-1))
    return (jnp.square(_sum(rows)).sum() - own) / (count * (count - 1.0))


@jax.jit
def singular_values(x: ArrayLike) -> jax.Array:
    """Return the singular values float[min(n, D)] of the unit rows of x float[n, D], descending; squares sum to n."""
    return jnp.linalg.svd(_unit_rows(x, at_least=2), compute_uv=False)


@jax.jit
def effective_rank(values: ArrayLike) -> jax.Array:
    """Return how many directions the rows fill, a scalar between 1 and the number of singular values (float[k]).

    The exponential of the entropy of the values' shares in their sum: Roy & Vetterli 2007.
    """
    sizes = jnp.asarray(values)
    shares = sizes / jnp.maximum(sizes.sum(), jnp.finfo(sizes.dtype).tiny)
    return jnp.exp(-jax.scipy.special.xlogy(shares, shares).sum())


@jax.jit
def top_share(values: ArrayLike) -> jax.Array:
    """Return the share of the largest singular value's square in the sum of squares, between 1 / k and 1; float[k].

    For unit rows it is the largest eigenvalue of W W^T over its trace, and no less than the mean over all entries of
    W W^T, the cosines of rows with themselves included.
    """
    sizes = jnp.asarray(values)
    squares = jnp.square(sizes / jnp.maximum(sizes.max(), jnp.finfo(sizes.dtype).tiny))
    return squares.max() / jnp.maximum(squares.sum(), 1)


@jax.jit
def isotropy(x: ArrayLike) -> jax.Array:
    """Return min Z(c) / max Z(c), a scalar between e^-2 = 0.135 (all rows equal) and 1 (no direction stands out).

    x float[n, D]. Z(c) = sum_i exp(c . x_i), c over the eigenvectors of X^T X: Mu & Viswanath 2018, but of unit
    rows, so that the length of vectors says nothing about their directions, and over both c and -c, as the sign of an
    eigenvector is arbitrary and must not change the result.
    """
    rows = _unit_rows(x, at_least=2)
    _, vectors = jnp.linalg.eigh(jnp.matmul(rows.T, rows, precision=HIGHEST))
    along = jnp.matmul(rows, vectors, precision=HIGHEST)
    partition = jnp.stack([_sum(jnp.exp(along)), _sum(jnp.exp(-along))])
    return partition.min() / partition.max()


def _unit_rows(x: ArrayLike, at_least: int) -> jax.Array:
    """Return x[n, D] / |x| of at least float32; the squares of tiny and huge rows neither vanish nor overflow."""
    rows = jnp.asarray(x)
    if rows.ndim != 2 or len(rows) < at_least:
        raise ValueError(f"The shape of a space needs float[n, D] with n of at least {at_least}; got {rows.shape}.")
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    largest = jnp.abs(rows).max(-1, keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    return rows / jnp.maximum(jnp.sqrt((rows * rows).sum(-1, keepdims=True)), 1)  # less than 1 only for zero rows


def _sum(x: jax.Array) -> jax.Array:
    """Sum x[n, ...] over n; a sum of sums rounds less than one long sum."""
    return _blocks(x).sum(1).sum(0)


def _blocks(x: jax.Array) -> jax.Array:
    """Return x[n, ...] as [blocks, rows, ...], with zeros at the end."""
    size = min(BLOCK, len(x))
    blocks = -(-len(x) // size)
    padding = [(0, blocks * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(blocks, size, *x.shape[1:])

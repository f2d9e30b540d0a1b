"""Scale embeddings to length 1, on the device, and compare pairs of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cosines(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cosine of each pair of vectors [..., D]."""
    return (unit(x) * unit(y)).sum(-1)


def unit(z: jax.Array) -> jax.Array:
    """Return z / |z| over the last axis; a zero vector stays zero, and its gradient finite."""
    return z * jax.lax.rsqrt(jnp.maximum((z * z).sum(-1, keepdims=True), 1e-24))


def by_example(guide: jax.Array, texts: int) -> jax.Array:
    """Return unit vectors [b, texts, D'] of a guide's vectors [G, V, n, D'], V = texts or 1."""
    vectors = jnp.moveaxis(guide, 1, 2).reshape(-1, guide.shape[1], guide.shape[-1])
    return unit(jnp.broadcast_to(vectors, (len(vectors), texts, vectors.shape[-1])))

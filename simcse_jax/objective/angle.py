"""AnglE (Li & Li 2023): the similarity of pairs by the angle between vectors of complex numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simcse_jax.objective.unit import unit


def angle(anchors: jax.Array, positives: jax.Array) -> jax.Array:
    """Return float[b], the similarity of each pair of vectors [b, D].

        |sum_k Re(x_k conj(y_k)) + Im(x_k conj(y_k))|, x and y scaled to length 1

    The first half of a vector's features are the real parts, the second half the imaginary ones; of an odd width, the
    last imaginary part is 0. This is the sum of real and imaginary part of x / y, but for its length.
    """
    odd = ((0, 0), (0, anchors.shape[-1] % 2))
    (a, b), (c, d) = (jnp.split(jnp.pad(unit(z), odd), 2, axis=-1) for z in (anchors, positives))
    return jnp.abs((a * c + b * d + b * c - a * d).sum(-1))

"""FaceNet's triplet loss (Schroff et al. 2015, equation 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simcse_jax.objective.loss import Scores, mean_where


def triplet(scores: Scores, *, margin: float, mining: str) -> jax.Array:
    """Return the loss float[a] of each anchor.

        max(0, d(anchor, positive) - d(anchor, negative) + margin), d = squared Euclidean distance of unit vectors

    mining: "all" (the mean over all negatives), "hardest" (the closest) or "semi_hard" (the closest of those farther
    away than the positive; the farthest of all where there is none). An anchor without a negative has loss 0.
    """
    positive, candidates, is_negative = scores

    def hinge(similarity: jax.Array) -> jax.Array:  # d = 2 - 2 cos
        return jnp.maximum(2 * (similarity - positive[:, None]) + margin, 0)

    if mining == "all":
        return mean_where(hinge(candidates), is_negative)
    closest = jnp.where(is_negative, candidates, -jnp.inf).max(1, keepdims=True)
    if mining == "semi_hard":
        farther = is_negative & (candidates < positive[:, None])
        best = jnp.where(farther, candidates, -jnp.inf).max(1, keepdims=True)
        farthest = jnp.where(is_negative, candidates, jnp.inf).min(1, keepdims=True)
        closest = jnp.where(farther.any(1, keepdims=True), best, farthest)
    has_negative = is_negative.any(1)
    return jnp.where(has_negative, hinge(jnp.where(has_negative[:, None], closest, 0))[:, 0], 0)

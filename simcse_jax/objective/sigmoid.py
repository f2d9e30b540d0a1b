"""SigLIP's sigmoid loss (Zhai et al. 2023, equation 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simcse_jax.objective.loss import Scores


def sigmoid(scores: Scores, *, temperature: float | jax.Array, bias: float | jax.Array) -> jax.Array:
    """Return the loss float[a] of each anchor.

    The sum over its pairs of

        -log sigmoid(y (sim / temperature + bias)), y = 1 for the positive and -1 for negatives
    """
    of_candidates = jax.nn.softplus(scores.candidates / temperature + bias)
    of_positive = jax.nn.softplus(-(scores.positive / temperature + bias))
    return of_positive + jnp.where(scores.is_negative, of_candidates, 0).sum(1)

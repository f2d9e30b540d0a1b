"""Margin ranking: the positive must be more similar than each negative by a margin."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simcse_jax.objective.loss import Scores, mean_where


def margin_ranking(scores: Scores, *, margin: float) -> jax.Array:
    """Return the loss float[a] of each anchor.

    The mean over its negatives, 0 without one, of

        max(0, margin - sim(anchor, positive) + sim(anchor, negative))
    """
    hinges = jnp.maximum(margin - scores.positive[:, None] + scores.candidates, 0)
    return mean_where(hinges, scores.is_negative)

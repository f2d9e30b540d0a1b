"""Compute the loss of masked language modelling (Devlin et al. 2019; SimCSE's auxiliary loss, appendix D)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Predicted(NamedTuple):
    """Hold how well the masked tokens of groups were predicted: sums over their places."""

    losses: jax.Array  # float32[G]: of -log p(token)
    right: jax.Array  # float32[G]: of those ranked first
    count: jax.Array  # int32[G]: places in use


def predictions(scores: jax.Array, labels: jax.Array) -> Predicted:
    """Compare scores float32[G, M, V] with labels int32[G, M]; -1 = nothing to predict."""
    used = labels >= 0
    own = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[..., None], axis=-1, mode="promise_in_bounds")[..., 0]
    losses = jnp.where(used, jax.nn.logsumexp(scores, axis=-1) - own, 0)
    right = used & (own >= scores.max(-1))
    return Predicted(losses.sum(-1), right.sum(-1).astype(losses.dtype), used.sum(-1).astype(jnp.int32))


def mlm_loss(predicted: Predicted) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return (loss, metrics) over all groups. The loss is a mean over tokens, so its exponential is the perplexity."""
    count = jnp.maximum(predicted.count.sum(), 1)
    loss = predicted.losses.sum() / count
    return loss, {"mlm_loss": loss, "mlm_accuracy": predicted.right.sum() / count}

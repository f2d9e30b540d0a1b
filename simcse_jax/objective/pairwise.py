"""Losses of an anchor's similarities one by one: triplet, margin ranking, sigmoid. Global, like InfoNCE.

Each anchor meets all candidates of the global batch; a device holds the similarities of a tile of its anchors at a
time, and makes them again for the way back.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simcse_jax.objective.contrastive import Learned, Objective, over_all
from simcse_jax.objective.tiles import Anchors, Candidates, Figures, Rules, closest_of, figures_of, join, meet, split

# (learned, similarity with the positive [a], similarities [a, n], which of them are negatives [a, n]) -> losses [a]
OfAnchor = Callable[[Learned, jax.Array, jax.Array, jax.Array], jax.Array]


def make_triplet(
    mesh: Mesh,
    margin: float = 0.2,
    mining: str = "semi_hard",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
) -> Objective:
    """FaceNet's triplet loss (Schroff et al. 2015, equation 3).

    The mean over anchors of

        max(0, d(anchor, positive) - d(anchor, negative) + margin), d = squared Euclidean distance of unit vectors

    Negatives are all candidates but the own positive, and but those of equal text when `mask_duplicates`. mining:
    "all" (the mean over all negatives), "hardest" (the closest) or "semi_hard" (the closest of those farther away than
    the positive; the farthest of all where there is none). An anchor without a negative has loss 0.
    """

    def of_anchor(learned: Learned, positive: jax.Array, others: jax.Array, negative: jax.Array) -> jax.Array:
        def hinge(similarity: jax.Array) -> jax.Array:  # d = 2 - 2 cos
            return jnp.maximum(2 * (similarity - positive[:, None]) + margin, 0)

        if mining == "all":
            return _mean(hinge(others), negative)
        closest = jnp.where(negative, others, -jnp.inf).max(1, keepdims=True)
        if mining == "semi_hard":
            farther = negative & (others < positive[:, None])
            best = jnp.where(farther, others, -jnp.inf).max(1, keepdims=True)
            farthest = jnp.where(negative, others, jnp.inf).min(1, keepdims=True)
            closest = jnp.where(farther.any(1, keepdims=True), best, farthest)
        there = negative.any(1)
        return jnp.where(there, hinge(jnp.where(there[:, None], closest, 0))[:, 0], 0)

    return _objective(mesh, of_anchor, "cosine", symmetric, mask_duplicates, tile)


def make_margin_ranking(
    mesh: Mesh,
    margin: float = 0.2,
    similarity: str = "cosine",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
) -> Objective:
    """Margin ranking.

    The mean over anchors, and over all of an anchor's negatives, of

        max(0, margin - sim(anchor, positive) + sim(anchor, negative))

    similarity: "cosine" or "dot". Negatives are those of `make_triplet`.
    """

    def of_anchor(learned: Learned, positive: jax.Array, others: jax.Array, negative: jax.Array) -> jax.Array:
        return _mean(jnp.maximum(margin - positive[:, None] + others, 0), negative)

    return _objective(mesh, of_anchor, similarity, symmetric, mask_duplicates, tile)


def make_sigmoid(
    mesh: Mesh,
    temperature: float = 0.1,
    bias: float = -10.0,
    similarity: str = "cosine",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
) -> Objective:
    """SigLIP's sigmoid loss (Zhai et al. 2023, equation 1).

    The mean over anchors of the sum over their pairs of

        -log sigmoid(y (sim / temperature + bias)), y = 1 for the positive and -1 for negatives

    temperature, bias: `exp(log_temperature)` and `bias` instead where they are learned. Negatives are those of
    `make_triplet`.
    """

    def of_anchor(learned: Learned, positive: jax.Array, others: jax.Array, negative: jax.Array) -> jax.Array:
        divisor = jnp.exp(learned["log_temperature"]) if "log_temperature" in learned else temperature
        shift = learned.get("bias", jnp.asarray(bias, positive.dtype))
        of_others = jax.nn.softplus(others / divisor + shift)
        return jax.nn.softplus(-(positive / divisor + shift)) + jnp.where(negative, of_others, 0).sum(1)

    return _objective(mesh, of_anchor, similarity, symmetric, mask_duplicates, tile)


def _mean(values: jax.Array, used: jax.Array) -> jax.Array:
    """[a]: the mean of values [a, n] over those used; 0 where none is."""
    return jnp.where(used, values, 0).sum(1) / jnp.maximum(used.sum(1), 1)


def _objective(
    mesh: Mesh, of_anchor: OfAnchor, similarity: str, symmetric: bool, mask_duplicates: bool, tile: int
) -> Objective:
    is_cosine = similarity == "cosine"
    rules = Rules(1.0, mask_duplicates, tile, is_cosine)

    def rank(learned: Learned, anchors: Anchors, candidates: Candidates) -> tuple[jax.Array, Figures]:
        def of_tile(some: Anchors) -> tuple[jax.Array, Figures]:
            block = meet(rules, 1.0, some, candidates)
            positive = jnp.where(block.is_positive, block.similarities, 0).sum((1, 2))
            flat = (len(positive), -1)
            negative = (block.is_there & ~block.is_positive).reshape(flat)
            losses = of_anchor(learned, positive, block.similarities.reshape(flat), negative)
            first = (closest_of(block, candidates)[1] == some.places).astype(losses.dtype)
            return losses, jax.lax.stop_gradient(figures_of(block)._replace(first=first))

        return join(jax.lax.map(jax.checkpoint(of_tile), split(anchors, tile)), len(anchors.z))

    return over_all(mesh, rank, normalised=is_cosine, symmetric=symmetric)

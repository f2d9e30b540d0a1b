"""Compare anchors with candidates, one tile of similarities at a time.

A global batch of 65,536 examples has 4 billion similarities, 16 GB of them. Losses compute them tile by tile, so a
device never holds more than one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HIGHEST = "highest"  # precision; except on CPUs, the default rounds the factors of a product


@dataclass(frozen=True)
class Rules:
    """Hold what decides which candidates count, and how many are compared at a time."""

    mask_duplicates: bool
    tile: int  # the most anchors of a tile, and the most examples whose candidates it holds; 0 = all at once
    is_cosine: bool = True  # vectors are unit vectors, so their products are cosines


class Anchors(NamedTuple):
    """Hold the anchors of a device, or a tile of them."""

    z: jax.Array  # float[b, D]
    ids: jax.Array  # int32[b]: index of the example in the global batch
    text_ids: jax.Array  # int32[b, 2]: of the anchor and of its positive; equal id = equal text
    # float[b]: candidates of a higher cosine, the positive aside, are left out as too similar; None: none is
    limit: jax.Array | None = None
    guide: jax.Array | None = (
        None  # float[b, D']: unit vectors whose cosines are held against the limit; None: those of z
    )


class Candidates(NamedTuple):
    """Hold the K candidates of each of the B examples of the global batch, or a tile of examples."""

    z: jax.Array  # float[B, K, D]; candidate 0 is the positive
    ids: jax.Array  # int32[B, K]: of a positive, the index of its example; from B on for hard negatives; -1 = empty
    text_ids: jax.Array  # int32[B, K]
    guide: jax.Array | None = None  # float[B, K, D'], as the anchors have


class Statistics(NamedTuple):
    """Hold float[b] arrays about each anchor's candidates; no gradient flows through them."""

    correct: jax.Array  # 1 where the own positive is the most similar candidate; of equals the lowest id wins
    positive_cosine: jax.Array
    negative_cosines: jax.Array  # cosines with positives of other examples, summed
    potential: jax.Array  # exp(-2 |x - y|^2) with the same, summed
    negatives: jax.Array  # number of these
    masked: jax.Array  # number of candidates left out as duplicates, or as too similar


class ScoreTile(NamedTuple):
    """Hold the comparison of a tile of anchors with a tile of candidates, arrays [a, K, c]."""

    similarities: jax.Array
    cosines: jax.Array  # no gradient flows through them
    is_positive: jax.Array  # the candidate is the anchor's own positive
    is_own: jax.Array  # [a, 1, c]: the candidates are of the anchor's own example
    is_counted: jax.Array  # the slot is not empty, and the candidate is not masked
    masked: jax.Array

    def statistics(self) -> Statistics:
        """Return the statistics of the tile's anchors; `correct` is 0, as only all tiles together can tell."""
        cosines = self.cosines[:, 0]
        negative = (self.is_counted & ~self.is_positive)[:, 0]
        return Statistics(
            correct=jnp.zeros_like(cosines[:, 0]),
            positive_cosine=jnp.where(self.is_positive, self.cosines, 0.0).sum((1, 2)),
            negative_cosines=jnp.where(negative, cosines, 0.0).sum(1),
            potential=jnp.where(negative, jnp.exp(4.0 * cosines - 4.0), 0.0).sum(1),
            negatives=negative.sum(1).astype(cosines.dtype),
            masked=self.masked.sum((1, 2)).astype(cosines.dtype),
        )

    def closest(self, candidates: Candidates) -> tuple[jax.Array, jax.Array]:
        """Return (similarity, id int32) of each anchor's most similar candidate; of equals, the lowest id."""
        visible = jnp.where(self.is_counted, self.similarities, -jnp.inf)
        similarity = visible.max((1, 2))
        above_all = jnp.iinfo(jnp.int32).max
        ids = jnp.where(visible == similarity[:, None, None], candidates.ids.T[None], above_all)
        return similarity, ids.min((1, 2))


def compare(rules: Rules, anchors: Anchors, candidates: Candidates) -> ScoreTile:
    """Compare every anchor with every candidate."""
    similarities = jnp.einsum("ad,ckd->akc", anchors.z, candidates.z, precision=HIGHEST)
    cosines = jax.lax.stop_gradient(similarities)
    if not rules.is_cosine:
        lengths = _lengths(anchors.z)[:, None, None] * _lengths(candidates.z).T[None]
        cosines = cosines / jnp.maximum(lengths, 1e-24)
    ids, own_ids = candidates.ids.T[None], anchors.ids[:, None, None]
    is_valid = ids >= 0
    is_positive = (ids == own_ids) & is_valid
    masked = jnp.zeros(similarities.shape, bool)
    if rules.mask_duplicates:
        for text_ids in anchors.text_ids.T:
            masked |= candidates.text_ids.T[None] == text_ids[:, None, None]
        masked &= is_valid & ~is_positive
    if anchors.limit is not None:
        guided = cosines
        if anchors.guide is not None:
            guided = jnp.einsum("ad,ckd->akc", anchors.guide, candidates.guide, precision=HIGHEST)
        masked |= (guided > anchors.limit[:, None, None]) & is_valid & ~is_positive
    return ScoreTile(similarities, cosines, is_positive, ids[:, :1] == own_ids, is_valid & ~masked, masked)


def _lengths(z: jax.Array) -> jax.Array:
    return jnp.linalg.norm(jax.lax.stop_gradient(z), axis=-1)


def split(arrays: Any, tile: int) -> Any:
    """Return each array [n, ...] as [tiles, size, ...] with the fewest tiles of at most `tile`, all of one size.

    An n that nothing divides then costs fewer empty slots than there are tiles. Empty slots hold 0, integers -1.
    """

    def split_one(x: jax.Array) -> jax.Array:
        tiles = -(-len(x) // tile) if tile else 1
        size = -(-len(x) // tiles)
        padding = [(0, tiles * size - len(x))] + [(0, 0)] * (x.ndim - 1)
        empty = 0 if jnp.issubdtype(x.dtype, jnp.floating) else -1
        return jnp.pad(x, padding, constant_values=empty).reshape(tiles, size, *x.shape[1:])

    return jax.tree.map(split_one, arrays)


def join(tiles: Any, count: int) -> Any:
    """Return each array [tiles, size, ...] as [count, ...], without the empty slots."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tiles)

"""Say which candidates are too similar to an anchor to be its negatives, by the embeddings or by a guide's vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simcse_jax.objective.tiles import Anchors, Candidates
from simcse_jax.objective.unit import by_example, cosines


@dataclass(frozen=True)
class Limit:
    """State which candidates are too similar to an anchor to be its negatives, by the cosine s(p) of its positive.

    kind: "absolute", those of a cosine above s(p) - margin; "relative", above s(p) - |s(p)| margin; "fixed", above
    the margin itself. The positive is never left out, an own hard negative may be.
    """

    kind: str
    margin: float

    def of_positives(self, cosines: jax.Array) -> jax.Array:
        """Return float[b], the highest cosine of a negative of each anchor; cosines: with their positives."""
        if self.kind == "fixed":
            return jnp.full_like(cosines, self.margin)
        return cosines - self.margin * (jnp.abs(cosines) if self.kind == "relative" else 1.0)


class Similar(NamedTuple):
    """Hold what tells which candidates are left out: of b examples on a device, and of all B; None where none is."""

    limits: jax.Array | None = None  # float[b]: see `Limit`
    own_guide: jax.Array | None = None  # float[b, K + 1, D']: unit vectors of a guide, of anchors and candidates
    all_guide: jax.Array | None = None  # float[B, K + 1, D']

    def of_anchors(self, anchors: Anchors, place: int) -> Anchors:
        """Return the anchors with their limits and guide; place: 0 for anchors, 1 for positives."""
        guide = None if self.own_guide is None else self.own_guide[:, place]
        return anchors._replace(limit=self.limits, guide=guide)

    def of_candidates(self, candidates: Candidates, first: int, last: int | None = None) -> Candidates:
        """Return the candidates with their guide; first, last: their places among anchor and candidates."""
        return candidates._replace(guide=None if self.all_guide is None else self.all_guide[:, first:last])


def find_similar(
    limit: Limit | None, guide: jax.Array | None, anchors: jax.Array, candidates: jax.Array, axes: tuple[str, ...]
) -> Similar:
    """Return what tells which candidates are left out, inside a shard_map over these axes.

    guide: a device's part, float[G, V, n, D'], see `by_example`; None: the embeddings decide. anchors: float[b, D].
    candidates: float[b, K, D], the positive first.
    """
    own_guide = all_guide = limits = None
    if guide is not None:
        own_guide = by_example(guide, candidates.shape[1] + 1)
        all_guide = jax.lax.all_gather(own_guide, axes, axis=0, tiled=True)
    if limit is not None:
        pairs = (anchors, candidates[:, 0]) if own_guide is None else (own_guide[:, 0], own_guide[:, 1])
        limits = limit.of_positives(jax.lax.stop_gradient(cosines(*pairs)))
    return Similar(limits, own_guide, all_guide)

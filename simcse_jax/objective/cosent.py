"""CoSENT (Su 2022): pairs of a higher grade must be more similar than those of a lower one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.objective import tiles
from simcse_jax.objective.contrastive import Metrics, Objective, mean_over_widths
from simcse_jax.objective.loss import Loss
from simcse_jax.objective.unit import cosines


@dataclass(frozen=True)
class GradedLoss(Loss):
    """Describe a loss of graded pairs; function: (anchors [b, D], positives [b, D]) -> the pairs' similarities [b]."""

    takes_dot: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The keys that only some losses have."""
        return ("temperature",)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the section `objective` that have an effect with this loss."""
        return (*self.options, "tile", "widths", "layers")


def make_graded(
    loss: GradedLoss, mesh: Mesh, *, temperature: float, tile: int = 1024, widths: Sequence[int] = ()
) -> Objective:
    """Return the function of all graded pairs of the global batch.

        log(1 + sum over i, j with grade_i > grade_j of exp((s_j - s_i) / temperature)), s the pairs' similarities

    It takes (anchors, candidates, text_ids, learned, queue, guide, grades), of which it reads anchors float[G, n, D],
    candidates float[1, G, n, D] and grades float[G, n], global arrays sharded by group, and returns (loss, metrics). A
    device holds the differences of at most `tile` of its pairs to all others at a time; 0 = all. metrics:
    `positive_cosine`, the mean over pairs, and `ordered`, the share of pairs of different grades in the right order.
    """
    axes = mesh.axis_names

    def local(anchors: jax.Array, positives: jax.Array, grades: jax.Array) -> tuple[jax.Array, Metrics]:
        anchors, positives = (z.reshape(-1, z.shape[-1]) for z in (anchors, positives))
        scaled = loss.function(anchors, positives) / temperature
        grades = grades.reshape(-1)
        everyone, their_grades = (jax.lax.all_gather(x, axes, axis=0, tiled=True) for x in (scaled, grades))

        def of_tile(some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            own, own_grades = some
            higher = own_grades[:, None] > their_grades[None]
            differences = jnp.where(higher, everyone[None] - own[:, None], -jnp.inf)
            peak = jax.lax.stop_gradient(jnp.maximum(differences.max(1), 0))
            right = (higher & (differences < 0)).sum(1)
            return peak, jnp.exp(differences - peak[:, None]).sum(1), right, higher.sum(1)

        size = len(scaled)
        of_tiles = jax.lax.map(jax.checkpoint(of_tile), tiles.split((scaled, grades), tile))
        peak, total, right, count = tiles.join(of_tiles, size)
        highest = jax.lax.pmax(jax.lax.stop_gradient(peak.max()), axes)
        found = (total * jnp.exp(peak - highest)).sum(), right.sum(), count.sum()
        total, right, count = jax.lax.psum(found, axes)
        value = highest + jnp.log(jnp.exp(-highest) + total)
        cosine = jax.lax.pmean(jax.lax.stop_gradient(cosines(anchors, positives)).mean(), axes)
        return value, {"positive_cosine": cosine, "ordered": right / jnp.maximum(count, 1)}

    sharded, replicated = P(axes), P()
    specs = (sharded, sharded, sharded)
    on_devices = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(replicated, replicated))

    def objective(
        anchors: jax.Array,
        candidates: jax.Array,
        text_ids: jax.Array,
        learned: Any = None,
        queue: Any = None,
        guide: Any = None,
        grades: Any = None,
    ) -> tuple[jax.Array, Metrics]:
        del text_ids, learned, queue, guide
        return mean_over_widths(widths, lambda w: on_devices(anchors[..., :w], candidates[0][..., :w], grades))

    return objective

"""InfoNCE over global negatives (SimCSE's equations 1 and 5).

Every device's candidates are gathered, local anchors meet all of them (tile by tile: `tiles`), and the gradient that
flows back through the gather is the true one of the global loss, not the local rows' share.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.objective.tiles import Anchors, Candidates, Figures, Rules, losses_of

Metrics = dict[str, jax.Array]
Objective = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Metrics]]


def unit(z: jax.Array) -> jax.Array:
    """z / |z| over the last axis; a zero vector stays zero, and its gradient finite."""
    return z * jax.lax.rsqrt(jnp.maximum((z * z).sum(-1, keepdims=True), 1e-24))


def make_info_nce(
    mesh: Mesh,
    temperature: float = 0.05,
    hard_negative_weight: float = 1.0,
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
) -> Objective:
    """A function (anchors, candidates, texts) -> (loss, metrics), all global, sharded over every axis of the mesh.

    anchors float[G, n, D]; candidates float[K, G, n, D]: candidate 0 of an example is its positive, the others its
    hard negatives, and everybody's candidates are candidates of everybody. texts int32[K + 1, G * n], replicated: equal
    number = equal text, row 0 the anchors' and row k + 1 candidate k's.

    loss, scalar of at least float32: mean over anchors i of

        -log e^{s(i,i,0)} / (sum_j sum_k w_ijk e^{s(i,j,k)}), s(i,j,k) = cos(anchor i, candidate k of j) / temperature

    with w = hard_negative_weight for i's own hard negatives and 1 elsewhere. A candidate whose text is that of i's
    anchor or positive, other than i's own positive, is left out of the sum when `mask_duplicates`. `symmetric` averages
    with the same loss of the positives against all anchors (no hard negatives there).

    metrics, scalars: `positive_cosine`, `negative_cosine` (other examples' positives), `accuracy` (own positive ranks
    first), `alignment` and `uniformity` of Wang & Isola as seen in the batch, `masked` (candidates left out, a count).

    tile, 0 or more: a device holds the cosines of at most so many of its anchors with the candidates of as many
    examples at a time, whatever the batch; 0 = all at once. It changes memory and time, and no number.
    """
    axes = mesh.axis_names
    rules = Rules(temperature, hard_negative_weight, mask_duplicates, tile)

    def local(anchors: jax.Array, candidates: jax.Array, texts: jax.Array) -> tuple[jax.Array, Metrics]:
        width = anchors.shape[-1]
        anchors = unit(anchors.reshape(-1, width))  # [b, D]
        candidates = unit(candidates.reshape(candidates.shape[0], -1, width)).swapaxes(0, 1)  # [b, K, D]
        sent = jnp.concatenate([candidates, anchors[:, None]], axis=1) if symmetric else candidates
        everyone = jax.lax.all_gather(sent, axes, axis=0, tiled=True)  # [B, K (+ 1), D]
        count, total = len(anchors), len(everyone)
        places = jax.lax.axis_index(axes) * count + jnp.arange(count, dtype=jnp.int32)

        def rank(queries: jax.Array, keys: jax.Array, key_texts: jax.Array) -> tuple[jax.Array, Figures]:
            """Losses and figures, [b] each, of queries [b, D] against keys [B, K, D] with texts [K, B]."""
            numbers = jnp.arange(key_texts.size, dtype=jnp.int32).reshape(key_texts.shape)
            return losses_of(
                rules, Anchors(queries, places, texts[:2, places].T), Candidates(keys, numbers.T, key_texts.T)
            )

        losses, figures = rank(anchors, everyone[:, : len(texts) - 1], texts[1:])
        if symmetric:
            losses = (losses + rank(candidates[:, 0], everyone[:, -1:], texts[:1])[0]) / 2
        loss, sums = jax.lax.psum((losses.sum(), jnp.stack(figures).sum(1)), axes)
        return loss / total, _averaged(Figures(*sums), total)

    spread = P(axes)
    return jax.shard_map(local, mesh=mesh, in_specs=(spread, P(None, axes), P()), out_specs=(P(), P()))


def _averaged(sums: Figures, total: int) -> Metrics:
    pairs = jnp.maximum(sums.others, 1)
    return {
        "positive_cosine": sums.positive / total,
        "negative_cosine": sums.negatives / pairs,
        "accuracy": sums.first / total,
        "alignment": 2 - 2 * sums.positive / total,
        "uniformity": jnp.log(jnp.maximum(sums.potential / pairs, 1e-30)),
        "masked": sums.masked,
    }

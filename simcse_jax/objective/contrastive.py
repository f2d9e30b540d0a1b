"""InfoNCE over global negatives (SimCSE's equations 1 and 5).

Every device's candidates are gathered, local anchors meet all of them, and the gradient that flows back through the
gather is the true one of the global loss, not the local rows' share.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

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
    """
    axes = mesh.axis_names

    def local(anchors: jax.Array, candidates: jax.Array, texts: jax.Array) -> tuple[jax.Array, Metrics]:
        width = anchors.shape[-1]
        anchors = unit(anchors.reshape(-1, width))  # [b, D]
        candidates = unit(candidates.reshape(candidates.shape[0], -1, width))  # [K, b, D]
        sent = jnp.concatenate([candidates, anchors[None]]) if symmetric else candidates
        everyone = jax.lax.all_gather(sent, axes, axis=1, tiled=True)  # [K (+ 1), B, D]
        count, total = anchors.shape[0], everyone.shape[1]
        own = jax.lax.axis_index(axes) * count + jnp.arange(count)

        def rank(queries: jax.Array, keys: jax.Array, key_texts: jax.Array) -> tuple[jax.Array, ...]:
            """Loss [b], cosines [b, K, B] and what is masked, for queries [b, D] against keys [K, B, D]."""
            cosines = jnp.einsum("bd,kjd->bkj", queries, keys, precision=jax.lax.Precision.HIGHEST)
            is_own = (own[:, None] == jnp.arange(total)[None])[:, None]  # [b, 1, B]
            is_positive = is_own & (jnp.arange(keys.shape[0]) == 0)[None, :, None]
            masked = jnp.zeros(cosines.shape, bool)
            if mask_duplicates:
                for mine in (texts[0][own], texts[1][own]):
                    masked |= key_texts[None] == mine[:, None, None]
                masked &= ~is_positive
            logits = cosines / temperature
            if hard_negative_weight != 1.0:
                logits = logits + jnp.where(is_own & ~is_positive, jnp.log(hard_negative_weight), 0.0)
            logits = jnp.where(masked, -jnp.inf, logits)
            positive = jnp.where(is_positive, logits, 0.0).sum((1, 2))
            return jax.nn.logsumexp(logits, (1, 2)) - positive, cosines, masked, is_own

        losses, cosines, masked, is_own = rank(anchors, everyone[: len(candidates)], texts[1:])
        if symmetric:
            losses = (losses + rank(candidates[0], everyone[-1:], texts[:1])[0]) / 2
        sums = _diagnostics(jax.lax.stop_gradient(cosines), masked, is_own[:, 0], own)
        loss, sums = jax.lax.psum((losses.sum(), sums), axes)
        return loss / total, _averaged(sums, total)

    spread = P(axes)
    return jax.shard_map(local, mesh=mesh, in_specs=(spread, P(None, axes), P()), out_specs=(P(), P()))


def _diagnostics(cosines: jax.Array, masked: jax.Array, is_own: jax.Array, own: jax.Array) -> jax.Array:
    """Six sums over this device's anchors, from cosines [b, K, B]."""
    others = (~is_own) & ~masked[:, 0]
    positive = jnp.where(is_own, cosines[:, 0], 0.0).sum(1)
    best = jnp.where(masked, -jnp.inf, cosines).reshape(len(cosines), -1).argmax(1)
    return jnp.stack(
        [
            positive.sum(),
            jnp.where(others, cosines[:, 0], 0.0).sum(),
            jnp.where(others, jnp.exp(4.0 * cosines[:, 0] - 4.0), 0.0).sum(),  # exp(-2 |x - y|^2)
            others.sum().astype(cosines.dtype),
            (best == own).sum().astype(cosines.dtype),
            masked.sum().astype(cosines.dtype),
        ]
    )


def _averaged(sums: jax.Array, total: int) -> Metrics:
    positive, negative, potential, others, correct, masked = sums
    pairs = jnp.maximum(others, 1)
    return {
        "positive_cosine": positive / total,
        "negative_cosine": negative / pairs,
        "accuracy": correct / total,
        "alignment": 2 - 2 * positive / total,
        "uniformity": jnp.log(jnp.maximum(potential / pairs, 1e-30)),
        "masked": masked,
    }

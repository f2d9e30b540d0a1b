"""Compute a contrastive loss over the global batch: gather all candidates, and compare local anchors with them.

The gradient that flows back through the gather is the true one of the global loss, not the local rows' share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.group import NO_TEXT
from simcse_jax.objective.false_negatives import Limit, find_similar
from simcse_jax.objective.loss import Learned, Loss
from simcse_jax.objective.tiles import Anchors, Candidates, Rules, Statistics
from simcse_jax.objective.unit import unit

Metrics = dict[str, jax.Array]


class Queue(NamedTuple):
    """Hold positives of earlier steps (MoCo), the newest first: negatives of every anchor."""

    z: jax.Array  # float[Q, D]
    texts: jax.Array  # int32[Q]: ids of their texts, comparable with those of batches
    filled: jax.Array  # int32 scalar: slots in use


Objective = Callable[..., tuple[jax.Array, Metrics]]  # what `make_contrastive` returns


def make_contrastive(
    loss: Loss,
    mesh: Mesh,
    *,
    similarity: str = "cosine",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
    widths: Sequence[int] = (),
    limit: Limit | None = None,
    is_guided: bool = False,
    **options: Any,
) -> Objective:
    """Return the function that averages a loss over all anchors of the global batch.

    It takes (anchors, candidates, text_ids, learned, queue, guide), global arrays sharded over every axis of the mesh,
    and returns (loss, metrics). anchors: float[G, n, D]. candidates: float[K, G, n, D]; candidate 0 of an example is
    its positive, the rest its hard negatives, and every anchor is compared with those of all examples. text_ids:
    int32[K + 1, G * n], replicated; equal id = equal text, NO_TEXT = a hard negative that is missing; row 0 is the
    anchors', row k + 1 candidate k's. learned: scalars in place of some options, or None. queue: a `Queue` or None;
    its candidates are negatives of anchors, not of positives. guide: float[G, V, n, D'], V = K + 1, or 1 where all
    texts of an example are equal; read with is_guided alone.

    similarity: "cosine" or "dot"; options: the loss's own. mask_duplicates: a candidate whose text is that of the
    anchor or of its positive is no negative of this anchor. symmetric: average with the loss of the positives against
    all anchors, without hard negatives. tile: a device holds the similarities of at most so many of its anchors at a
    time; 0 = all. It changes memory and time, and no number. widths: the loss is the mean over the first `width`
    features for each width (Kusupati et al. 2022, equation 1); empty = all features only. limit: which candidates are
    left out as too similar to be negatives; None = none. is_guided: by the guide's cosines, then without a queue.

    loss: a scalar of at least float32, the mean over anchors. metrics, scalars: `positive_cosine`, `negative_cosine`
    (with other examples' positives), `accuracy` (share of anchors whose positive ranks first), `alignment` and
    `uniformity` of Wang & Isola within the batch, `masked` (number of candidates left out as duplicates), the options
    that are learned, and with widths `loss_W` of each; the others are those of the widest.
    """
    axes = mesh.axis_names
    is_cosine = similarity == "cosine"
    rules = Rules(mask_duplicates, tile, is_cosine)
    scaled = unit if is_cosine else lambda z: z

    def local(
        learned: Learned,
        anchors: jax.Array,
        candidates: jax.Array,
        text_ids: jax.Array,
        queue: Queue | None,
        guide: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        width = anchors.shape[-1]
        # Each device's own copy: the gradient is summed over devices, once.
        learned = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), learned)
        anchors = scaled(anchors.reshape(-1, width))  # [b, D]
        candidates = scaled(candidates.reshape(candidates.shape[0], -1, width)).swapaxes(0, 1)  # [b, K, D]
        sent = jnp.concatenate([candidates, anchors[:, None]], axis=1) if symmetric else candidates
        gathered = jax.lax.all_gather(sent, axes, axis=0, tiled=True)  # [B, K (+ 1), D]
        count, total = len(anchors), len(gathered)
        ids = jax.lax.axis_index(axes) * count + jnp.arange(count, dtype=jnp.int32)
        own_text_ids = text_ids[:2, ids].T

        similar = find_similar(limit, guide, anchors, candidates, axes)

        def own(z: jax.Array, place: int) -> Anchors:
            return similar.of_anchors(Anchors(z, ids, own_text_ids), place)

        everyone = similar.of_candidates(_with_ids(gathered[:, : len(text_ids) - 1], text_ids[1:]), 1)
        if queue is not None:
            everyone = _with_queue(everyone, queue._replace(z=scaled(jax.lax.stop_gradient(queue.z))))
        losses, statistics = loss.of_anchors(rules, options, learned, own(anchors, 0), everyone)
        if symmetric:
            positives = own(candidates[:, 0], 1)
            others = similar.of_candidates(_with_ids(gathered[:, -1:], text_ids[:1]), 0, 1)
            losses = (losses + loss.of_anchors(rules, options, learned, positives, others)[0]) / 2
        mean, sums = jax.lax.psum((losses.sum(), jnp.stack(statistics).sum(1)), axes)
        return mean / total, _averaged(Statistics(*sums), total)

    sharded, replicated = P(axes), P()
    specs = (replicated, sharded, P(None, axes), replicated, replicated, sharded)
    on_devices = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(replicated, replicated))

    def objective(
        anchors: jax.Array,
        candidates: jax.Array,
        text_ids: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
        guide: jax.Array | None = None,
        grades: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        del grades

        def of_width(width: int | None) -> tuple[jax.Array, Metrics]:
            older = queue and queue._replace(z=queue.z[:, :width])
            z = anchors[..., :width], candidates[..., :width]
            value, metrics = on_devices(learned or {}, *z, text_ids, older, guide if is_guided else None)
            return value, metrics | loss.with_learned({}, learned or {})

        return mean_over_widths(widths, of_width)

    return objective


def mean_over_widths(
    widths: Sequence[int], of_width: Callable[[int | None], tuple[jax.Array, Metrics]]
) -> tuple[jax.Array, Metrics]:
    """Return the mean of a loss over widths, and the metrics of the widest with `loss_W` of each; none: over all."""
    if not widths:
        return of_width(None)
    found = {width: of_width(width) for width in sorted(widths, reverse=True)}
    losses = {f"loss_{width}": value for width, (value, _) in found.items()}
    return functools.reduce(jnp.add, losses.values()) / len(losses), found[max(widths)][1] | losses


def _with_ids(z: jax.Array, text_ids: jax.Array) -> Candidates:
    """Return the candidates of z [B, K, D] with text ids [K, B]; those without a text are empty."""
    ids = jnp.arange(text_ids.size, dtype=jnp.int32).reshape(text_ids.shape)
    ids = jnp.where(text_ids == NO_TEXT, -1, ids)
    return Candidates(z, ids.T, text_ids.T)


def _with_queue(candidates: Candidates, queue: Queue) -> Candidates:
    """Return the candidates, and those of a queue as positives of examples that have no anchor."""
    count, columns = candidates.ids.shape
    slot = jnp.arange(len(queue.z), dtype=jnp.int32)[:, None]
    is_filled = (slot < queue.filled) & (jnp.arange(columns) == 0)[None]
    missing = ((0, 0), (0, columns - 1), (0, 0))
    z = jnp.pad(queue.z.astype(candidates.z.dtype)[:, None], missing)
    ids = jnp.where(is_filled, count * columns + slot, -1)
    text_ids = jnp.broadcast_to(queue.texts[:, None], ids.shape)
    more = Candidates(z, ids, text_ids)
    return jax.tree.map(lambda *pair: jnp.concatenate(pair), candidates, more)


def _averaged(sums: Statistics, total: int) -> Metrics:
    pairs = jnp.maximum(sums.negatives, 1)
    return {
        "positive_cosine": sums.positive_cosine / total,
        "negative_cosine": sums.negative_cosines / pairs,
        "accuracy": sums.correct / total,
        "alignment": 2 - 2 * sums.positive_cosine / total,
        "uniformity": jnp.log(jnp.maximum(sums.potential / pairs, 1e-30)),
        "masked": sums.masked,
    }

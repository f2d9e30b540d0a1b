"""Compute a contrastive loss over the global batch: gather all candidates, and compare local anchors with them.

The gradient that flows back through the gather is the true one of the global loss, not the local rows' share.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.objective.loss import Learned, Loss
from simcse_jax.objective.tiles import Anchors, Candidates, Rules, Statistics

Metrics = dict[str, jax.Array]


class Queue(NamedTuple):
    """Hold positives of earlier steps (MoCo), the newest first: negatives of every anchor."""

    z: jax.Array  # float[Q, D]
    texts: jax.Array  # int32[Q]: ids of their texts, comparable with those of batches
    filled: jax.Array  # int32 scalar: slots in use


class Objective(Protocol):
    """Compute a loss over embeddings; all arrays are global, sharded over every axis of the mesh."""

    def __call__(
        self,
        anchors: jax.Array,
        candidates: jax.Array,
        text_ids: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Return (loss, metrics) of anchors float[G, n, D] and candidates float[K, G, n, D].

        Candidate 0 of an example is its positive, the rest its hard negatives. Every anchor is compared with the
        candidates of all examples. text_ids int32[K + 1, G * n], replicated: equal id = equal text; row 0 the anchors',
        row k + 1 candidate k's. loss: scalar of at least float32, the mean over anchors.

        metrics, scalars: `positive_cosine`, `negative_cosine` (with other examples' positives), `accuracy` (share of
        anchors whose positive ranks first), `alignment` and `uniformity` of Wang & Isola within the batch, `masked`
        (number of candidates left out as duplicates), and the options that are learned.
        """
        ...


def make_objective(
    loss: Loss,
    mesh: Mesh,
    *,
    similarity: str = "cosine",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
    widths: Sequence[int] = (),
    **options: Any,
) -> Objective:
    """Return the objective that averages a loss over all anchors of the global batch.

    similarity: "cosine" or "dot"; options: the loss's own. mask_duplicates: a candidate whose text is that of the
    anchor or of its positive is no negative of this anchor. symmetric: average with the loss of the positives against
    all anchors, without hard negatives. A queue's candidates are negatives of anchors, not of positives.

    tile: a device holds the similarities of at most so many of its anchors at a time; 0 = all. It changes memory and
    time, and no number. widths: see `matryoshka`; empty = all features only.
    """
    axes = mesh.axis_names
    is_cosine = similarity == "cosine"
    rules = Rules(mask_duplicates, tile, is_cosine)
    scaled = unit if is_cosine else lambda z: z

    def local(
        learned: Learned, anchors: jax.Array, candidates: jax.Array, text_ids: jax.Array, queue: Queue | None
    ) -> tuple[jax.Array, Metrics]:
        width = anchors.shape[-1]
        # Each device's own copy: the gradient is summed over devices, once.
        learned = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), learned)
        of_anchors = functools.partial(loss.of_anchors, rules, options, learned)
        anchors = scaled(anchors.reshape(-1, width))  # [b, D]
        candidates = scaled(candidates.reshape(candidates.shape[0], -1, width)).swapaxes(0, 1)  # [b, K, D]
        sent = jnp.concatenate([candidates, anchors[:, None]], axis=1) if symmetric else candidates
        gathered = jax.lax.all_gather(sent, axes, axis=0, tiled=True)  # [B, K (+ 1), D]
        count, total = len(anchors), len(gathered)
        ids = jax.lax.axis_index(axes) * count + jnp.arange(count, dtype=jnp.int32)
        own_text_ids = text_ids[:2, ids].T

        everyone = _with_ids(gathered[:, : len(text_ids) - 1], text_ids[1:])
        if queue is not None:
            everyone = _with_queue(everyone, queue._replace(z=scaled(jax.lax.stop_gradient(queue.z))))
        losses, statistics = of_anchors(Anchors(anchors, ids, own_text_ids), everyone)
        if symmetric:
            positives = Anchors(candidates[:, 0], ids, own_text_ids)
            losses = (losses + of_anchors(positives, _with_ids(gathered[:, -1:], text_ids[:1]))[0]) / 2
        mean, sums = jax.lax.psum((losses.sum(), jnp.stack(statistics).sum(1)), axes)
        return mean / total, _averaged(Statistics(*sums), total)

    def objective(
        anchors: jax.Array,
        candidates: jax.Array,
        text_ids: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
    ) -> tuple[jax.Array, Metrics]:
        sharded, replicated = P(axes), P()
        specs = (replicated, sharded, P(None, axes), replicated, replicated)
        on_devices = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(replicated, replicated))
        value, metrics = on_devices(learned or {}, anchors, candidates, text_ids, queue)
        return value, metrics | loss.with_learned({}, learned or {})

    return matryoshka(objective, widths) if widths else objective


def unit(z: jax.Array) -> jax.Array:
    """Return z / |z| over the last axis; a zero vector stays zero, and its gradient finite."""
    return z * jax.lax.rsqrt(jnp.maximum((z * z).sum(-1, keepdims=True), 1e-24))


def _with_ids(z: jax.Array, text_ids: jax.Array) -> Candidates:
    """Return the candidates of z [B, K, D] with text ids [K, B]."""
    ids = jnp.arange(text_ids.size, dtype=jnp.int32).reshape(text_ids.shape)
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
    return Candidates(*(jnp.concatenate(pair) for pair in zip(candidates, more, strict=True)))


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


def matryoshka(objective: Objective, widths: Sequence[int]) -> Objective:
    """Return the mean of an objective over the first `widths` features (Kusupati et al. 2022, equation 1).

    All widths have equal weights. Metrics are those of the widest, and `loss_W` of each.
    """

    def nested(
        anchors: jax.Array,
        candidates: jax.Array,
        text_ids: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
    ) -> tuple[jax.Array, Metrics]:
        def of_width(width: int) -> tuple[jax.Array, Metrics]:
            older = queue and queue._replace(z=queue.z[:, :width])
            return objective(anchors[..., :width], candidates[..., :width], text_ids, learned, older)

        found = {width: of_width(width) for width in sorted(widths, reverse=True)}
        losses = {f"loss_{width}": loss for width, (loss, _) in found.items()}
        return functools.reduce(jnp.add, losses.values()) / len(losses), found[max(widths)][1] | losses

    return nested

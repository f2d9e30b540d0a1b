"""Contrastive objectives over global candidates: what all of them share, and InfoNCE (SimCSE's equations 1 and 5).

Every device's candidates are gathered, local anchors meet all of them, tile by tile, and the gradient that flows back
through the gather is the true one of the global loss, not the local rows' share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.objective.tiles import Anchors, Candidates, Figures, Rules, losses_of

Metrics = dict[str, jax.Array]
# What an objective learns beside the encoder, by name, scalars: `log_temperature`, `bias`.
Learned = dict[str, jax.Array]
# (learned, anchors, candidates) -> losses float[b] and figures
Rank = Callable[[Learned, Anchors, Candidates], tuple[jax.Array, Figures]]


class Queue(NamedTuple):
    """Candidates of earlier steps (MoCo), the newest first; negatives of everybody."""

    z: jax.Array  # float[Q, D]
    texts: jax.Array  # int32[Q]: of what texts they are; comparable with `texts` of batches
    filled: jax.Array  # int32 scalar: how many of them there are yet


class Objective(Protocol):
    """A loss over embeddings, global, sharded over every axis of its mesh."""

    def __call__(
        self,
        anchors: jax.Array,
        candidates: jax.Array,
        texts: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """(loss, metrics) of anchors float[G, n, D] and candidates float[K, G, n, D].

        Candidate 0 of an example is its positive, the others its hard negatives, and everybody's candidates are
        candidates of everybody. texts int32[K + 1, G * n], replicated: equal number = equal text, row 0 the anchors'
        and row k + 1 candidate k's. loss: scalar of at least float32, the mean over anchors.

        metrics, scalars: `positive_cosine`, `negative_cosine` (other examples' positives), `accuracy` (own positive
        ranks first), `alignment` and `uniformity` of Wang & Isola as seen in the batch, `masked` (candidates left out,
        a count); and what was learned.
        """
        ...


def unit(z: jax.Array) -> jax.Array:
    """z / |z| over the last axis; a zero vector stays zero, and its gradient finite."""
    return z * jax.lax.rsqrt(jnp.maximum((z * z).sum(-1, keepdims=True), 1e-24))


def make_info_nce(
    mesh: Mesh,
    temperature: float = 0.05,
    hard_negative_weight: float = 1.0,
    similarity: str = "cosine",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    tile: int = 1024,
) -> Objective:
    """InfoNCE.

    The mean over anchors i of

        -log e^{s(i,i,0)} / (sum_j sum_k w_ijk e^{s(i,j,k)}), s(i,j,k) = sim(anchor i, candidate k of j) / temperature

    with w = hard_negative_weight for i's own hard negatives and 1 elsewhere. A candidate whose text is that of i's
    anchor or positive, other than i's own positive, is left out of the sum when `mask_duplicates`. `symmetric` averages
    with the same loss of the positives against all anchors (no hard negatives there). The candidates of a queue are in
    the sums of anchors.

    similarity: "cosine" or "dot". temperature: `exp(log_temperature)` instead where that is learned.

    tile, 0 or more: a device holds the similarities of at most so many of its anchors with the candidates of as many
    examples at a time, whatever the batch; 0 = all at once. It changes memory and time, and no number.
    """
    rules = Rules(hard_negative_weight, mask_duplicates, tile, similarity == "cosine")

    def rank(learned: Learned, anchors: Anchors, candidates: Candidates) -> tuple[jax.Array, Figures]:
        fixed = jnp.asarray(temperature, anchors.z.dtype)
        is_learned = "log_temperature" in learned
        divisor = jnp.exp(learned["log_temperature"]).astype(anchors.z.dtype) if is_learned else fixed
        return losses_of(rules, is_learned, divisor, anchors, candidates)

    return over_all(mesh, rank, normalised=similarity == "cosine", symmetric=symmetric)


def over_all(mesh: Mesh, rank: Rank, normalised: bool, symmetric: bool) -> Objective:
    """The objective in which `rank` gives each anchor's loss; `normalised`: it is to see unit vectors."""
    axes = mesh.axis_names
    scaled = unit if normalised else lambda z: z

    def local(
        learned: Learned, anchors: jax.Array, candidates: jax.Array, texts: jax.Array, queue: Queue | None
    ) -> tuple[jax.Array, Metrics]:
        width = anchors.shape[-1]
        # Each device's own copy: what comes back is summed over devices, once.
        learned = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), learned)
        anchors = scaled(anchors.reshape(-1, width))  # [b, D]
        candidates = scaled(candidates.reshape(candidates.shape[0], -1, width)).swapaxes(0, 1)  # [b, K, D]
        sent = jnp.concatenate([candidates, anchors[:, None]], axis=1) if symmetric else candidates
        everyone = jax.lax.all_gather(sent, axes, axis=0, tiled=True)  # [B, K (+ 1), D]
        count, total = len(anchors), len(everyone)
        places = jax.lax.axis_index(axes) * count + jnp.arange(count, dtype=jnp.int32)
        own = texts[:2, places].T

        def numbered(keys: jax.Array, key_texts: jax.Array) -> Candidates:
            """Candidates of keys [B, K, D] with texts [K, B]."""
            numbers = jnp.arange(key_texts.size, dtype=jnp.int32).reshape(key_texts.shape)
            return Candidates(keys, numbers.T, key_texts.T)

        among = numbered(everyone[:, : len(texts) - 1], texts[1:])
        if queue is not None:
            among = _with_queue(among, queue._replace(z=scaled(jax.lax.stop_gradient(queue.z))))
        losses, figures = rank(learned, Anchors(anchors, places, own), among)
        if symmetric:
            back = rank(learned, Anchors(candidates[:, 0], places, own), numbered(everyone[:, -1:], texts[:1]))
            losses = (losses + back[0]) / 2
        loss, sums = jax.lax.psum((losses.sum(), jnp.stack(figures).sum(1)), axes)
        return loss / total, _averaged(Figures(*sums), total)

    def objective(
        anchors: jax.Array,
        candidates: jax.Array,
        texts: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
    ) -> tuple[jax.Array, Metrics]:
        spread, every = P(axes), P()
        specs = (every, spread, P(None, axes), every, every)
        everywhere = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(every, every))
        loss, metrics = everywhere(learned or {}, anchors, candidates, texts, queue)
        return loss, metrics | _shown(learned or {})

    return objective


def _with_queue(candidates: Candidates, queue: Queue) -> Candidates:
    """The candidates and those of a queue, as positives of examples that nobody is."""
    count, columns = candidates.numbers.shape
    place = jnp.arange(len(queue.z), dtype=jnp.int32)[:, None]
    is_there = (place < queue.filled) & (jnp.arange(columns) == 0)[None]
    missing = ((0, 0), (0, columns - 1), (0, 0))
    z = jnp.pad(queue.z.astype(candidates.z.dtype)[:, None], missing)
    numbers = jnp.where(is_there, count * columns + place, -1)
    texts = jnp.broadcast_to(queue.texts[:, None], numbers.shape)
    more = Candidates(z, numbers, texts)
    return Candidates(*(jnp.concatenate(pair) for pair in zip(candidates, more, strict=True)))


def _shown(learned: Learned) -> Metrics:
    """What is logged of what is learned."""
    names = {"log_temperature": ("temperature", jnp.exp), "bias": ("bias", lambda x: x)}
    return {names[key][0]: names[key][1](value) for key, value in learned.items()}


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


def matryoshka(objective: Objective, widths: tuple[int, ...]) -> Objective:
    """The mean of an objective over the first `widths` features (Kusupati et al. 2022, equation 1, equal weights).

    Metrics are those of the widest, and `loss_W` of each.
    """

    def nested(
        anchors: jax.Array,
        candidates: jax.Array,
        texts: jax.Array,
        learned: Learned | None = None,
        queue: Queue | None = None,
    ) -> tuple[jax.Array, Metrics]:
        def of_width(width: int) -> tuple[jax.Array, Metrics]:
            older = queue and queue._replace(z=queue.z[:, :width])
            return objective(anchors[..., :width], candidates[..., :width], texts, learned, older)

        found = {width: of_width(width) for width in sorted(widths, reverse=True)}
        losses = {f"loss_{width}": loss for width, (loss, _) in found.items()}
        return functools.reduce(jnp.add, losses.values()) / len(losses), found[max(widths)][1] | losses

    return nested

"""Compare embeddings with a teacher's vectors of the same texts, over the global batch.

To add a loss: write a function (own, everyone, *, OPTIONS) -> Losses here or in a file of its own, with the keys of
the section `teacher` that it reads as keyword-only parameters; add its line to the table, and the key of its weight,
which has its name, to config/sections/teacher.py.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.group import NO_TEXT
from simcse_jax.objective import tiles
from simcse_jax.objective.contrastive import Metrics
from simcse_jax.objective.tiles import HIGHEST
from simcse_jax.objective.unit import by_example, unit

# (embeddings [K, G, n, D], teacher's vectors [G, V, n, D'], text_ids, projection or None) -> (loss, metrics)
Distillation = Callable[..., tuple[jax.Array, Metrics]]


class Texts(NamedTuple):
    """Hold texts of the global batch, or a device's, or a tile of them."""

    z: jax.Array  # float[b, D]: the encoder's embeddings, of length 1
    projected: jax.Array  # float[b, D']: the same, taken to the teacher's width, of length 1
    teacher: jax.Array  # float[b, D']: the teacher's vectors, of length 1
    text_ids: jax.Array  # int32[b]: equal id = equal text, NO_TEXT = a hard negative that is missing
    examples: jax.Array  # int32[b]: index of the text's example in the global batch
    columns: jax.Array  # int32[b]: 0 = anchor, 1 = positive, above = hard negatives


Losses = tuple[jax.Array, jax.Array]  # float[b], and bool[b]: which of them count


def mse(own: Texts, everyone: Texts) -> Losses:
    """Return the squared distance between each embedding and its teacher's vector, 2 - 2 cos."""
    del everyone
    return jnp.square(own.projected - own.teacher).sum(-1), own.text_ids != NO_TEXT


def kl(own: Texts, everyone: Texts, *, temperature: float, student_temperature: float) -> Losses:
    """Return the divergence of each text's similarities from the teacher's.

        sum_j p_ij log(p_ij / q_ij), p_i = softmax_j(cos(t_i, t_j) / temperature),
                                     q_i = softmax_j(cos(z_i, z_j) / student_temperature)

    j: all texts of the batch that are not equal to i; 0 where there is none. student_temperature 0: as the teacher's.
    """
    theirs = everyone.text_ids[None]
    compared = (theirs != own.text_ids[:, None]) & (theirs != NO_TEXT)
    by_teacher = _log_softmax(own.teacher, everyone.teacher, temperature, compared)
    by_student = _log_softmax(own.z, everyone.z, student_temperature or temperature, compared)
    terms = jnp.where(compared, jnp.exp(by_teacher) * (by_teacher - by_student), 0)
    return terms.sum(1), own.text_ids != NO_TEXT


def margin_mse(own: Texts, everyone: Texts) -> Losses:
    """Return how far each anchor's margins are from the teacher's (Hofstätter et al. 2020).

        mean over negatives n of ((cos(z_i, z_p) - cos(z_i, z_n)) - (cos(t_i, t_p) - cos(t_i, t_n)))^2, p the positive

    Negatives are the anchor's hard negatives, or, where it has none, the positives of other examples whose text is
    neither the anchor's nor its positive's. Only anchors with negatives count.
    """
    theirs, columns = everyone.text_ids[None], everyone.columns[None]
    is_own = everyone.examples[None] == own.examples[:, None]
    is_positive = is_own & (columns == 1)
    excess = _similarities(own.z, everyone.z) - _similarities(own.teacher, everyone.teacher)
    is_hard = is_own & (columns > 1) & (theirs != NO_TEXT)
    is_other = ~is_own & (columns == 1)
    for text_ids in (own.text_ids, jnp.where(is_positive, theirs, 0).sum(1)):
        is_other &= theirs != text_ids[:, None]
    is_negative = jnp.where(is_hard.any(1, keepdims=True), is_hard, is_other)
    positive = jnp.where(is_positive, excess, 0).sum(1, keepdims=True)
    squares = jnp.where(is_negative, jnp.square(positive - excess), 0).sum(1)
    count = is_negative.sum(1)
    return squares / jnp.maximum(count, 1), (own.columns == 0) & (count > 0)


DISTILLATIONS: dict[str, Callable[..., Losses]] = {"mse": mse, "kl": kl, "margin_mse": margin_mse}
NEED_PAIRS = ("margin_mse",)  # those that compare a text with its positive


def options_of(name: str) -> tuple[str, ...]:
    """Return the keys of the section `teacher` that a loss reads, beside its weight."""
    parameters = inspect.signature(DISTILLATIONS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def make_distillation(mesh: Mesh, weights: Mapping[str, float], tile: int = 1024, **options: Any) -> Distillation:
    """Return the function that averages the losses over all texts of the global batch, and adds them up by weight.

    It takes (z, teacher, text_ids, kernel), global arrays sharded by group over every axis of the mesh, and returns
    (loss, metrics). z: float[K, G, n, D], the embeddings of the K texts, or views, of each example. teacher:
    float[G, V, n, D'], V = K, or 1 where all K are views of one text. text_ids: int32[K or more, G * n], replicated.
    kernel: float[D, D'] takes embeddings to the teacher's width; None where the widths are equal.

    weights: by the losses' names. tile: similarities of at most so many texts with all others are held at a time; 0 =
    all of a device's. metrics: each loss without its weight, as `teacher_NAME`.
    """
    axes = mesh.axis_names
    given = {name: {key: options[key] for key in options_of(name)} for name in weights}

    def local(
        z: jax.Array, teacher: jax.Array, text_ids: jax.Array, kernel: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        views, width = z.shape[0], z.shape[-1]
        z = z.reshape(views, -1, width).swapaxes(0, 1)  # [b, K, D]
        vectors = by_example(teacher, views).astype(z.dtype)  # [b, K, D']
        projected = z
        if kernel is not None:
            matrix = jax.lax.pcast(kernel.astype(z.dtype), axes, to="varying")  # its gradient is summed once
            projected = jnp.einsum("bkd,de->bke", z, matrix, precision=HIGHEST)
        z, projected = unit(z), unit(projected)
        ids = jax.lax.axis_index(axes) * len(z) + jnp.arange(len(z), dtype=jnp.int32)
        own = everyone = _texts(z, projected, vectors, text_ids[:views], ids)
        if weights.keys() - {"mse"}:
            sent = [jax.lax.all_gather(x, axes, axis=0, tiled=True) for x in (z, vectors)]
            everyone = _texts(sent[0], sent[1], sent[1], text_ids[:views], jnp.arange(text_ids.shape[1]))

        def of_tile(some: Texts) -> list[Losses]:
            return [DISTILLATIONS[name](some, everyone, **given[name]) for name in weights]

        found = jax.lax.map(jax.checkpoint(of_tile), tiles.split(own, tile))
        sums = [
            (jnp.where(counts, losses, 0).sum(), counts.sum())
            for losses, counts in tiles.join(found, len(own.text_ids))
        ]
        means = {
            name: total / jnp.maximum(count, 1)
            for name, (total, count) in zip(weights, jax.lax.psum(sums, axes), strict=True)
        }
        loss = functools.reduce(jnp.add, [weight * means[name] for name, weight in weights.items()])
        return loss, {f"teacher_{name}": mean for name, mean in means.items()}

    sharded, replicated = P(axes), P()
    specs = (P(None, axes), sharded, replicated, replicated)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(replicated, replicated))


def _texts(z: jax.Array, projected: jax.Array, teacher: jax.Array, text_ids: jax.Array, examples: jax.Array) -> Texts:
    """Return the K texts of some examples of the global batch, from arrays [b, K, ...] and text_ids [K, B]."""
    columns = jnp.broadcast_to(jnp.arange(z.shape[1], dtype=jnp.int32), z.shape[:2])
    of_example = jnp.broadcast_to(examples.astype(jnp.int32)[:, None], z.shape[:2])
    texts = Texts(z, projected, teacher, text_ids[:, examples].T, of_example, columns)
    return Texts(*(x.reshape(-1, *x.shape[2:]) for x in texts))


def _similarities(own: jax.Array, everyone: jax.Array) -> jax.Array:
    return jnp.einsum("ad,nd->an", own, everyone, precision=HIGHEST)


def _log_softmax(own: jax.Array, everyone: jax.Array, temperature: float, compared: jax.Array) -> jax.Array:
    """Return float[a, n], the logarithm of the softmax of similarities over what is compared."""
    similarities = _similarities(own, everyone)
    # Not -inf: a difference of two would be NaN.
    return jax.nn.log_softmax(jnp.where(compared, similarities / temperature, -1e30), axis=1)

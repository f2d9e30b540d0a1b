"""Attention within packed sentences, with dropout on its weights; the backward pass makes the weights again.

Of the [B, H, T, T] arrays none is kept: at 32 to 512 tokens a row they are cheaper to compute than to write and read.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop


class AttentionMask(NamedTuple):
    """Which tokens of a row see each other, and what is dropped of their weights."""

    segments: jax.Array  # int32[B, T]: a token sees those of its own number; padding is 0, and so sees padding
    keys: jax.Array | None  # uint32[B, 1, T, 1] and uint32[B, H, 1, T]: what `dropout.dropout` takes, of weights
    pairs: jax.Array | None  # [B, H, T, T]; None where nothing is dropped


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: jax.Array, k: jax.Array, v: jax.Array, among: AttentionMask, rate: float) -> jax.Array:
    """[B, T, H, D]: for each token of each row, the values of its sentence, weighted by softmax(q k / sqrt(D)).

    q, k, v: [B, T, H, D], one dtype. rate: of dropout on the weights. The softmax is in at least float32.
    """
    return _forward(q, k, v, among, rate)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, among: AttentionMask, rate: float) -> tuple[jax.Array, Any]:
    scores = _scores(q, k, among.segments)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    # In full precision the softmax's division comes last, where there is less to divide and where XLA fuses it well; in
    # half, before anything is rounded.
    divides_last = q.dtype == scores.dtype
    weights = weights if divides_last else (weights / total).astype(q.dtype)
    context = jnp.einsum("bhts,bshd->bthd", _dropped(weights, among, rate), v)
    context = context / jnp.moveaxis(total, 1, 2) if divides_last else context
    return context, (q, k, v, among, largest + jnp.log(total))


def _backward(rate: float, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    q, k, v, among, log_total = kept
    # Or XLA would find the scores of the forward pass, and keep them after all.
    q, k = jax.lax.optimization_barrier((q, k))
    weights = jnp.exp(_scores(q, k, among.segments) - log_total)
    of_v = jnp.einsum("bhts,bthd->bshd", _dropped(weights.astype(q.dtype), among, rate), gradient)
    of_weights = _dropped(_products(gradient, v), among, rate)
    common = (weights * of_weights).sum(-1, keepdims=True)
    of_scores = (weights * (of_weights - common) * q.shape[-1] ** -0.5).astype(q.dtype)
    of_q = jnp.einsum("bhts,bshd->bthd", of_scores, k)
    of_k = jnp.einsum("bhts,bthd->bshd", of_scores, q)
    return of_q, of_k, of_v, None


attend.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, segments: jax.Array) -> jax.Array:
    """[B, H, T, T] of at least float32: scaled products within a sentence, elsewhere the least number."""
    scores = _products(q, k) * q.shape[-1] ** -0.5
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(same, scores, jnp.finfo(scores.dtype).min)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """[B, H, T, T] of at least float32, never rounded to less: both passes make the scores, and have to agree."""
    return jnp.einsum("bthd,bshd->bhts", a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _dropped(weights: jax.Array, among: AttentionMask, rate: float) -> jax.Array:
    if among.keys is None or among.pairs is None:
        return weights
    return drop.dropout(weights, among.keys, among.pairs, rate)

"""Compute attention of some queries over some keys of the same rows, and its gradients.

The backward pass computes the weights again. None of the [B, H, Q, T] arrays is kept: with 32 to 512 tokens a row they
are cheaper to compute than to write and read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.products import rounded, times, times_rows, transposed


class AttentionMask(NamedTuple):
    """Say which tokens of a row attend to each other, and which weights dropout zeroes.

    Tokens of a sentence are contiguous, so a distance within a row is one within the sentence.
    """

    segments: jax.Array  # int32[B, T]: a token attends to those with its number; padding is 0, and attends to padding
    keys: jax.Array | None  # uint32[B, 1, Q, 1], the keys that `dropout.dropout` takes; None without dropout
    pairs: jax.Array | None  # uint32[B, H, 1, T], its index: (head, position of the key token)
    bias: jax.Array | None = None  # [H, Q, T] for all rows or [B, H, Q, T], added to the scores
    near: jax.Array | None = None  # int32[]: a token attends to tokens at most this far away; None: to all
    queries: jax.Array | None = None  # int32[B, Q]: segments of the queries; None: the queries are all tokens
    first: jax.Array | None = None  # int32[]: place of the first query, from that of the first key; None: 0


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float, products: str
) -> tuple[jax.Array, Any]:
    """Return the context [B, Q, H, D], and what `backward` takes; q [B, Q, H, D], k and v [B, T, H, D]."""
    if products == "bfloat16":
        return _rounded_forward(q, k, v, mask, rate)
    scores = _scaled(_products(q, k), q, mask)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    # In full precision the softmax divides last, where there is less to divide and XLA fuses it well; in half
    # precision it divides before anything is rounded.
    divides_last = q.dtype == scores.dtype
    weights = weights if divides_last else (weights / total).astype(q.dtype)
    context = jnp.einsum("bhts,bshd->bthd", _dropped(weights, mask, rate), v)
    context = context / jnp.moveaxis(total, 1, 2) if divides_last else context
    return context, (q, k, v, mask, largest + jnp.log(total))


def backward(rate: float, products: str, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    """Return the gradients of q, k, v and of the mask's bias (None without one)."""
    if products == "bfloat16":
        return _rounded_backward(rate, kept, gradient)
    q, k, v, mask, log_total = kept
    # The barrier keeps XLA from finding the scores of the forward pass and storing them after all.
    q, k = jax.lax.optimization_barrier((q, k))
    weights = jnp.exp(_scaled(_products(q, k), q, mask) - log_total)
    of_v = jnp.einsum("bhts,bthd->bshd", _dropped(weights.astype(q.dtype), mask, rate), gradient)
    of_logits = _of_logits(weights, _dropped(_products(gradient, v), mask, rate))
    of_scores = (of_logits * q.shape[-1] ** -0.5).astype(q.dtype)
    of_q = jnp.einsum("bhts,bshd->bthd", of_scores, k)
    of_k = jnp.einsum("bhts,bthd->bshd", of_scores, q)
    return of_q, of_k, of_v, _of_bias(of_logits, mask)


def kept_of(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, log_total: Any, products: str) -> Any:
    """Return what `backward` takes, from the factors and the last entry of what `forward` returned."""
    factors = tuple(map(_by_head, (q, k, v))) if products == "bfloat16" else (q, k, v)
    return *factors, mask, log_total


def _rounded_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float
) -> tuple[jax.Array, Any]:
    half = _by_head(q), _by_head(k), _by_head(v)
    scores = _scaled(times_rows(half[0], half[1]), q, mask)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    context = times(rounded(_dropped(weights, mask, rate)), half[2]) / total
    return _by_token(context).astype(q.dtype), (*half, mask, largest + jnp.log(total))


def _rounded_backward(rate: float, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    q, k, v, mask, log_total = kept  # q, k, v as `_by_head` gives them
    q, k = jax.lax.optimization_barrier((q, k))  # as above
    weights = jnp.exp(_scaled(times_rows(q, k), q, mask) - log_total)
    half = _by_head(gradient)
    # Scaled here, where the product's result is read anyway.
    scale = q.shape[-1] ** -0.5
    of_scores = _of_logits(weights, _dropped(times_rows(half, v), mask, rate) * scale)
    rounded_scores = rounded(of_scores)
    # Gradients of k and v contract over queries: computed as [B, H, D, T], it is the narrow factor that is transposed.
    of_v = times(transposed(half), rounded(_dropped(weights, mask, rate)))
    of_k = times(transposed(q), rounded_scores)
    found = times(rounded_scores, k), jnp.swapaxes(of_k, -1, -2), jnp.swapaxes(of_v, -1, -2)
    of_bias = None if mask.bias is None else _of_bias(of_scores / scale, mask)
    return *(_by_token(x).astype(gradient.dtype) for x in found), of_bias


def _by_head(x: jax.Array) -> jax.Array:
    """Return x [B, T, H, D] as bfloat16[B, H, T, D]."""
    return jnp.swapaxes(rounded(x), 1, 2)


def _by_token(x: jax.Array) -> jax.Array:
    """Return x [B, H, T, D] as [B, T, H, D]."""
    return jnp.swapaxes(x, 1, 2)


def _of_logits(weights: jax.Array, of_weights: jax.Array) -> jax.Array:
    """Return the gradient of the softmax's input."""
    common = (weights * of_weights).sum(-1, keepdims=True)
    return weights * (of_weights - common)


def _of_bias(of_logits: jax.Array, mask: AttentionMask) -> jax.Array | None:
    if mask.bias is None:
        return None
    return (of_logits.sum(0) if mask.bias.ndim == 3 else of_logits).astype(mask.bias.dtype)


def _scaled(products: jax.Array, q: jax.Array, mask: AttentionMask) -> jax.Array:
    """Return [B, H, Q, T] of at least float32: the softmax's input; the lowest number where a token is not attended."""
    scores = products * q.shape[-1] ** -0.5
    if mask.bias is not None:
        bias = mask.bias[None] if mask.bias.ndim == 3 else mask.bias
        scores = scores + bias.astype(scores.dtype)
    queries = mask.segments if mask.queries is None else mask.queries
    attended = queries[:, None, :, None] == mask.segments[:, None, None, :]
    if mask.near is not None:
        places = jnp.arange(scores.shape[2]) + (0 if mask.first is None else mask.first)
        distance = jnp.abs(places[:, None] - jnp.arange(scores.shape[3])[None])
        attended = attended & (distance <= mask.near)[None, None]
    return jnp.where(attended, scores, jnp.finfo(scores.dtype).min)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return [B, H, Q, T] of at least float32, never rounded: both passes compute the scores, and must agree."""
    return jnp.einsum("bthd,bshd->bhts", a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _dropped(weights: jax.Array, mask: AttentionMask, rate: float) -> jax.Array:
    if mask.keys is None or mask.pairs is None:
        return weights
    return drop.dropout(weights, mask.keys, mask.pairs, rate)

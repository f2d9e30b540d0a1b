"""Compute attention within packed sentences, with dropout on its weights.

The backward pass computes the weights again. None of the [B, H, T, T] arrays is kept: with 32 to 512 tokens a row they
are cheaper to compute than to write and read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.products import rounded, times, times_rows, transposed
from simcse_jax.system.errors import UserError


class AttentionMask(NamedTuple):
    """Say which tokens of a row attend to each other, and which weights dropout zeroes."""

    segments: jax.Array  # int32[B, T]: a token attends to those with its number; padding is 0, and attends to padding
    keys: jax.Array | None  # uint32[B, 1, T, 1], the keys that `dropout.dropout` takes; None without dropout
    pairs: jax.Array | None  # uint32[B, H, 1, T], its index: (head, position of the key token)


WIDEST_HEAD = 128  # features that a head may have in the kernels of `fused_attention`
GPUS = ("gpu", "cuda", "rocm")  # names of JAX's platforms; devices that are only compiled for say which GPU
# (qkv [B, T, 3 * H * D], heads H, mask, dropout rate, products) -> context [B, T, H * D]
Attend = Callable[[jax.Array, int, AttentionMask, float, str], jax.Array]


def plain_attention(
    qkv: jax.Array, heads: int, mask: AttentionMask, rate: float, products: str = "float32"
) -> jax.Array:
    """Return [B, T, H * D]: the context of each token and head, one after another.

    qkv: [B, T, 3 * H * D], queries, keys and values of all heads. Others: as of `attend`.
    """
    q, k, v = (part.reshape(*part.shape[:-1], heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    context: jax.Array = attend(q, k, v, mask, rate, products)
    return context.reshape(*qkv.shape[:2], -1)


def choose_attention(asked: str, head_size: int, dtype: str, platform: str) -> Attend:
    """Return the attention that model.attention asks for, one of `architecture.ATTENTIONS`.

    dtype: the encoder's. platform: of the devices, "cpu", "gpu" or "tpu". "auto" is plain: the kernels have been
    compiled for GPUs and compared on a CPU, and not yet run on a GPU. Raises UserError where "fused" cannot run.
    """
    if asked != "fused":
        return plain_attention
    reason = ""
    if platform not in GPUS:
        reason = f"runs on GPUs, and these devices are {platform.upper()}s"
    elif dtype == "float64":
        reason = 'computes in float32 or bfloat16, and model.dtype is "float64"'
    elif head_size > WIDEST_HEAD:
        reason = f"takes heads of at most {WIDEST_HEAD} features, and this model's have {head_size}"
    if reason:
        raise UserError(f'model.attention = "fused" {reason}.\nUse --config.model.attention=plain.')
    # Here, since Pallas takes a while to import.
    from simcse_jax.encoder.fused_attention import fused_attention

    kernels: Any = fused_attention
    return kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float, products: str = "float32"
) -> jax.Array:
    """Return [B, T, H, D]: the values of each token's sentence, weighted by softmax(q k / sqrt(D)).

    q, k, v: [B, T, H, D], one dtype. rate: dropout rate of the weights. products: "bfloat16" rounds the factors of all
    products, forward and backward, to bfloat16. The softmax is in at least float32.
    """
    return _forward(q, k, v, mask, rate, products)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float, products: str
) -> tuple[jax.Array, Any]:
    if products == "bfloat16":
        return _rounded_forward(q, k, v, mask, rate)
    scores = _scaled(_products(q, k), q, mask.segments)
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


def _backward(rate: float, products: str, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    if products == "bfloat16":
        return _rounded_backward(rate, kept, gradient)
    q, k, v, mask, log_total = kept
    # The barrier keeps XLA from finding the scores of the forward pass and storing them after all.
    q, k = jax.lax.optimization_barrier((q, k))
    weights = jnp.exp(_scaled(_products(q, k), q, mask.segments) - log_total)
    of_v = jnp.einsum("bhts,bthd->bshd", _dropped(weights.astype(q.dtype), mask, rate), gradient)
    of_scores = _of_scores(weights, _dropped(_products(gradient, v), mask, rate), q).astype(q.dtype)
    of_q = jnp.einsum("bhts,bshd->bthd", of_scores, k)
    of_k = jnp.einsum("bhts,bthd->bshd", of_scores, q)
    return of_q, of_k, of_v, None


attend.defvjp(_forward, _backward)


def _rounded_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float
) -> tuple[jax.Array, Any]:
    half = _by_head(q), _by_head(k), _by_head(v)
    scores = _scaled(times_rows(half[0], half[1]), q, mask.segments)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    context = times(rounded(_dropped(weights, mask, rate)), half[2]) / total
    return _by_token(context).astype(q.dtype), (*half, mask, largest + jnp.log(total))


def _rounded_backward(rate: float, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    q, k, v, mask, log_total = kept  # q, k, v as `_by_head` gives them
    q, k = jax.lax.optimization_barrier((q, k))  # as above
    weights = jnp.exp(_scaled(times_rows(q, k), q, mask.segments) - log_total)
    half = _by_head(gradient)
    of_scores = rounded(_of_scores(weights, _dropped(times_rows(half, v), mask, rate), q))
    # Gradients of k and v contract over queries: computed as [B, H, D, T], it is the narrow factor that is transposed.
    of_v = times(transposed(half), rounded(_dropped(weights, mask, rate)))
    of_k = times(transposed(q), of_scores)
    found = times(of_scores, k), jnp.swapaxes(of_k, -1, -2), jnp.swapaxes(of_v, -1, -2)
    return *(_by_token(x).astype(gradient.dtype) for x in found), None


def _by_head(x: jax.Array) -> jax.Array:
    """Return x [B, T, H, D] as bfloat16[B, H, T, D]."""
    return jnp.swapaxes(rounded(x), 1, 2)


def _by_token(x: jax.Array) -> jax.Array:
    """Return x [B, H, T, D] as [B, T, H, D]."""
    return jnp.swapaxes(x, 1, 2)


def _of_scores(weights: jax.Array, of_weights: jax.Array, q: jax.Array) -> jax.Array:
    """Return the gradient of the unscaled scores: that of the softmax, times the scale."""
    common = (weights * of_weights).sum(-1, keepdims=True)
    return weights * (of_weights - common) * q.shape[-1] ** -0.5


def _scaled(products: jax.Array, q: jax.Array, segments: jax.Array) -> jax.Array:
    """Return [B, H, T, T] of at least float32: scaled products within a sentence, elsewhere the lowest number."""
    scores = products * q.shape[-1] ** -0.5
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.where(same, scores, jnp.finfo(scores.dtype).min)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return [B, H, T, T] of at least float32, never rounded: both passes compute the scores, and must agree."""
    return jnp.einsum("bthd,bshd->bhts", a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _dropped(weights: jax.Array, mask: AttentionMask, rate: float) -> jax.Array:
    if mask.keys is None or mask.pairs is None:
        return weights
    return drop.dropout(weights, mask.keys, mask.pairs, rate)

"""Compute attention within packed sentences, with dropout on its weights: whole rows at once, long rows in blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simcse_jax.encoder import attention_block as block
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.attention_block import AttentionMask
from simcse_jax.system.errors import UserError

WIDEST_HEAD = 128  # features that a head may have in the kernels of `fused_attention`
GPUS = ("gpu", "cuda", "rocm")  # names of JAX's platforms; devices that are only compiled for say which GPU
# Rows of more tokens are attended in blocks of QUERIES: memory then grows with the row, not with its square.
LONGEST_WHOLE_ROW, QUERIES = 512, 256
REACH = 128  # a block whose queries attend to tokens no farther than this skips the keys beyond
# (qkv [B, T, 3 * H * D], heads H, mask, dropout rate, products) -> context [B, T, H * D]
Attend = Callable[[jax.Array, int, AttentionMask, float, str], jax.Array]


def plain_attention(
    qkv: jax.Array, heads: int, mask: AttentionMask, rate: float, products: str = "float32"
) -> jax.Array:
    """Return [B, T, H * D]: the context of each token and head, one after another.

    qkv: [B, T, 3 * H * D], queries, keys and values of all heads. Others: as of `attend`.
    """
    tokens = qkv.shape[1]
    over = -tokens % QUERIES if tokens > LONGEST_WHOLE_ROW else 0
    if over:  # tokens that attend to each other only
        qkv, mask = jnp.pad(qkv, ((0, 0), (0, over), (0, 0))), _padded(mask, over)
    q, k, v = (part.reshape(*part.shape[:-1], heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    context: jax.Array = attend(q, k, v, mask, rate, products)
    return context.reshape(*qkv.shape[:2], -1)[:, :tokens]


def choose_attention(asked: str, architecture: Architecture, dtype: str, platform: str) -> Attend:
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
    elif architecture.head_size > WIDEST_HEAD:
        reason = f"takes heads of at most {WIDEST_HEAD} features, and this model's have {architecture.head_size}"
    elif architecture.needs_plain_attention:
        reason = f"has neither the relative bias nor the local windows of other families; this is {architecture.family}"
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
    """Return [B, T, H, D]: the values of each token's sentence, weighted by softmax(q k / sqrt(D) + bias).

    q, k, v: [B, T, H, D], one dtype; rows longer than LONGEST_WHOLE_ROW have a multiple of QUERIES tokens. rate:
    dropout rate of the weights. products: "bfloat16" rounds the factors of all products, forward and backward, to
    bfloat16. The softmax is in at least float32.
    """
    return _forward(q, k, v, mask, rate, products)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float, products: str
) -> tuple[jax.Array, Any]:
    if q.shape[1] <= LONGEST_WHOLE_ROW:
        return block.forward(q, k, v, mask, rate, products)

    def of_block(place: jax.Array, first_key: jax.Array, keys: int) -> tuple[jax.Array, jax.Array]:
        context, kept = block.forward(*_cut(q, k, v, mask, place, first_key, keys), rate, products)
        return context, kept[-1]

    def step(_: None, place: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return None, _near_or_all(of_block, place, q.shape[1], mask)

    _, (context, log_total) = jax.lax.scan(step, None, jnp.arange(0, q.shape[1], QUERIES))
    return _joined(context, 1), (q, k, v, mask, _joined(log_total, 2))


def _backward(rate: float, products: str, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    if gradient.shape[1] <= LONGEST_WHOLE_ROW:
        *of_factors, of_bias = block.backward(rate, products, kept, gradient)
        return *of_factors, _of_mask(of_bias)
    q, k, v, mask, log_total = kept

    def of_block(place: jax.Array, first_key: jax.Array, keys: int) -> tuple[jax.Array | None, ...]:
        parts = _cut(q, k, v, mask, place, first_key, keys)
        totals = jax.lax.dynamic_slice_in_dim(log_total, place, QUERIES, 2)
        part = jax.lax.dynamic_slice_in_dim(gradient, place, QUERIES, 1)
        of_q, of_k, of_v, of_bias = block.backward(rate, products, block.kept_of(*parts, totals, products), part)

        def whole(x: jax.Array, axis: int) -> jax.Array:
            shape = (*x.shape[:axis], k.shape[1], *x.shape[axis + 1 :])
            return jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, x.dtype), x, first_key, axis)

        return of_q, whole(of_k, 1), whole(of_v, 1), None if of_bias is None else whole(of_bias, of_bias.ndim - 1)

    def step(sums: Any, place: jax.Array) -> tuple[Any, Any]:
        of_q, of_k, of_v, of_bias = _near_or_all(of_block, place, k.shape[1], mask)
        return jax.tree.map(lambda total, x: total + x, sums, (of_k, of_v)), (of_q, of_bias)

    wide = jnp.promote_types(k.dtype, jnp.float32)
    start = jnp.zeros_like(k, wide), jnp.zeros_like(v, wide)
    (of_k, of_v), (of_q, of_bias) = jax.lax.scan(step, start, jnp.arange(0, q.shape[1], QUERIES))
    of_bias = None if mask.bias is None else _joined(of_bias, mask.bias.ndim - 2)
    return _joined(of_q, 1), of_k.astype(k.dtype), of_v.astype(v.dtype), _of_mask(of_bias)


attend.defvjp(_forward, _backward)


def _of_mask(of_bias: jax.Array | None) -> Any:
    """Return the gradient of a mask: of its bias, the only array of real numbers."""
    nothing: dict[str, Any] = dict.fromkeys(AttentionMask._fields)
    return None if of_bias is None else AttentionMask(**nothing | {"bias": of_bias})


def _near_or_all(of_block: Callable[..., Any], place: jax.Array, tokens: int, mask: AttentionMask) -> Any:
    """Return of_block(place of the first query, place of the first key, number of keys), for the fewest keys."""
    keys = QUERIES + 2 * REACH

    def over_all() -> Any:
        return of_block(place, jnp.zeros_like(place), tokens)

    if mask.near is None or keys >= tokens:
        return over_all()
    first_key = jnp.clip(place - REACH, 0, tokens - keys)
    return jax.lax.cond(mask.near <= REACH, lambda: of_block(place, first_key, keys), over_all)


def _cut(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, place: jax.Array, first_key: jax.Array, keys: int
) -> tuple[jax.Array, jax.Array, jax.Array, AttentionMask]:
    """Return the factors and the mask of QUERIES queries from `place` on, and of `keys` keys from `first_key` on."""

    def part_of_queries(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, place, QUERIES, axis)

    def part_of_keys(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, first_key, keys, axis)

    of_block = AttentionMask(
        part_of_keys(mask.segments, 1),
        None if mask.keys is None else part_of_queries(mask.keys, 2),
        None if mask.pairs is None else part_of_keys(mask.pairs, 3),
        None if mask.bias is None else part_of_keys(part_of_queries(mask.bias, mask.bias.ndim - 2), mask.bias.ndim - 1),
        mask.near,
        part_of_queries(mask.segments, 1),
        place - first_key,
    )
    return part_of_queries(q, 1), part_of_keys(k, 1), part_of_keys(v, 1), of_block


def _joined(blocks: jax.Array, axis: int) -> jax.Array:
    """Return arrays that are stacked on the leading axis, joined along `axis` of each."""
    parts = jnp.moveaxis(blocks, 0, axis)
    return parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])


def _padded(mask: AttentionMask, over: int) -> AttentionMask:
    """Return the mask of rows with `over` more tokens, which are of no sentence."""

    def padded(x: jax.Array | None, *axes: int, value: int = 0) -> jax.Array | None:
        if x is None:
            return None
        widths = [(0, over if axis in axes or axis - x.ndim in axes else 0) for axis in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value)

    return mask._replace(
        segments=jnp.pad(mask.segments, ((0, 0), (0, over)), constant_values=-1),
        keys=padded(mask.keys, 2),
        pairs=padded(mask.pairs, 3),
        bias=padded(mask.bias, -2, -1),
    )

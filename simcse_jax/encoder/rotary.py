"""Rotate queries and keys by the places of their tokens in the sentence: rotary positions (Su et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.encoder.architecture import Architecture


def angles(
    of: Architecture, positions: jax.Array, is_local: jax.Array | None, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Return [B, T, D / 2], of at least float32: position * base**(-2 i / D) for each pair i of a head's D features.

    positions: int32[B, T]. is_local: bool[], whether the layer is one of `local_layers`; None where there are none.
    dtype: of the queries and keys.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    by_pair = jnp.asarray(rates(of, of.rope_theta), wide)
    if is_local is not None:
        by_pair = jnp.where(is_local, jnp.asarray(rates(of, of.local_rope_theta), wide), by_pair)
    return positions.astype(wide)[..., None] * by_pair[None, None]


def rotate(qkv: jax.Array, heads: int, by: jax.Array) -> jax.Array:
    """Return qkv [B, T, 3 * H * D] with queries and keys rotated by the angles of `angles`, and values as they are.

    Feature i of a head forms a pair with feature i + D / 2. Computed in the dtype of the angles.
    """
    parts = qkv.reshape(*qkv.shape[:2], 3, heads, 2, -1)
    turned, values = parts[:, :, :2].astype(by.dtype), parts[:, :, 2:]
    cos, sin = jnp.cos(by)[:, :, None, None], jnp.sin(by)[:, :, None, None]
    first, second = turned[..., 0, :], turned[..., 1, :]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-2)
    return jnp.concatenate([turned.astype(qkv.dtype), values], axis=2).reshape(qkv.shape)


def rates(of: Architecture, base: float) -> np.ndarray:
    """Return float32[D / 2], base**(-2 i / D), rounded as PyTorch's models round them."""
    exponents = np.arange(0, of.head_size, 2, dtype=np.float32) / np.float32(of.head_size)
    return np.float32(of.rope_scale) * (np.float32(1) / np.power(np.float32(base), exponents))

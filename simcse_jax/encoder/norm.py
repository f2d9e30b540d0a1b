"""Compute LayerNorm, keeping little more than its input for the backward pass."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class LayerNorm(nn.Module):
    """Normalise x [..., D] to mean 0 and variance 1 over D, then scale and shift.

    Parameters: scale [D], and bias [D] if `has_bias`.
    """

    epsilon: float
    param_dtype: Any = jnp.float32
    has_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        if self.has_bias:
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        else:
            bias = jnp.zeros_like(scale)
        return layer_norm(x, scale, bias, self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis; shape and dtype of x.

    Computed in at least float32, with the two-pass variance that PyTorch computes.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    out = centred * inverse * _over_rows(scale, x) + _over_rows(bias, x)
    return out.astype(x.dtype), (x, mean, inverse, scale)


def _backward(epsilon: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = kept
    x = jax.lax.optimization_barrier(x)  # keeps XLA from storing `normal` in the forward pass
    normal = (x.astype(mean.dtype) - mean) * inverse
    wide = gradient.astype(mean.dtype)
    rows = tuple(range(x.ndim - 1))
    slope = wide * _over_rows(scale, x)
    common = slope.mean(-1, keepdims=True) + normal * (slope * normal).mean(-1, keepdims=True)
    of_scale, of_bias = (wide * normal).sum(rows), wide.sum(rows)
    return ((slope - common) * inverse).astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


layer_norm.defvjp(_forward, _backward)


def _over_rows(parameter: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(parameter.astype(jnp.promote_types(x.dtype, jnp.float32)), x.shape)

"""Define the activations of the feed-forward layers, by Hugging Face's names for `hidden_act`."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return x * Phi(x), the exact GELU of BERT and RoBERTa; shape and dtype of x, computed in at least float32.

    `jax.nn.gelu` computes the same with erfc, at three times the cost on a CPU, and keeps more for the backward pass.
    Here only x is kept, and the backward pass computes the slope from it.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _phi(wide)).astype(x.dtype)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x = jax.lax.optimization_barrier(x)  # keeps XLA from storing the erf in the forward pass
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = _phi(wide) + wide * jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return ((gradient.astype(wide.dtype) * slope).astype(x.dtype),)


gelu.defvjp(_forward, _backward)


def _phi(x: jax.Array) -> jax.Array:
    """Return Phi(x), the standard normal distribution function."""
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}

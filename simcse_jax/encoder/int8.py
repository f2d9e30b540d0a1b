"""Multiply factors of 8 bits, for encoding on CPUs: weights are quantised once by column, activations by row.

An entry is an integer from -127 to 127 times its row's or column's scale, the largest magnitude there divided by 127.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simcse_jax.encoder.lora import DOWN
from simcse_jax.encoder.products import rounded

LARGEST = 127
# Dense layers whose kernel has two axes of inputs, by their names: heads, and features of a head.
_TWO_INPUTS = ("out",)


def quantise(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Return (int8 codes, float32 scales with `axis` of size 1), of which x is about the product; zeros have scale 0.

    Scales of what is not finite are not finite, and so are products with them.
    """
    wide = x.astype(jnp.float32)
    scale = jnp.abs(wide).max(axis, keepdims=True) * (1 / LARGEST)
    inverse = jnp.where((scale > 0) & (scale < jnp.inf), 1 / scale, 0)
    return jnp.round(wide * inverse).astype(jnp.int8), scale


def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Return x [M, K] times codes int8[K, N] and scales float32[N], as float32[M, N]; x is quantised by row."""
    rows, of_rows = quantise(x, -1)
    total = lax.dot_general(rows, codes, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return total.astype(jnp.float32) * of_rows * jnp.broadcast_to(scales, total.shape)


def prepared(params: Any, products: str) -> Any:
    """Return an encoder's parameters, split into layers, with kernels as products of this kind take them.

    So they are rounded or quantised once, and not for every group of sentences. With "int8" each kernel has `scale`,
    float32[outputs], beside it.
    """
    if products == "float32":
        return params

    def of(name: str, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        if "kernel" not in tree or DOWN in tree:  # with adapters, it is their sum that a product takes
            return {inner: of(inner, held) for inner, held in tree.items()}
        kernel = tree["kernel"]
        if products == "bfloat16":
            return {**tree, "kernel": rounded(kernel)}
        inputs = math.prod(kernel.shape[: 2 if name in _TWO_INPUTS else 1])
        codes, scale = quantise(kernel.reshape(inputs, -1), 0)
        return {**tree, "kernel": codes.reshape(kernel.shape), "scale": scale[0]}

    return of("", params)

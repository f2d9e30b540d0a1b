"""A checksum of arrays that does not depend on where they lie: the same on devices, split in any way, and on the host.

Saved with a state, it tells later whether what is read back is what was written: file formats take a missing part for
zeros, and disks flip bits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PLACE, _MIX = 0x9E3779B9, 0x85EBCA6B


@jax.jit
def device_digest(tree: Any) -> jax.Array:
    """uint32[leaves], from arrays on the devices."""
    return jnp.stack([_device_leaf(x) for x in jax.tree.leaves(tree)])


def host_digest(tree: Any) -> np.ndarray:
    """uint32[leaves], from NumPy arrays: equal to `device_digest` of the same values."""
    return np.array([_host_leaf(np.asarray(x)) for x in jax.tree.leaves(tree)], np.uint32)


def _device_leaf(x: jax.Array) -> jax.Array:
    words = _device_words(x)
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # the flat index, without a reshape that would gather what is split
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride & 0xFFFFFFFF)
        stride *= words.shape[axis]
    mixed = (words ^ (place * jnp.uint32(_PLACE))) * jnp.uint32(_MIX)
    return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)


def _device_words(x: jax.Array) -> jax.Array:
    size = x.dtype.itemsize
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    if size >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint16 if size == 2 else jnp.uint8).astype(jnp.uint32)


def _host_leaf(x: np.ndarray) -> int:
    x = np.ascontiguousarray(x).reshape(-1)
    words = x.view({1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)).astype(np.uint32)
    place = np.arange(words.size, dtype=np.uint32)
    mixed = (words ^ (place * np.uint32(_PLACE))) * np.uint32(_MIX)
    return int((mixed ^ (mixed >> np.uint32(15))).sum(dtype=np.uint32))

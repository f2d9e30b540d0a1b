"""The hash that random bits come from: of what a number belongs to, never of where it lies."""

from __future__ import annotations

import numpy as np

from simcse_jax.group import Array


def mix(x: Array) -> Array:
    """Hashed uint32 of the same shape and kind: a finaliser in which every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)

"""The hash that random bits come from: of what a number belongs to, never of where it lies."""

from __future__ import annotations

import numpy as np

from simcse_jax.group import Array


def mix(x: Array) -> Array:
    """Hashed uint32 of the same shape and kind: a finaliser in which every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def token_bits(key: int | np.integer, sentences: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """uint32[n]: random bits of the tokens at these places int[n] of these sentences int[n] of a global batch."""
    key = np.uint32(key)
    sentence = mix(sentences.astype(np.uint32) * np.uint32(0x85EBCA6B) + key)
    return mix(mix(sentence + positions.astype(np.uint32) * np.uint32(0xC2B2AE35)) ^ key)

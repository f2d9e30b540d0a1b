"""Hash integers to random bits, so that bits depend on what they are for and never on where it lies."""

from __future__ import annotations

import numpy as np

from simcse_jax.group import Array


def mix(x: Array) -> Array:
    """Return hashed uint32 of the same shape: a finaliser in which each input bit affects each output bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def token_bits(key: int | np.integer, sentences: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return uint32[n]: random bits for the tokens at positions int[n] of sentences int[n] of the global batch."""
    key = np.uint32(key)
    sentence = mix(sentences.astype(np.uint32) * np.uint32(0x85EBCA6B) + key)
    return mix(mix(sentence + positions.astype(np.uint32) * np.uint32(0xC2B2AE35)) ^ key)

"""Compute dropout from a hash of what is dropped, independent of where it lies in memory.

The bits of one element are a function of (step key, view, site; the sentence's place in the global batch, the token's
place in its sentence; the index within the token). Nothing depends on the row, the group or the device, so every
layout of a batch drops the same elements. No mask is stored: the backward pass computes the hash again.
"""

import functools

import jax
import jax.numpy as jnp

from simcse_jax.hashing import mix

# Fixed site numbers within one layer; the embeddings count as layer 0, the first encoder layer as layer 1.
EMBEDDINGS, ATTENTION_WEIGHTS, ATTENTION_OUTPUT, FFN_OUTPUT = range(4)
SITES = 4


def site_key(key: jax.Array, layer: int | jax.Array, site: int) -> jax.Array:
    """Return uint32[2]: the key of one dropout site.

    key: uint32[2], of one step and view. The layer is hashed in explicitly, because Linen's own `make_rng` gives
    different keys under `nn.scan` and `nn.remat`, which are layout and must not change the numbers.
    """
    number = jnp.asarray(layer, jnp.uint32) * jnp.uint32(SITES) + jnp.uint32(site + 1)
    first = mix(key[0] + mix(number * jnp.uint32(0x9E3779B9)))
    return jnp.stack([first, mix(mix(key[1] ^ first) + number * jnp.uint32(0x85EBCA6B))])


def token_keys(key: jax.Array, sentences: jax.Array, positions: jax.Array) -> jax.Array:
    """Return uint32[R, T]: one key for each token at the site with this uint32[2] key.

    sentences: int32[R, T], each token's sentence in the global batch. positions: int32[R, T], its place therein.
    """
    sentence = mix(sentences.astype(jnp.uint32) * jnp.uint32(0x85EBCA6B) + key[0])
    return mix(sentence + positions.astype(jnp.uint32) * jnp.uint32(0xC2B2AE35) + key[1])


def keep(keys: jax.Array, index: jax.Array, rate: float) -> jax.Array:
    """Return bool, False for a share `rate`; keys and index, uint32 of equal rank, are broadcast."""
    bits = mix(mix(keys + index * jnp.uint32(0x9E3779B9)) ^ keys)
    return bits >= jnp.uint32(round(rate * 2**32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def dropout(x: jax.Array, keys: jax.Array, index: jax.Array, rate: float) -> jax.Array:
    """Return x with a share `rate` of its elements zeroed and the rest divided by 1 - rate; shape and dtype of x.

    keys (uint32, from `token_keys`) and index (uint32, place within the token) have the rank of x and broadcast to it.
    The share is exact to 2**-32. Only keys and index are saved for the backward pass.
    """
    # Scaled in at least float32: 1 / (1 - rate) rounded to bfloat16 would shrink every activation (0.16 % at 0.1).
    scaled = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) * (1 / (1 - rate))).astype(x.dtype)
    return jnp.where(keep(keys, index, rate), scaled, jnp.zeros((), x.dtype))


def _forward(x: jax.Array, keys: jax.Array, index: jax.Array, rate: float) -> tuple[jax.Array, tuple]:
    return dropout(x, keys, index, rate), (keys, index)


def _backward(rate: float, residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    keys, index = residuals
    return dropout(gradient, keys, index, rate), None, None


dropout.defvjp(_forward, _backward)

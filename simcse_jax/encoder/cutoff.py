"""Cutoff: parts of the input embeddings zeroed in training (Shen et al. 2020, section 3.1; ConSERT, section 3.2).

As in ConSERT, the others go on to see where cut tokens were; the code of Shen et al. masks them in attention as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.layer import Dropout, PackedRows

# Cutoff has keys of its own: of a layer that no model has.
LAYER = 1 << 20


def cut(x: jax.Array, kind: str, rate: float, noise: Dropout, rows: PackedRows) -> jax.Array:
    """x [B, T, D], the input embeddings, with a share `rate` of them zeroed; nothing is scaled to make up for it.

    kind: "token" (each token by chance), "feature" (each feature by chance, the same of all tokens of a sentence) or
    "span" (one stretch of each sentence of n tokens, of rate * n, rounded up or down by chance). noise: has the keys of
    the views. What is cut depends on these, and on places in the global batch, never on the layout.
    """
    if kind == "token":
        kept = drop.keep(noise.token_keys(LAYER, 0), jnp.uint32(0)[None, None], rate)[..., None]
    elif kind == "feature":
        feature = jnp.arange(x.shape[-1], dtype=jnp.uint32)[None, None]
        kept = drop.keep(noise.sentence_keys(LAYER, 0)[..., None], feature, rate)
    else:
        kept = ~_in_span(rate, noise, rows)[..., None]
    return jnp.where(kept, x, jnp.zeros((), x.dtype))


def _in_span(rate: float, noise: Dropout, rows: PackedRows) -> jax.Array:
    """bool[B, T]: whether a token is in its sentence's stretch."""
    together = rows.segments[:, :, None] == rows.segments[:, None, :]
    length = together.sum(-1, dtype=jnp.int32)  # of the token's sentence
    chance, place = (
        (noise.sentence_keys(LAYER, site) >> 8).astype(jnp.float32) / 2**24
        for site in (1, 2)  # as float32 holds it
    )
    size = jnp.floor(rate * length + chance).astype(jnp.int32)
    first = jnp.minimum(jnp.floor(place * (length - size + 1)).astype(jnp.int32), length - size)
    return (rows.positions >= first) & (rows.positions < first + size)

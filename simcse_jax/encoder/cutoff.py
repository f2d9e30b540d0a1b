"""Zero parts of the input embeddings in training: cutoff (Shen et al. 2020, section 3.1; ConSERT, section 3.2).

As in ConSERT, attention still sees the positions of cut tokens; the code of Shen et al. masks them there as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.layer import Dropout, PackedRows

# Cutoff has its own keys: those of a layer number that no model has.
LAYER = 1 << 20


def cut(x: jax.Array, kind: str, rate: float, dropout: Dropout, rows: PackedRows) -> jax.Array:
    """Return the input embeddings x [B, T, D] with a share `rate` of them zeroed; the rest is not rescaled.

    kind: "token" (each token at random), "feature" (each feature at random, the same for all tokens of a sentence) or
    "span" (one span of rate * n tokens in each sentence of n tokens, rounded up or down at random). dropout: has the
    keys of the views. What is cut depends on these and on places in the global batch, never on the layout.
    """
    if kind == "token":
        kept = drop.keep(dropout.token_keys(LAYER, 0), jnp.uint32(0)[None, None], rate)[..., None]
    elif kind == "feature":
        feature = jnp.arange(x.shape[-1], dtype=jnp.uint32)[None, None]
        kept = drop.keep(dropout.sentence_keys(LAYER, 0)[..., None], feature, rate)
    else:
        kept = ~_in_span(rate, dropout, rows)[..., None]
    return jnp.where(kept, x, jnp.zeros((), x.dtype))


def _in_span(rate: float, dropout: Dropout, rows: PackedRows) -> jax.Array:
    """Return bool[B, T]: whether a token is in its sentence's span."""
    same = rows.segments[:, :, None] == rows.segments[:, None, :]
    length = same.sum(-1, dtype=jnp.int32)  # of the token's sentence
    chance, place = (
        (dropout.sentence_keys(LAYER, site) >> 8).astype(jnp.float32) / 2**24
        for site in (1, 2)  # as float32 holds it
    )
    size = jnp.floor(rate * length + chance).astype(jnp.int32)
    first = jnp.minimum(jnp.floor(place * (length - size + 1)).astype(jnp.int32), length - size)
    return (rows.positions >= first) & (rows.positions < first + size)

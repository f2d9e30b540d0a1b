"""Pool the hidden states of a sentence to one embedding.

A pooler is named by text: one of `POOLERS`; some of them joined by "+", whose vectors are concatenated; and each mean
may be that of all hidden states together, weighted: "avg@0.25,0.25,0.5", the embedding layer's weight first.

"First" is the output of layer 1. Papers disagree on what "first-last" means, so the other meaning, the embedding
layer, has its own name: `avg_embedding_last`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Hidden states whose per-sentence means are averaged; 0 = the embedding layer, -1 = the last layer.
AVERAGED_LAYERS: dict[str, tuple[int, ...]] = {
    "avg": (-1,),
    "avg_top2": (-2, -1),
    "avg_first_last": (1, -1),
    "avg_embedding_last": (0, -1),
}
# Of the last layer, by the names of sentence-transformers: the largest entry of each feature; the sum divided by the
# root of the number of tokens; the mean with the weights 1, 2, 3 ... of a sentence's tokens; the last token.
POOLERS: tuple[str, ...] = (
    "cls",
    "cls_before_pooler",
    *AVERAGED_LAYERS,
    "max",
    "mean_sqrt_len",
    "weighted_mean",
    "last_token",
)
_WEIGHED = ("avg", "mean_sqrt_len")
_TOGETHER = 16  # sentences whose tokens are held at once where each sentence's are looked at apart


class Part(NamedTuple):
    """Hold one of the poolers whose vectors are concatenated."""

    name: str  # one of POOLERS
    weights: tuple[float, ...] = ()  # of all hidden states; (): the last layer, or AVERAGED_LAYERS

    @property
    def reads_layers(self) -> bool:
        """Return whether it needs the means of other layers than the last."""
        return bool(self.weights) or len(AVERAGED_LAYERS.get(self.name, ())) > 1

    @property
    def reads_first_tokens(self) -> bool:
        """Return whether it needs nothing but each sentence's first token."""
        return self.name in ("cls", "cls_before_pooler")


@functools.lru_cache
def parts_of(pooler: str) -> tuple[Part, ...]:
    """Return what a pooler concatenates; ValueError for one that is unknown or malformed."""
    parts = []
    for text in re.split(r"\+(?=[a-z])", pooler):  # not in 1e+20
        name, weighed, weights = text.partition("@")
        if name not in POOLERS or (weighed and name not in _WEIGHED):
            raise ValueError(f"unknown pooler {text!r}; known: {known()}")
        part = Part(name, tuple(map(float, weights.split(","))) if weighed else ())
        total = sum(part.weights)
        if weighed and (total == 0 or not math.isfinite(total)):
            raise ValueError(f"the pooler {text!r} has weights of sum {total:g}; it must be finite and not 0")
        parts.append(part)
    if len(parts) > 1 and any(part.name == "cls" for part in parts):
        raise ValueError(f"the pooler {pooler!r} joins cls, which stands alone; known: {known()}")
    return tuple(parts)


def is_pooler(text: str) -> bool:
    """Return whether this names a pooler."""
    try:
        return bool(parts_of(text))
    except ValueError:
        return False


def known() -> str:
    """Return the names of the poolers, for messages."""
    return ", ".join(POOLERS)


def width_of(pooler: str, hidden_size: int) -> int:
    """Return the number of features of a pooler's vectors."""
    return len(parts_of(pooler)) * hidden_size


def after_layers(layers: Sequence[int], total: int) -> str:
    """Return the pooler that concatenates the means after each of these layers, counted from 1, of so many in all."""
    return "+".join("avg@" + ",".join("1" if n == layer else "0" for n in range(total + 1)) for layer in layers)


def mean(hidden: jax.Array, first_tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return float32[N, D] (or wider): the mean over all tokens of each sentence, special tokens included.

    A sentence's tokens are contiguous, so a 0/1 matrix [N, R * T] sums them in one product, which is faster than a
    scatter. An unused slot (length 0) gives zeros.
    """
    place = jnp.arange(hidden.shape[0] * hidden.shape[1])[None]
    member = (place >= first_tokens[:, None]) & (place < (first_tokens + lengths)[:, None])
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    total = jnp.einsum(
        "np,pd->nd",
        member.astype(dtype),
        hidden.reshape(-1, hidden.shape[-1]).astype(dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    return total / jnp.maximum(lengths, 1)[:, None].astype(dtype)


def weighted_mean(hidden: jax.Array, first_tokens: jax.Array, lengths: jax.Array, positions: jax.Array) -> jax.Array:
    """Return float32[N, D] (or wider): the mean with the weight p + 1 of a token at position p of its sentence.

    positions: int32[R, T].
    """
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    weights = (positions + 1).astype(dtype)
    total = mean(hidden.astype(dtype) * weights[..., None], first_tokens, lengths)
    return total / jnp.maximum(mean(weights[..., None], first_tokens, lengths), 1)


def mean_sqrt_len(mean: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return the sum over the tokens divided by the root of their number; mean: [..., N, D], lengths: [..., N]."""
    return mean * jnp.sqrt(lengths.astype(mean.dtype))[..., None]


def largest(hidden: jax.Array, first_tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return [N, D]: the largest entry of each feature among the tokens of each sentence; zeros for an unused slot."""
    tokens = hidden.shape[1]
    place = jnp.arange(tokens)

    def of_one(where: tuple[jax.Array, jax.Array]) -> jax.Array:
        first, length = where
        row = hidden[first // tokens]  # all of a sentence's tokens are in one row
        member = (place >= first % tokens) & (place < first % tokens + length)
        return jnp.where(member[:, None], row, jnp.where(length > 0, -jnp.inf, 0.0).astype(row.dtype)).max(0)

    return jax.lax.map(of_one, (first_tokens, lengths), batch_size=_TOGETHER)


def last_token(hidden: jax.Array, first_tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return [N, D]: the last token of each sentence."""
    at = first_tokens + jnp.maximum(lengths - 1, 0)
    return hidden.reshape(-1, hidden.shape[-1]).at[at].get(mode="promise_in_bounds")

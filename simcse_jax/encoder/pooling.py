"""Pool the hidden states of a sentence to one embedding.

"First" is the output of layer 1. Papers disagree on what "first-last" means, so the other meaning, the embedding
layer, has its own name: `avg_embedding_last`.
"""

import jax
import jax.numpy as jnp

# Hidden states whose per-sentence means are averaged; 0 = the embedding layer, -1 = the last layer.
AVERAGED_LAYERS: dict[str, tuple[int, ...]] = {
    "avg": (-1,),
    "avg_top2": (-2, -1),
    "avg_first_last": (1, -1),
    "avg_embedding_last": (0, -1),
}
POOLERS: tuple[str, ...] = ("cls", "cls_before_pooler", *AVERAGED_LAYERS)


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

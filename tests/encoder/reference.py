"""A small encoder in training mode, written from the definition: one sentence a row, every dropout mask spelled out.

Nothing of `simcse_jax` is called. Masks are NumPy, the rest is jax.numpy in float64, differentiated by JAX.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EMBEDDINGS, WEIGHTS, ATTENTION, FFN = range(4)  # the dropout sites of a layer; the embeddings are in layer 0


class Sizes(NamedTuple):
    layers: int
    heads: int
    max_positions: int
    epsilon: float
    rate: float


def mix(x: Any) -> np.ndarray:
    x = np.asarray(x).astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def times(x: Any, factor: int) -> np.ndarray:
    return np.asarray(x).astype(np.uint32) * np.uint32(factor)


def kept(
    key: np.ndarray, layer: int, site: int, sentences: np.ndarray, positions: np.ndarray, index: np.ndarray, rate: float
) -> np.ndarray:
    """Return bool[N, T, *index.shape]: what the tokens at positions [T] of sentences [N] keep at a site.

    key: uint32[2], of one step and view. index: the place within a token.
    """
    number = layer * 4 + site + 1
    first = mix(key[:1] + mix(times([number], 0x9E3779B9)))
    second = mix(mix(key[1:] ^ first) + times([number], 0x85EBCA6B))
    sentence = mix(times(sentences, 0x85EBCA6B) + first)
    token = mix(sentence[:, None] + times(positions, 0xC2B2AE35)[None] + second)
    token = token.reshape(*token.shape, *[1] * index.ndim)
    bits = mix(mix(token + times(index, 0x9E3779B9)) ^ token)
    return bits >= np.uint32(round(rate * 2**32))


def masks(
    sizes: Sizes, keys: np.ndarray, sentences: np.ndarray, length: int, width: int
) -> dict[tuple[int, int], np.ndarray]:
    """Return what each (layer, site) keeps, for all views: bool[V * N, T, D], of weights bool[V * N, H, T, T]."""
    places, features = np.arange(length), np.arange(width)
    pairs = np.arange(sizes.heads)[:, None] * sizes.max_positions + places  # (head, position of the key)
    wanted = [(0, EMBEDDINGS)]
    wanted += [(layer, site) for layer in range(1, sizes.layers + 1) for site in (WEIGHTS, ATTENTION, FFN)]
    found = {}
    for layer, site in wanted:
        index = pairs if site == WEIGHTS else features
        of_views = [kept(key, layer, site, sentences, places, index, sizes.rate) for key in keys]
        found[layer, site] = np.concatenate(of_views)
        if site == WEIGHTS:
            found[layer, site] = found[layer, site].transpose(0, 2, 1, 3)
    return found


def norm(x: jax.Array, params: Mapping[str, Any], epsilon: float) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return jnp.einsum("...d,d->...d", unit, params["scale"]) + jnp.broadcast_to(params["bias"], x.shape)


def gelu(x: jax.Array) -> jax.Array:
    return x * 0.5 * (1 + jax.scipy.special.erf(x / np.sqrt(2.0)))


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    out = jnp.einsum("...i,io->...o", x, kernel)
    return out + jnp.broadcast_to(bias, out.shape)


def hidden_states(
    params: Mapping[str, Any],
    sizes: Sizes,
    ids: np.ndarray,
    lengths: np.ndarray,
    keep: Mapping[tuple[int, int], np.ndarray],
) -> list[jax.Array]:
    """Return [N, T, D] of the embedding layer and of each layer; ids int[N, T], lengths int[N], padded at the end."""

    def drop(x: jax.Array, layer: int, site: int) -> jax.Array:
        return jnp.where(keep[layer, site], x / (1 - sizes.rate), 0.0) if (layer, site) in keep else x

    tables, length = params["embeddings"], ids.shape[1]
    x = tables["word"][ids] + tables["position"][None, :length] + tables["token_type"][None, :1]
    states = [drop(norm(x, tables["norm"], sizes.epsilon), 0, EMBEDDINGS)]
    real = np.arange(length)[None] < lengths[:, None]
    for number in range(1, sizes.layers + 1):
        layer = jax.tree.map(lambda stacked: stacked[number - 1], params["layers"])  # noqa: B023
        x, attention, ffn = states[-1], layer["attention"], layer["ffn"]
        of_heads = []
        for head in range(sizes.heads):
            q, k, v = (
                dense(x, attention["qkv"]["kernel"][:, part, head], attention["qkv"]["bias"][part, head])
                for part in range(3)
            )
            scores = jnp.einsum("ntd,nsd->nts", q, k) / np.sqrt(q.shape[-1])
            weights = jax.nn.softmax(jnp.where(real[:, None, :], scores, -jnp.inf), axis=-1)
            if (number, WEIGHTS) in keep:
                weights = jnp.where(keep[number, WEIGHTS][:, head], weights / (1 - sizes.rate), 0.0)
            of_heads.append(jnp.einsum("nts,nsd->ntd", weights, v))
        out = dense(
            jnp.concatenate(of_heads, axis=-1),
            attention["out"]["kernel"].reshape(-1, x.shape[-1]),
            attention["out"]["bias"],
        )
        x = norm(x + drop(out, number, ATTENTION), attention["norm"], sizes.epsilon)
        out = dense(gelu(dense(x, **ffn["up"])), **ffn["down"])
        states.append(norm(x + drop(out, number, FFN), ffn["norm"], sizes.epsilon))
    return states


def mean(states: jax.Array, lengths: np.ndarray) -> jax.Array:
    """Return [N, D]: the mean over each sentence's tokens."""
    return jnp.stack([state[:length].mean(0) for state, length in zip(states, lengths, strict=True)])

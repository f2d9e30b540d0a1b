"""Attention against its definition: values and gradients, with dropout, packed rows and padding; what it keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.attention import AttentionMask, attend

B, T, H, D = 3, 16, 4, 8
RATE = 0.2
TOLERANCE = {jnp.float32: 2e-6, jnp.float64: 1e-14, jnp.bfloat16: 2e-2}  # of the largest entry

Arrays = tuple[Any, ...]


def made(dtype: Any, size: float = 1.0) -> tuple[Arrays, AttentionMask]:
    """(q, k, v and a gradient [B, T, H, D]), and rows of several sentences, and padding."""
    rng = np.random.default_rng(0)
    arrays = tuple(jnp.asarray(size * rng.normal(size=(B, T, H, D)), dtype) for _ in range(4))
    segments = np.zeros((B, T), np.int32)
    segments[0, :5], segments[0, 5:16], segments[1, :3], segments[2, :16] = 1, 2, 1, 1
    keys = rng.integers(0, 2**32, (B, 1, T, 1), np.uint32)
    pairs = np.arange(B * H * T, dtype=np.uint32).reshape(B, H, 1, T)
    return arrays, AttentionMask(*map(jnp.asarray, (segments, keys, pairs)))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, rate: float) -> jax.Array:
    """Compute attention by its definition, which JAX differentiates."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
    same = mask.segments[:, None, :, None] == mask.segments[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(same, scores, -jnp.inf), axis=-1)
    weights = drop.dropout(weights, mask.keys, mask.pairs, rate) if rate else weights
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def result(function: Any, arrays: Arrays, mask: AttentionMask, rate: float) -> list[np.ndarray]:
    """Values, and gradients of q, k and v."""

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array) -> Any:
        out, backward = jax.vjp(lambda q, k, v: function(q, k, v, mask, rate), q, k, v)
        return out, *backward(gradient)

    return [np.asarray(x, np.float64) for x in run(*arrays)]


@pytest.mark.parametrize("rate", [0.0, RATE])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_are_those_of_the_definition(dtype: Any, rate: float) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        arrays, mask = made(dtype)
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        expected = result(plain, tuple(x.astype(wide) for x in arrays), mask, rate)
        found = result(attend, arrays, mask if rate else AttentionMask(mask.segments, None, None), rate)
    for name, ours, theirs in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= TOLERANCE[dtype] * np.abs(theirs).max(), name


def test_weights_that_are_made_again_in_bfloat16_are_the_same() -> None:
    """At scores of 30 and more, a score rounded differently in one pass would change a weight by a tenth."""
    arrays, mask = made(jnp.bfloat16, size=4.0)
    ones = (*arrays[:2], jnp.ones_like(arrays[2]), jnp.ones_like(arrays[3]))
    _, _, _, of_v = result(attend, ones, AttentionMask(mask.segments, None, None), 0.0)
    # Each query hands out a weight of 1 in all, so what the values of a head get adds up to the number of queries.
    np.testing.assert_allclose(of_v.sum(axis=1), T, rtol=5e-3)


def test_no_weights_are_kept() -> None:
    arrays, mask = made(jnp.float32)
    _, backward = jax.vjp(lambda q, k, v: attend(q, k, v, mask, RATE), *arrays[:3])
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept < 3 * B * T * H * D + B * H * T + sum(np.size(x) for x in mask if x is not None) + B * H * T * T // 2

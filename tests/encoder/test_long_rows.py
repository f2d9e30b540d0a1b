"""Rows that are attended block by block, and local windows: as whole rows, with their gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder import attention
from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder.attention import plain_attention
from simcse_jax.encoder.attention_block import AttentionMask

B, T, H, D = 2, 45, 3, 8  # no multiple of a block
RATE = 0.2
CASES: dict[str, tuple[int | None, tuple[int, ...], str]] = {  # window, shape of the bias, products
    "plain": (None, (), "float32"),
    "a window within reach": (3, (), "float32"),
    "a window beyond reach": (9, (), "float32"),
    "bias": (None, (H, T, T), "float32"),
    "bias of each row": (None, (B, H, T, T), "float32"),
    "window and bias, rounded products": (3, (H, T, T), "bfloat16"),
    "window and bias of each row, rounded products": (3, (B, H, T, T), "bfloat16"),
}


def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LONGEST_WHOLE_ROW", 16), ("QUERIES", 8), ("REACH", 4)):
        monkeypatch.setattr(attention, name, value)


def made(near: int | None, of_bias: tuple[int, ...]) -> tuple[jax.Array, jax.Array, AttentionMask]:
    """Return qkv and a gradient, and rows of several sentences, one without padding; of_bias: its shape, () = none."""
    rng = np.random.default_rng(0)
    qkv, gradient = (jnp.asarray(rng.normal(size=(B, T, n * H * D)), jnp.float32) for n in (3, 1))
    segments = np.ones((B, T), np.int32)
    segments[0, 20:], segments[1, 5:], segments[1, 40:] = 2, 2, 0
    keys = rng.integers(0, 2**32, (B, 1, T, 1), np.uint32)
    pairs = np.arange(B * H * T, dtype=np.uint32).reshape(B, H, 1, T)
    bias = jnp.asarray(rng.normal(size=of_bias), jnp.float32) if of_bias else None
    reach = None if near is None else jnp.int32(near)
    arrays = [jnp.asarray(array) for array in (segments, keys, pairs)]
    return qkv, gradient, AttentionMask(arrays[0], arrays[1], arrays[2], bias, reach)


def result(function: Any, qkv: jax.Array, gradient: jax.Array, mask: AttentionMask) -> Any:
    """Return the context and the gradients of qkv and of the bias."""

    def of(qkv: jax.Array, bias: jax.Array | None) -> jax.Array:
        return function(qkv, H, mask._replace(bias=bias), RATE)

    out, backward = jax.vjp(of, qkv, mask.bias)
    return jax.tree.map(np.asarray, (out, *backward(gradient)))


def definition(qkv: jax.Array, heads: int, mask: AttentionMask, rate: float) -> jax.Array:
    q, k, v = jnp.moveaxis(qkv.reshape(B, T, 3, heads, D), 2, 0)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
    scores = scores if mask.bias is None else scores + jnp.broadcast_to(mask.bias, scores.shape)
    attended = mask.segments[:, None, :, None] == mask.segments[:, None, None, :]
    if mask.near is not None:
        attended &= (jnp.abs(jnp.arange(T)[:, None] - jnp.arange(T)[None]) <= mask.near)[None, None]
    weights = jax.nn.softmax(jnp.where(attended, scores, -jnp.inf), axis=-1)
    assert mask.keys is not None
    assert mask.pairs is not None
    weights = drop.dropout(weights, mask.keys, mask.pairs, rate)
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(B, T, -1)


@pytest.mark.parametrize("in_blocks", [False, True], ids=["whole", "in blocks"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_definition(
    name: str, in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, of_bias, products = CASES[name]
    if in_blocks:
        in_small_blocks(monkeypatch)
    given = made(near, of_bias)
    expected = result(definition, *given)
    found = result(functools.partial(plain_attention, products=products), *given)
    tolerance = 2e-6 if products == "float32" else 2e-2
    for part, ours, theirs in zip(("context", "qkv", "bias"), found, expected, strict=True):
        if theirs is not None:
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max(), part


def test_blocks_round_products_as_whole_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    given, rounded = made(3, (H, T, T)), functools.partial(plain_attention, products="bfloat16")
    whole = result(rounded, *given)
    in_small_blocks(monkeypatch)
    for ours, theirs in zip(result(rounded, *given), whole, strict=True):
        assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_memory_grows_with_the_row_and_not_with_its_square() -> None:
    """Of a step through attention, by the compiler: twice the row, about twice the memory."""

    def taken(tokens: int) -> int:
        def loss(qkv: jax.Array) -> jax.Array:
            mask = AttentionMask(jnp.ones((1, tokens), jnp.int32), None, None)
            return plain_attention(qkv, 2, mask, 0.0).sum()

        shape = jax.ShapeDtypeStruct((1, tokens, 3 * 2 * 8), jnp.float32)
        memory = jax.jit(jax.grad(loss)).lower(shape).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert taken(4096) < 2.5 * taken(2048)

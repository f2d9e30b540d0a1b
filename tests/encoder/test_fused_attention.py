"""The kernels of fused attention, run on the CPU, against the plain attention: values and all gradients."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.attention import Attend, AttentionMask, choose_attention, plain_attention
from simcse_jax.encoder.fused_attention import fused_attention, needed_blocks
from simcse_jax.system.errors import UserError

INTERPRETED = functools.partial(fused_attention, interpret=True)
PARTS = ("context", "dq", "dk", "dv")


class Shape(NamedTuple):
    """What is compiled: B rows of T tokens, H heads of D features; the tolerance, of the largest entry."""

    rows: int
    tokens: int
    heads: int
    size: int
    dtype: str
    rate: float
    tolerance: float
    products: str = "float32"


# Heads of 48 in float32 are padded to 64 columns, and their blocks have 32 tokens.
SHAPES = {
    "one block": Shape(2, 24, 2, 8, "float32", 0.2, 5e-6),
    "three blocks, the last cut": Shape(2, 80, 2, 48, "float32", 0.2, 5e-6),
    "two blocks in bfloat16, no dropout": Shape(1, 72, 1, 32, "bfloat16", 0.0, 1.5e-2),
    "two blocks, factors in bfloat16": Shape(1, 40, 1, 48, "float32", 0.2, 1.5e-2, "bfloat16"),
    "two blocks in float64": Shape(1, 40, 2, 24, "float64", 0.3, 1e-12),
}


@functools.cache
def compiled(attend: Attend, shape: Shape) -> Any:
    """(qkv, the context's gradient, mask) -> (context, the gradient of qkv)."""

    @jax.jit
    def run(qkv: jax.Array, gradient: jax.Array, mask: AttentionMask) -> tuple[jax.Array, jax.Array]:
        context, backward = jax.vjp(lambda qkv: attend(qkv, shape.heads, mask, shape.rate, shape.products), qkv)
        return context, backward(gradient)[0]

    return run


def results(attend: Attend, shape: Shape, arrays: tuple[np.ndarray, ...], mask: AttentionMask) -> list[np.ndarray]:
    """Return context [B, T, H * D] and the gradients of q, k and v, each [B, T, H * D]."""
    qkv, gradient = (jnp.asarray(x, shape.dtype) for x in arrays)
    context, of_qkv = compiled(attend, shape)(qkv, gradient, mask)
    return [np.asarray(context, np.float64), *np.split(np.asarray(of_qkv, np.float64), 3, axis=-1)]


def draw_case(shape: Shape, lengths: list[int], seed: int) -> tuple[tuple[np.ndarray, ...], AttentionMask]:
    """Random arrays, and rows of sentences of these lengths, repeated until full; each row starts with another."""
    rng = np.random.default_rng(seed)
    rows, tokens, heads, size = shape[:4]
    arrays = rng.normal(size=(rows, tokens, 3 * heads * size)), rng.normal(size=(rows, tokens, heads * size))
    segments = np.zeros((rows, tokens), np.int32)
    for row in range(rows):
        used = number = 0
        while used + (length := lengths[(row + number) % len(lengths)]) <= tokens:
            segments[row, used : used + length] = number + 1
            used, number = used + length, number + 1
    if not shape.rate:
        return arrays, AttentionMask(jnp.asarray(segments), None, None)
    keys = rng.integers(0, 2**32, (rows, 1, tokens, 1), np.uint32)
    positions = rng.integers(0, 512, (rows, 1, 1, tokens)).astype(np.uint32)
    pairs = np.arange(heads, dtype=np.uint32)[None, :, None, None] * np.uint32(512) + positions
    return arrays, AttentionMask(*map(jnp.asarray, (segments, keys, pairs)))


@pytest.mark.medium
@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_values_and_gradients_are_those_of_plain_attention(name: str, lengths: list[int], seed: int) -> None:
    shape = SHAPES[name]
    with jax.enable_x64(shape.dtype == "float64"):
        arrays, mask = draw_case(shape, lengths, seed)
        expected = results(plain_attention, shape, arrays, mask)
        found = results(INTERPRETED, shape, arrays, mask)
    # Sentences of one token have queries and keys without a gradient: of rounding, v's tells the size.
    sizes = np.abs(expected[0]).max(), *[max(np.abs(x).max() for x in expected[1:])] * 3
    for part, ours, theirs, size in zip(PARTS, found, expected, sizes, strict=True):
        assert np.abs(ours - theirs).max() <= shape.tolerance * size, part


@pytest.mark.medium
def test_blocks_of_other_sentences_are_not_read() -> None:
    """One not-a-number among a block's keys or values would reach every token that reads the block."""
    shape = SHAPES["three blocks, the last cut"]
    arrays, mask = draw_case(shape, [32], 0)
    arrays[0][:, 32:64] = np.nan
    for part, found in zip(PARTS, results(INTERPRETED, shape, arrays, mask), strict=True):
        assert np.isfinite(found[:, :32]).all(), part
        assert np.isfinite(found[:, 64:]).all(), part
        assert np.isnan(found[:, 32:64]).all(), part


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_needed_blocks_hold_all_of_a_blocks_sentences_and_no_others(lengths: list[int]) -> None:
    tokens, block = 100, 16
    numbers = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:tokens]
    segments = np.pad(numbers, (0, tokens - len(numbers)))
    blocks = [set(segments[at : at + block]) for at in range(0, tokens, block)]
    sharing = [[n for n, other in enumerate(blocks) if own & other] for own in blocks]
    spans = needed_blocks(jnp.asarray(segments[None]), block)[0]
    assert [list(range(*map(int, span))) for span in spans] == sharing


def of_heads(size: int) -> Architecture:
    return Architecture("bert", 100, 2 * size, 2, 2, 64)


def test_kernels_run_where_they_are_asked_for() -> None:
    assert choose_attention("fused", of_heads(128), "float32", "gpu") is fused_attention
    assert choose_attention("fused", of_heads(64), "bfloat16", "cuda") is fused_attention
    for asked in ("auto", "plain"):
        assert choose_attention(asked, of_heads(64), "bfloat16", "gpu") is plain_attention


@pytest.mark.parametrize(
    ("size", "dtype", "platform", "told"),
    [(64, "float32", "cpu", "CPUs"), (64, "float64", "gpu", "float64"), (256, "float32", "gpu", "128 features")],
)
def test_fused_is_refused_where_kernels_do_not_run(size: int, dtype: str, platform: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        choose_attention("fused", of_heads(size), dtype, platform)


@pytest.mark.parametrize(
    "change",
    [{"relative_buckets": 32}, {"disentangled_buckets": 256}, {"local_layers": (2,), "local_window": 64}],
    ids=str,
)
def test_fused_is_refused_for_what_its_kernels_do_not_compute(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="relative bias"):
        choose_attention("fused", dataclasses.replace(of_heads(64), **change), "float32", "gpu")

"""Compute attention within packed sentences on a GPU with one kernel a pass, and the numbers of `attention`.

Queries, keys and values are read where their projection wrote them, and their gradients are written where it reads
them. Between the passes only the context and one number for each token and head are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from simcse_jax.encoder import attention_kernels as kernels
from simcse_jax.encoder.attention import AttentionMask
from simcse_jax.encoder.attention_kernels import Blocks, Row

# Blocks that leave no register spilled and take less than 100 KiB of shared memory, as GPUs of all kinds have them
# (XLA's compiler for H100; not timed): 64 tokens, or 32 where a token's head takes more than 128 bytes.
LONGEST_BLOCK, LONG_FOR_BYTES = 64, 128
SMALLEST = 16  # rows and columns of the smallest product of a GPU's matrix units
ROW_AXES = Row("BTqHD", "BTkHD", "BTvHD", "BT", "Bn2", "BT", "BHT")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 3, 4, 5))
def fused_attention(
    qkv: jax.Array, heads: int, mask: AttentionMask, rate: float, products: str = "float32", interpret: bool = False
) -> jax.Array:
    """Return what `attention.plain_attention` does, [B, T, H * D], within rounding.

    interpret: run on any device, slowly, for tests.
    """
    return _forward(qkv, heads, mask, rate, products, interpret)[0]


def _forward(
    qkv: jax.Array, heads: int, mask: AttentionMask, rate: float, products: str, interpret: bool
) -> tuple[jax.Array, Any]:
    blocks, row = _in_blocks(qkv, heads, mask, products)
    (size, tokens), wide = row.segments.shape, jnp.promote_types(qkv.dtype, jnp.float32)
    outputs = [
        ("BtHD", _like(qkv, (size, tokens, heads, blocks.width), qkv.dtype)),
        ("BHt", _like(qkv, (size, heads, tokens), wide)),
    ]
    context, log_totals = _run(kernels.forward, blocks, rate, row, [], outputs, interpret)
    return context.reshape(size, tokens, -1), (qkv, mask, context, log_totals)


def _backward(
    heads: int, rate: float, products: str, interpret: bool, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, None]:
    qkv, mask, context, log_totals = kept
    blocks, row = _in_blocks(qkv, heads, mask, products)
    of_context = gradient.reshape(context.shape)
    kernel, given = kernels.backward_of_one_block, [("BHT", log_totals), ("BTHD", of_context)]
    if blocks.count > 1:
        wide = log_totals.dtype
        common = (context.astype(wide) * of_context.astype(wide)).sum(-1).swapaxes(1, 2)
        kernel, given = kernels.backward, [given[0], ("BHT", common), given[1]]
    outputs = [("Bt3HD", _like(qkv, row.q.shape, qkv.dtype))]
    [of_qkv] = _run(kernel, blocks, rate, row, given, outputs, interpret)
    return of_qkv.reshape(qkv.shape), None


fused_attention.defvjp(_forward, _backward)


def needed_blocks(segments: jax.Array, block: int) -> jax.Array:
    """Return int32[B, n, 2]: the first block that each block attends to, and the one after the last.

    segments: int32[B, T]. Blocks whose ranges of numbers lie apart share no sentence; as a row's numbers rise and its
    padding is last, the others do.
    """
    rows, tokens = segments.shape
    rising = jnp.where(segments == 0, tokens + 1, segments)
    rising = jnp.pad(rising, ((0, 0), (0, -tokens % block)), mode="edge").reshape(rows, -1, block)
    least, most = rising.min(-1), rising.max(-1)
    meet = (least[:, :, None] <= most[:, None, :]) & (least[:, None, :] <= most[:, :, None])
    first, after = meet.argmax(-1), meet.shape[-1] - meet[:, :, ::-1].argmax(-1)
    return jnp.stack([first, after], -1).astype(jnp.int32)


def _in_blocks(qkv: jax.Array, heads: int, mask: AttentionMask, products: str) -> tuple[Blocks, Row]:
    rows, tokens = mask.segments.shape
    width = qkv.shape[-1] // 3 // heads
    columns = max(pl.next_power_of_2(width), SMALLEST)
    longest = LONGEST_BLOCK if columns * qkv.dtype.itemsize <= LONG_FOR_BYTES else LONGEST_BLOCK // 2
    block = min(max(pl.next_power_of_2(tokens), SMALLEST), longest)
    factors = jnp.bfloat16 if products == "bfloat16" else qkv.dtype
    blocks = Blocks(tokens, width, block, columns, factors)
    split = qkv.reshape(rows, tokens, 3, heads, width)
    row = Row(split, split, split, mask.segments, None)
    if blocks.count > 1:
        row = row._replace(span=needed_blocks(mask.segments, block))
    if mask.keys is not None and mask.pairs is not None:
        pairs = jnp.broadcast_to(mask.pairs, (rows, heads, 1, tokens))
        row = row._replace(keys=mask.keys.reshape(rows, tokens), pairs=pairs.reshape(rows, heads, tokens))
    return blocks, row


def _run(
    kernel: Callable[..., None],
    blocks: Blocks,
    rate: float,
    row: Row,
    given: list[tuple[str, jax.Array]],
    outputs: list[tuple[str, jax.ShapeDtypeStruct]],
    interpret: bool,
) -> list[jax.Array]:
    """Run a kernel for each block, head and row; arrays come with the names of their axes, see `_spec`."""
    rows, heads = len(row.segments), row.q.shape[3]
    of_row = Row(*(x if x is None else _spec(blocks, axes) for axes, x in zip(ROW_AXES, row, strict=True)))
    call = pl.pallas_call(
        functools.partial(kernel, blocks, rate),
        grid=(blocks.count, heads, rows),
        in_specs=[of_row, *(_spec(blocks, axes) for axes, _ in given)],
        out_specs=[_spec(blocks, axes) for axes, _ in outputs],
        out_shape=[shape for _, shape in outputs],
        compiler_params=triton.CompilerParams(
            num_warps=4 if blocks.columns * row.q.dtype.itemsize <= 256 else 8, num_stages=2
        ),
        interpret=interpret,
        name=f"attention_{kernel.__name__}",
    )
    with jax.default_matmul_precision(_precision(blocks.factors, interpret)):
        return call(row, *(x for _, x in given))


def _precision(dtype: Any, interpret: bool) -> str | None:
    """Return the precision of a kernel's products: three of TF32 where float32 is asked for in full.

    Those are exact to 2**-21. Without matrix units, a kernel's products would spill its registers a hundred times over.
    """
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    full = dtype == jnp.float32 and asked in ("highest", "float32") and not interpret
    return "TF32_TF32_F32_X3" if full else asked


def _spec(blocks: Blocks, axes: str) -> pl.BlockSpec:
    """Return what a program sees of an array with these axes.

    B, H, n: its row, its head and its block, without the axis. q, k, v: that part of three, without the axis. T: all
    tokens of the row. t: those of its block. D: the features of the head. 2, 3: all.
    """
    sizes = {"T": blocks.count * blocks.block, "t": blocks.block, "D": blocks.columns, "2": 2, "3": 3}

    def place(block: Any, head: Any, row: Any) -> tuple[Any, ...]:
        at = {"B": row, "H": head, "n": block, "t": block, "q": 0, "k": 1, "v": 2}
        return tuple(at.get(axis, 0) for axis in axes)

    return pl.BlockSpec(tuple(sizes.get(axis) for axis in axes), place)


def _like(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of an output that varies over the devices of a shard_map as x does."""
    varying: Any = jax.typeof(x)
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying.manual_axis_type)

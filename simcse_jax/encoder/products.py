"""Multiply matrices with factors rounded to bfloat16 and results of float32, which CPUs with matrix units do fast.

Each product here is written in one of two forms, (contract b's second last axis) or (contract both last axes), with
batch axes in front: XLA's CPU compiler hands these to its fast library, and no other. Where a backward pass needs a
transposed factor, the transposed copy is really made, or XLA folds it into a product of a slower form.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simcse_jax.encoder.architecture import PRODUCTS
from simcse_jax.system.errors import UserError

HALF = jnp.bfloat16
# Linux's names of the units that multiply bfloat16.
_UNITS = frozenset({"amx_bf16", "avx512_bf16"})


def rounded(x: jax.Array) -> jax.Array:
    """Return x rounded to bfloat16, to nearest and to even; NaN stays NaN. No gradient flows through it."""
    if x.dtype != jnp.float32:
        return x.astype(HALF)
    return lax.platform_dependent(x, cpu=_rounded_by_bits, default=lambda x: x.astype(HALF))


def _rounded_by_bits(x: jax.Array) -> jax.Array:
    """Return what `x.astype(HALF)` does for float32, which XLA's CPU compiler makes a slower loop of."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    nearest = (bits + jnp.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return lax.bitcast_convert_type(jnp.where(x == x, nearest, jnp.uint32(0x7FC0)).astype(jnp.uint16), HALF)


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a [..., M, K] b [..., K, N] as float32[..., M, N]; a, b: bfloat16, with equal leading axes."""
    return _contract(a, b, b.ndim - 2)


def times_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a [..., M, K] times the transpose of b [..., N, K] as float32[..., M, N]; a, b: bfloat16."""
    return _contract(a, b, b.ndim - 1)


def _contract(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    leading = tuple(range(a.ndim - 2))
    # The precision is said, since encoding asks for exact products of float32 by a default.
    return lax.dot_general(
        a,
        b,
        (((a.ndim - 1,), (axis,)), (leading, leading)),
        precision=lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def transposed(x: jax.Array) -> jax.Array:
    """Return a copy of x [..., M, N] as [..., N, M], which XLA does not fold into a product."""
    swapped = jnp.swapaxes(x, -1, -2)
    return lax.optimization_barrier(swapped.reshape(-1)).reshape(swapped.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, by_rows: bool = False) -> jax.Array:
    """Return x [M, K] w [K, N] + bias [N] as float32[M, N], with the factors of all products rounded to bfloat16.

    So are those of the gradients, and the bias's gradient is the sum of rounded ones. by_rows: w is given as its
    transpose, [N, K].
    """
    return _product(x, w, bias, by_rows)[0]


def _product(
    x: jax.Array, w: jax.Array, bias: jax.Array | None, by_rows: bool
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    half = rounded(x), rounded(w)
    out = (times_rows if by_rows else times)(*half)
    if bias is not None:
        out = out + jnp.broadcast_to(bias.astype(out.dtype), out.shape)
    like = (_like(x), _like(w), None if bias is None else _like(bias))
    return out, (*half, *like)


def _product_gradients(by_rows: bool, kept: Any, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    x, w, like_x, like_w, like_bias = kept
    half = rounded(gradient)
    of_x = (times if by_rows else times_rows)(half, w)
    of_w = _first_axes(half, x) if by_rows else _first_axes(x, half)
    of_bias = None if like_bias is None else half.astype(jnp.float32).sum(0).astype(like_bias.dtype)
    return of_x.astype(like_x.dtype), of_w.astype(like_w.dtype), of_bias


product.defvjp(_product, _product_gradients)


def _first_axes(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the transpose of a [M, I] times b [M, J] as float32[I, J]; copies what takes fewer bytes to transpose."""
    (rows, i), j = a.shape, b.shape[1]
    if 2 * rows * i <= 2 * rows * j + 4 * i * j:
        return times(transposed(a), b)
    # The barrier keeps XLA from folding this transpose into the product, which would take a slower form.
    return lax.optimization_barrier(times(transposed(b), a)).T


def _like(x: jax.Array) -> jax.Array:
    """Return an empty array of x's dtype, which a backward pass needs to know."""
    return jnp.zeros(0, x.dtype)


def compiler_options(products: str, platform: str) -> dict[str, int] | None:
    """Return XLA's options for programs with these products on this platform, as `jax.jit` takes them.

    With fast products most of a step is loops over arrays, which registers of 512 bits shorten by a tenth.
    """
    return {"xla_cpu_prefer_vector_width": 512} if products != "float32" and platform == "cpu" else None


def precision(dtype: str, products: str) -> str:
    """Return in words how an encoder computes, given its dtype and what `resolve_products` returned."""
    return dtype if products == "float32" else f"{dtype}, products of {products}"


def resolve_products(asked: str, dtype: str, platform: str, name: str, known: Sequence[str] = PRODUCTS) -> str:
    """Return "float32", "bfloat16" or "int8" for what was asked, one of `known`, on this machine.

    "auto" is "bfloat16" on CPUs with units for it, "float32" elsewhere; told by the processor's flags and not by its
    speed, so that a machine always gives the same. dtype: of the activations. platform: of the devices, "cpu", "gpu" or
    "tpu". name: how the caller says the key or argument, for errors. UserError for another value, with float64, where
    XLA does not implement the products, and for "int8" anywhere but on a CPU.
    """
    if asked not in known:
        raise UserError(f"{name}={asked} is unknown. Known: {', '.join(known)}.")
    if asked == "auto":
        fast = dtype != "float64" and platform == "cpu" and _UNITS & _cpu_flags()
        return "bfloat16" if fast and not _missing() else "float32"
    if asked == "int8" and platform != "cpu":
        raise UserError(f"{name}=int8 is for CPUs, and this device is a {platform.upper()}. Use {name}=float32.")
    if asked != "float32":
        if dtype == "float64":
            raise UserError(f"{name}={asked} would round the factors of float64. Use {name}=float32.")
        if platform == "cpu" and (missing := _missing()):
            raise UserError(f"{name}={asked} fails with this version of XLA: {missing}\nUse {name}=float32.")
    return asked


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Return the processor's features by Linux's names; elsewhere none."""
    if sys.platform != "linux":
        return frozenset()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@functools.cache
def _missing() -> str:
    """Return why XLA cannot run the products on this machine's CPU, "" where it can; found out once a process."""

    def every(x: jax.Array, w: jax.Array, heads: jax.Array) -> tuple[jax.Array | None, ...]:
        weights = rounded(times_rows(heads, heads))
        kept = _product(x, w, w[0], False)[1]
        return *_product_gradients(False, kept, product(x, w)), times(transposed(heads), weights)

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((64, 32), jnp.float32), ((32, 48), jnp.float32))]
    heads = jax.ShapeDtypeStruct((2, 4, 64, 32), HALF)
    cpu = jax.local_devices(backend="cpu")[0]
    try:
        with jax.default_device(cpu):
            run = jax.jit(every).lower(*shapes, heads).compile()
            jax.block_until_ready(run(*(jnp.ones(x.shape, x.dtype) for x in (*shapes, heads))))
    except jax.errors.JaxRuntimeError as error:
        if "UNIMPLEMENTED" not in str(error):
            raise
        return str(error).splitlines()[0]
    return ""

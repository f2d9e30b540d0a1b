"""Multiply matrices with factors rounded to bfloat16 and results of float32, which CPUs with matrix units do fast.

Each product here is written in one of two forms, (contract b's second last axis) or (contract both last axes), with
batch axes in front: XLA's CPU compiler hands these to its fast library, and no other. Where a backward pass needs a
transposed factor, the transposed copy is really made, or XLA folds it into a product of a slower form.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from simcse_jax.encoder.architecture import PRODUCTS
from simcse_jax.system.errors import UserError

HALF = jnp.bfloat16
# Linux's names of the units that multiply bfloat16.
_UNITS = frozenset({"amx_bf16", "avx512_bf16"})


def rounded(x: jax.Array) -> jax.Array:
    """Return x rounded to bfloat16."""
    return x.astype(HALF)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, w: jax.Array, by_rows: bool = False) -> jax.Array:
    """Return x [M, K] w [K, N] as float32[M, N], its factors and those of its gradients rounded to bfloat16.

    by_rows: w is given as its transpose, [N, K].
    """
    return _product(x, w, by_rows)[0]


def _product(x: jax.Array, w: jax.Array, by_rows: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    half = rounded(x), rounded(w)
    return (times_rows if by_rows else times)(*half), (*half, _like(x), _like(w))


def _product_gradients(by_rows: bool, kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w, like_x, like_w = kept
    half = rounded(gradient)
    if by_rows:
        of_x, of_w = times(half, w), times(transposed(half), x)
    else:
        of_x, of_w = times_rows(half, w), times(transposed(x), half)
    return of_x.astype(like_x.dtype), of_w.astype(like_w.dtype)


product.defvjp(_product, _product_gradients)


def _like(x: jax.Array) -> jax.Array:
    """Return an empty array of x's dtype, which a backward pass needs to know."""
    return jnp.zeros(0, x.dtype)


def precision(dtype: str, products: str) -> str:
    """Return in words how an encoder computes, given its dtype and what `resolve_products` returned."""
    return f"{dtype}, products of bfloat16" if products == "bfloat16" else dtype


def resolve_products(asked: str, dtype: str, platform: str, name: str) -> str:
    """Return "float32" or "bfloat16" for what was asked, one of PRODUCTS, on this machine.

    "auto" is "bfloat16" on CPUs with units for it, "float32" elsewhere; told by the processor's flags and not by its
    speed, so that a machine always gives the same. dtype: of the activations. platform: of the devices, "cpu", "gpu" or
    "tpu". name: how the caller says the key or argument, for errors. UserError for another value, with float64, and
    for "bfloat16" where XLA does not implement the products.
    """
    if asked not in PRODUCTS:
        raise UserError(f"{name}={asked} is unknown. Known: {', '.join(PRODUCTS)}.")
    if asked == "auto":
        fast = dtype != "float64" and platform == "cpu" and _UNITS & _cpu_flags()
        return "bfloat16" if fast and not _missing() else "float32"
    if asked == "bfloat16":
        if dtype == "float64":
            raise UserError(f"{name}=bfloat16 would round the factors of float64. Use {name}=float32.")
        if platform == "cpu" and (missing := _missing()):
            raise UserError(f"{name}=bfloat16 fails with this version of XLA: {missing}\nUse {name}=float32.")
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

    def every(x: jax.Array, w: jax.Array, heads: jax.Array) -> tuple[jax.Array, ...]:
        weights = rounded(times_rows(heads, heads))
        return *_product_gradients(False, _product(x, w, False)[1], product(x, w)), times(transposed(heads), weights)

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

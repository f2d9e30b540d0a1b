"""Adapt the dense products of layers by factors of low rank (LoRA, Hu et al. 2021): W + s A B, with W frozen.

A product multiplies by the merged kernel, which is made where it is used: what is trained computes as the merged model
that is exported, and as the base at the start, bit for bit. The usual x A B beside x W has less arithmetic backward,
but products as thin as the rank, which made it slower and larger in memory (benchmarks/README.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import FAMILIES

DOWN, UP = "lora_a", "lora_b"  # the factors' names beside "kernel": [I, P, r] and [P, r, O / P]
# Which products of a layer are adapted, by how their places begin.
TARGETS = {"all": ("attention/", "ffn/"), "attention": ("attention/",)}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Describe the factors beside one kernel; `parts` matrices are joined in it, each with factors of its own."""

    rank: int
    scale: float
    parts: int


@dataclasses.dataclass(frozen=True)
class Lora:
    """Describe the adapters of an encoder."""

    rank: int
    alpha: float
    parts: tuple[tuple[str, int], ...]  # place of each adapted product, and how many matrices are joined in it

    @property
    def scale(self) -> float:
        """Return what A B is multiplied by, as PEFT has it."""
        return self.alpha / self.rank

    def of(self, place: str) -> Adapter | None:
        """Return the adapter at a place of `Architecture.layer_products`, None where there is none."""
        parts = dict(self.parts).get(place)
        return Adapter(self.rank, self.scale, parts) if parts else None


def make_lora(architecture: Architecture, rank: int, alpha: float, targets: str) -> Lora:
    """Return the adapters of this encoder: one for each matrix that transformers' class of its family has."""
    names = FAMILIES[architecture.family].names.layer_parts
    places = [place for place in architecture.layer_products if place.startswith(TARGETS[targets])]
    parts = [(place, 1 if isinstance(names[place], str) else len(names[place])) for place in places]
    return Lora(rank, alpha, tuple(parts))


def draw_down(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return A as PEFT draws it: uniform within 1 / sqrt(I), Kaiming's with a = sqrt(5). B starts at 0."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def merged(kernel: Any, down: Any, up: Any, scale: float, xp: Any = jnp) -> Any:
    """Return W + s A B for W [..., *inputs, *outputs], A [..., I, P, r] and B [..., P, r, O / P].

    I and O are the products of inputs and of outputs. xp: jax.numpy, or NumPy for its arrays.
    """
    first = xp.moveaxis(down, -2, -3)  # [..., P, I, r]
    each = xp.matmul(first, up) if xp is np else _batched(first, up)
    return kernel + scale * xp.moveaxis(each, -3, -2).reshape(kernel.shape)


def _batched(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the products of matrices [..., M, K] and [..., K, N], exact, with all other axes as axes of a batch.

    With fsdp, layers keep the results of products without such axes: these here would be the whole model again.
    """
    batch = tuple(range(first.ndim - 2))
    dimensions = (((first.ndim - 1,), (first.ndim - 2,)), (batch, batch))
    return lax.dot_general(first, second, dimensions, precision=lax.Precision.HIGHEST)


def adapted(kernel: jax.Array, down: jax.Array, up: jax.Array, scale: float) -> jax.Array:
    """Return the merged kernel, through which no gradient reaches W."""
    return merged(lax.stop_gradient(kernel), down, up, scale)

"""Parameters in parts: what a device keeps of them, and how they become whole within a step.

Over `data`, each device keeps and updates its part of matrices and tables (ZeRO-1): they are gathered once a step, and
what comes back are sums over the devices of its part of the gradient. Over `fsdp`, each keeps its part of everything,
and a layer is gathered when it runs (ZeRO-3). All of it is for use within a shard_map over the mesh.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from simcse_jax.training.mesh import split_axis, state_shardings


def part_specs(mesh: Mesh, params: Any) -> Any:
    """The PartitionSpec of each parameter."""
    return jax.tree.map(lambda sharding: sharding.spec, state_shardings(mesh, params))


def whole_over_data(params: Any, specs: Any, axes: tuple[str, ...], kernels_as: Any = None) -> Any:
    """Parameters as the device's own copy: whole over `data`, as they were over `fsdp`.

    The gradient with respect to `params` is summed over devices here, once, and not where the copy is used. axes:
    those of the mesh over which batches are spread. kernels_as: the dtype to which the encoder casts kernels before
    it uses them: they are then gathered as such. What is done with the copy must then sum no gradients over devices.
    """

    def own(path: Any, x: jax.Array, spec: P) -> jax.Array:
        x = jax.lax.pcast(x, tuple(name for name in axes if split_axis(spec, name) < 0), to="varying")
        axis = split_axis(spec, "data")
        as_computed = kernels_as is not None and path[-1].key == "kernel"
        return x if axis < 0 else _gathered(x, axis, kernels_as if as_computed else x.dtype)

    return jax.tree_util.tree_map_with_path(own, params, specs)


def whole_over_fsdp(parts: Any, specs: Any, stacked: bool = False) -> Any:
    """Whole arrays from this device's parts over `fsdp`; stacked: one layer was taken of what the specs are about."""

    def gather(x: jax.Array, spec: P) -> jax.Array:
        axis = split_axis(spec, "fsdp")
        return x if axis < 0 else jax.lax.all_gather(x, "fsdp", axis=axis - stacked, tiled=True)

    return jax.tree.map(gather, parts, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, axis: int, dtype: Any) -> jax.Array:
    """x, split over `data` along `axis`, whole, sent as `dtype`; its gradient is summed, and sent, in x's own."""
    return jax.lax.all_gather(x.astype(dtype), "data", axis=axis, tiled=True)


def _forward(x: jax.Array, axis: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return _gathered(x, axis, dtype), jnp.zeros((), x.dtype)


def _backward(axis: int, dtype: Any, like: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum_scatter(gradient.astype(like.dtype), "data", scatter_dimension=axis, tiled=True),)


_gathered.defvjp(_forward, _backward)

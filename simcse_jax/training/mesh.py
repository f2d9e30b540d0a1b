"""Arrange the devices as a mesh, and split arrays over it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")
VECTORS = ("bias", "scale")  # parameters that are not worth sending about
# Parts over `data` are multiples of so many along the last axis, or along another. Found by compiling for TPU v5e: of
# smaller parts the compiler reduces the whole on each chip, and then gathers too: half again what an all-reduce sends.
SMALLEST_LAST, SMALLEST_OTHER = 32, 8


def make_mesh(data: int, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first data * fsdp of these devices (jax.Device), by default of the visible ones.

    Axes are Auto: the step is written in global view, XLA partitions it.
    """
    first = (devices or jax.devices())[: data * fsdp]
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=first)


def used_axes(mesh: Mesh) -> tuple[str, ...]:
    """The names of the axes that have more than one device."""
    return tuple(name for name in AXES if mesh.shape[name] > 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def over_groups(mesh: Mesh) -> NamedSharding:
    """The leading axis (groups) is spread over every device."""
    return NamedSharding(mesh, P(AXES))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of each array of a state, or of parameters alone; moments are split like their parameters.

    state: arrays or ShapeDtypeStructs. Each device of `data` keeps and updates its part of the matrices and tables
    (ZeRO-1), and each of `fsdp` its part of everything.
    """

    def sharding(path: Any, x: Any) -> NamedSharding:
        small = getattr(path[-1], "key", "") in VECTORS
        return NamedSharding(mesh, _split(x.shape, mesh, ("fsdp",) if small else ("fsdp", "data")))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _split(shape: Sequence[int], mesh: Mesh, names: Sequence[str]) -> P:
    """The spec of an array of this shape: split along one axis over all of the named mesh axes, or the first it can."""
    for over in (tuple(names), *((name,) for name in names if len(names) > 1)):
        parts = math.prod(mesh.shape[name] for name in over)
        over = tuple(name for name in over if mesh.shape[name] > 1)
        sizes = {axis: size for axis, size in enumerate(shape) if _can_split(axis, shape, parts, "data" in over)}
        if parts > 1 and sizes:
            last = len(shape) - 1
            axis = max(sizes, key=lambda axis: (axis < last, sizes[axis]))
            return P(*[None] * axis, over[0] if len(over) == 1 else over)
    return P()


def _can_split(axis: int, shape: Sequence[int], parts: int, over_data: bool) -> bool:
    """Whether an array can be split along this axis into so many parts; parameters are stacked along the first."""
    smallest = SMALLEST_LAST if axis == len(shape) - 1 else SMALLEST_OTHER
    return axis > 0 and shape[axis] % (parts * (smallest if over_data else 1)) == 0


def split_axis(spec: P, name: str) -> int:
    """The axis along which an array of this spec is split over the mesh axis `name`; -1 = it is not."""
    return next(
        (n for n, names in enumerate(spec) if name in ((names,) if isinstance(names, str) else names or ())), -1
    )


def place(x: Any, sharding: Any) -> Any:
    """Global arrays of these values, laid out like `sharding` (a tree of NamedShardings with x's structure).

    x: arrays on the host or on one device, whole and equal on every process; each process copies its parts only.
    """

    def placed(x: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(placed, x, sharding)


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

"""Arrange the devices as a mesh, split arrays over it, and make them whole again inside a step.

Over the axis `data` each device keeps a part of the matrices and of their moments (ZeRO-1); a step gathers all of them
once. Over the axis `fsdp` each device keeps a part of every array; a layer is gathered when it runs (ZeRO-3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

IsFrozen = Callable[[tuple[str, ...]], bool]  # names of a parameter, from the outside -> whether it never changes
AXES = ("data", "fsdp")
VECTORS = ("bias", "scale")  # names of parameters that are no matrices: not worth splitting over `data`, nor decayed
# A part over `data` is a multiple of this along the last axis, or along another axis. Found by compiling for TPU v5e:
# with smaller parts the compiler reduces the whole array on each chip and gathers it too, half again an all-reduce.
SMALLEST_LAST, SMALLEST_OTHER = 32, 8


def make_mesh(data: int, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of the first data * fsdp of these devices (jax.Device), by default of the visible ones.

    Its axes are Auto: the step is written in global view, and XLA partitions it.
    """
    first = (devices or jax.devices())[: data * fsdp]
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=first)


def used_axes(mesh: Mesh) -> tuple[str, ...]:
    """Return the names of the axes that have more than one device."""
    return tuple(name for name in AXES if mesh.shape[name] > 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def over_groups(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose leading axis, the groups, is spread over all devices."""
    return NamedSharding(mesh, P(AXES))


def state_shardings(mesh: Mesh, state: Any, is_frozen: IsFrozen | None = None) -> Any:
    """Return the sharding of each array of a state, or of parameters; moments are split like their parameters.

    state: arrays or ShapeDtypeStructs. is_frozen: whether the array under these names never changes. It has no moments,
    and is whole over `data`, so that no step has to gather it.
    """

    def sharding(path: Any, x: Any) -> NamedSharding:
        names = tuple(getattr(step, "key", "") for step in path)
        whole = names[-1] in VECTORS or (is_frozen is not None and is_frozen(names))
        return NamedSharding(mesh, _split(x.shape, mesh, ("fsdp",) if whole else ("fsdp", "data")))

    return jax.tree_util.tree_map_with_path(sharding, state)


def part_specs(mesh: Mesh, params: Any, is_frozen: IsFrozen | None = None) -> Any:
    """Return the PartitionSpec of each parameter; is_frozen: as in `state_shardings`."""
    return jax.tree.map(lambda sharding: sharding.spec, state_shardings(mesh, params, is_frozen))


def _split(shape: Sequence[int], mesh: Mesh, names: Sequence[str]) -> P:
    """Return the spec of an array split along one axis, over all of the named mesh axes or else the first that fits."""
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
    """Return whether an array can be split along this axis. Never along axis 0, over which layers are stacked."""
    smallest = SMALLEST_LAST if axis == len(shape) - 1 else SMALLEST_OTHER
    return axis > 0 and shape[axis] % (parts * (smallest if over_data else 1)) == 0


def split_axis(spec: P, name: str) -> int:
    """Return the array axis that this spec splits over the mesh axis `name`, -1 for none."""
    return next(
        (n for n, names in enumerate(spec) if name in ((names,) if isinstance(names, str) else names or ())), -1
    )


def place(x: Any, sharding: Any) -> Any:
    """Return global arrays with the values of `x`, laid out by `sharding`, a tree of NamedShardings like x's.

    x: arrays on the host or on one device, whole and equal on every process; each process copies its parts only.
    """

    def placed(x: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(placed, x, sharding)


def gather_over_data(params: Any, specs: Any, axes: tuple[str, ...], kernels_as: Any = None) -> Any:
    """Return this device's own copy of the parameters, inside a shard_map: whole over `data`, still split over `fsdp`.

    The gradient with respect to `params` is summed over devices here, once, and not where the copy is used. axes:
    the mesh axes over which batches are spread. kernels_as: the dtype in which kernels are gathered, that to which the
    encoder casts them; what uses the copy must then sum no gradients over devices. None: as they are stored.
    """

    def own(path: Any, x: jax.Array, spec: P) -> jax.Array:
        x = jax.lax.pcast(x, tuple(name for name in axes if split_axis(spec, name) < 0), to="varying")
        axis = split_axis(spec, "data")
        as_computed = kernels_as is not None and path[-1].key == "kernel"
        return x if axis < 0 else _gathered(x, axis, kernels_as if as_computed else x.dtype)

    return jax.tree_util.tree_map_with_path(own, params, specs)


def gather_over_fsdp(parts: Any, specs: Any, stacked: bool = False) -> Any:
    """Return whole arrays from this device's parts over `fsdp`, inside a shard_map.

    stacked: the specs are those of stacked layers, and the parts those of one layer.
    """

    def gather(x: jax.Array, spec: P) -> jax.Array:
        axis = split_axis(spec, "fsdp")
        return x if axis < 0 else jax.lax.all_gather(x, "fsdp", axis=axis - stacked, tiled=True)

    return jax.tree.map(gather, parts, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, axis: int, dtype: Any) -> jax.Array:
    """Gather an array that is split over `data` along `axis`, as `dtype`; its gradient is summed in x's own dtype."""
    return jax.lax.all_gather(x.astype(dtype), "data", axis=axis, tiled=True)


def _forward(x: jax.Array, axis: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return _gathered(x, axis, dtype), jnp.zeros((), x.dtype)


def _backward(axis: int, dtype: Any, like: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum_scatter(gradient.astype(like.dtype), "data", scatter_dimension=axis, tiled=True),)


_gathered.defvjp(_forward, _backward)

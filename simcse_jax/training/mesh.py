"""The devices as a mesh, and where each array lives on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
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

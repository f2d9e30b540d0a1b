"""The devices as a mesh, and where each array lives on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")


def make_mesh(data: int, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first data * fsdp of these devices (jax.Device), by default of the visible ones.

    Axes are Auto: the step is written in global view, XLA partitions it.
    """
    first = (devices or jax.devices())[: data * fsdp]
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=first)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def over_groups(mesh: Mesh) -> NamedSharding:
    """The leading axis (groups) is spread over every device."""
    return NamedSharding(mesh, P(AXES))


def split_axis(shape: Sequence[int], parts: int) -> int:
    """The axis along which an array of this shape is split over `fsdp`; -1 = every device holds it whole.

    The largest that divides, and never the first: parameters of layers are stacked along that one.
    """
    sizes = [size if axis and size % parts == 0 else 0 for axis, size in enumerate(shape)]
    return int(np.argmax(sizes)) if parts > 1 and any(sizes) else -1


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of each array of a state: split over `fsdp` where it divides, else replicated.

    state: arrays or ShapeDtypeStructs. Optimizer moments have the shapes of their parameters, so they split alike.
    """

    def sharding(x: Any) -> NamedSharding:
        axis = split_axis(x.shape, mesh.shape["fsdp"])
        return replicated(mesh) if axis < 0 else NamedSharding(mesh, P(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, state)


def place(x: Any, sharding: Any) -> Any:
    """Global arrays of these values, laid out like `sharding` (a tree of NamedShardings with x's structure).

    x: arrays on the host or on one device, whole and equal on every process; each process copies its parts only.
    """

    def placed(x: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(placed, x, sharding)

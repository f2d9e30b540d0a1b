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


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of each array of a state: split over `fsdp` along its largest axis that divides, else replicated.

    state: arrays or ShapeDtypeStructs. Optimizer moments have the shapes of their parameters, so they split alike.
    """
    parts = mesh.shape["fsdp"]

    def sharding(x: Any) -> NamedSharding:
        sizes = [size if size % parts == 0 else 0 for size in x.shape]
        if parts == 1 or x.ndim < 2 or not any(sizes):
            return replicated(mesh)
        axis = int(np.argmax(sizes))
        return NamedSharding(mesh, P(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding, state)

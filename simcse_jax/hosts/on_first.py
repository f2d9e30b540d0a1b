"""Put the arrays of a state together in the memory of process 0, which alone writes a run at an address."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from simcse_jax.hosts.agreement import is_first, processes

GATHERED_BYTES = 256 * 2**20  # of the state that are whole on each device at a time


def on_first(tree: Any) -> Any:
    """Return the arrays of a tree as NumPy arrays on process 0, None on others; all processes call it together.

    What devices of several processes hold in parts is put together on the devices, some arrays at a time. A process
    that is alone gets the tree as it is.
    """
    if processes() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    found: list[Any] = list(leaves)
    waiting: list[int] = []
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            waiting.append(number)
            if sum(leaves[n].nbytes for n in waiting) >= GATHERED_BYTES:
                _gather(found, waiting)
    _gather(found, waiting)
    return jax.tree.unflatten(structure, [_host(leaf) for leaf in found]) if is_first() else None


def _gather(leaves: list[Any], waiting: list[int]) -> None:
    """Replace these leaves by whole ones, on process 0's host; empty the list."""
    if waiting:
        arrays = [leaves[n] for n in waiting]
        whole = tuple(NamedSharding(array.sharding.mesh, P()) for array in arrays)
        for number, array in zip(waiting, _putting_together(whole)(*arrays), strict=True):
            leaves[number] = _host(array) if is_first() else None
    waiting.clear()


@functools.cache
def _putting_together(shardings: tuple[NamedSharding, ...]) -> Callable[..., tuple[jax.Array, ...]]:
    return jax.jit(lambda *arrays: arrays, out_shardings=shardings)


def _host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)

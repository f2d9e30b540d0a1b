"""Batches onto the devices: each process makes the groups that its own devices hold, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simcse_jax.data.batches import Batch, Batches
from simcse_jax.training.mesh import over_groups, place, replicated


def own_groups(mesh: Mesh, groups: int) -> list[int]:
    """Which of a batch's groups lie on this process's devices, ascending."""
    spans = over_groups(mesh).addressable_devices_indices_map((groups,)).values()
    return sorted({n for span in spans if span for n in range(*span[0].indices(groups))})


def feed(batches: Batches, mesh: Mesh, first_step: int, last_step: int) -> Iterator[Batch]:
    """The batches of steps first_step <= step < last_step as global arrays, made ahead in background threads."""
    groups = batches.layout.batch_size // batches.layout.group_size
    own = own_groups(mesh, groups)
    for batch in batches.stream(first_step, last_step, own):
        yield placed(batch, own, groups, mesh)


def placed(batch: Batch, own: list[int], groups: int, mesh: Mesh) -> Batch:
    """A global batch of `groups` groups, of which `batch` holds those that `own` lists."""
    sharding = over_groups(mesh)
    first_at = {group: at for at, group in enumerate(own)}

    def spread(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            span = range(*index[0].indices(groups))
            return x[first_at[span.start] :][: len(span)]  # a device's groups are neighbours, so they are here too

        return jax.make_array_from_callback((groups, *x.shape[1:]), sharding, part)

    texts = place(batch.texts, replicated(mesh))
    return jax.tree.map(spread, batch._replace(texts=None))._replace(texts=texts)

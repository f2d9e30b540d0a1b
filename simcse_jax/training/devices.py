"""The chips that a plan is made for: those of this machine, or those of a TPU topology that is not there."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

import jax

from simcse_jax.system.errors import UserError

# Memory that a program may use on each device, GiB: what the TPU compiler (libtpu 0.0.42) says when it is too little.
# Topologies of TPU v4 list two devices a chip.
TPU_MEMORY = {"TPU v4": 15.25, "TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25}


@dataclasses.dataclass(frozen=True)
class Chips:
    """Devices to compile for; memory: bytes of each."""

    devices: tuple[Any, ...]
    memory: int


def visible_chips() -> Chips:
    """The devices of this machine. Of a CPU's memory, each virtual device has its share."""
    devices = tuple(jax.devices())
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return Chips(devices, int(memory))


def topology_chips(topology: str) -> Chips:
    """The chips of a TPU topology such as "v5e:4x4", for the TPU's own compiler; no TPU is needed.

    Raises UserError without libtpu, and for a topology that it does not know.
    """
    if importlib.util.find_spec("libtpu") is None:  # the compiler; JAX finds it by itself
        raise UserError(
            f"--topology={topology} needs the TPU's compiler, the package libtpu in the release that suits this JAX.\n"
            "pip install 'jax[tpu]' (the extra tpu-plan)."
        )
    from jax.experimental import topologies

    try:
        devices = tuple(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:
        raise UserError(
            f"--topology={topology} is unknown to the TPU's compiler: {str(error).splitlines()[0][:200]}\n"
            "For example v4:2x2x1, v5e:2x2, v5e:4x4, v5p:2x2x2 or v6e:4x4; --config.mesh.data=1 plans for one chip."
        ) from error
    kind = devices[0].device_kind
    if kind not in TPU_MEMORY:
        raise UserError(f"The memory of a {kind!r} is not known here. Known: {', '.join(TPU_MEMORY)}.")
    return Chips(devices, int(TPU_MEMORY[kind] * 2**30))

"""Find devices to compile for: those of this machine, and TPUs or GPUs that only their compiler knows."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from simcse_jax.system.devices import restore_sigterm
from simcse_jax.system.errors import UserError

# GiB that a program may use on each device, as the TPU compiler (libtpu 0.0.42) says when a program does not fit.
# Topologies of TPU v4 list two devices a chip.
TPU_MEMORY = {"TPU v4": 15.25, "TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25}
TPU_EXAMPLES = ("v4:2x2x1", "v5e:2x2", "v5e:4x4", "v5p:2x2x2", "v6e:4x4")

GPU_HOST = 8  # GPUs that NVLink joins, and that one host has
GPU_COMPILER = f"pip install 'jax[cuda13-local]=={jax.__version__}' 'nvidia-cuda-nvcc>=13,<14'"
GPU_SHARE = 0.75  # of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Hold what XLA's compiler asks of a GPU, from NVIDIA's architecture papers (A100, H100) and data sheets."""

    name: str  # as the driver reports it
    compute_capability: int  # the major number
    cores: int  # streaming multiprocessors
    units: int  # float32 units of each
    clock_ghz: float
    shared_kib: int  # shared memory of each multiprocessor; a block may use 1 KiB less
    l2_mib: int
    memory: int  # bytes that a program sees
    bandwidth: float  # bytes a second

    @property
    def target(self) -> str:
        """Return the description that XLA's GPU compiler takes instead of a device."""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              threads_per_core_limit: 2048
              shared_memory_per_block: {48 * 1024}
              shared_memory_per_core: {self.shared_kib * 1024}
              shared_memory_per_block_optin: {(self.shared_kib - 1) * 1024}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              core_count: {self.cores}
              fpus_per_core: {self.units}
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f}
              l2_cache_size: {self.l2_mib * 2**20}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {self.compute_capability} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 }}
            runtime_version {{ major: 13 minor: 0 patch: 0 }}
            device_description_str: "{self.name}"
        """


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 164, 40, 85_100_068_864, 2.039e12),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 228, 50, 84_942_979_072, 3.35e12),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 1.98, 228, 50, 150_754_820_096, 4.8e12),
}
KNOWN = (
    f"TPUs, by the sides of a slice: {', '.join(TPU_EXAMPLES)} ...; GPUs, by their number, up to {GPU_HOST} or hosts "
    f"of {GPU_HOST}: {', '.join(f'{name}:1, {name}:8' for name in GPUS)}, h100:16 ..."
)


@dataclasses.dataclass(frozen=True)
class Chips:
    """Hold the devices to compile for, the bytes that a program may use on each, and the axes that they form.

    axes: of a TPU slice; () for others. note: what to know about the memory.
    """

    devices: tuple[Any, ...]
    memory: int
    axes: tuple[int, ...] = ()
    note: str = ""


def visible_chips() -> Chips:
    """Return the devices of this machine. The virtual devices of a CPU share its memory equally."""
    devices = tuple(jax.devices())
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return Chips(devices, int(memory))


def topology_chips(topology: str) -> Chips:
    """Return the chips of a topology such as "v5e:4x4" (a TPU slice) or "h100:8"; none of them need be there.

    UserError for an unknown topology, and without its compiler: libtpu, or the CUDA plug-in of JAX.
    """
    kind, _, size = topology.partition(":")
    if kind in GPUS:
        return _gpus(topology, GPUS[kind], size)
    if not re.fullmatch(r"v\d\w*:\d+(x\d+)*", topology):
        raise UserError(f"--topology={topology} is not known.\n{KNOWN}.")
    return _tpus(topology)


def _tpus(topology: str) -> Chips:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs the TPU's compiler, the package libtpu in the release that suits this JAX.\n"
            f"pip install 'jax[tpu]=={jax.__version__}' (the extra tpu-plan)."
        )
    from jax.experimental import topologies

    try:
        devices = tuple(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:
        raise UserError(
            f"--topology={topology} is unknown to the TPU's compiler: {str(error).splitlines()[0][:200]}\n{KNOWN}; "
            "--config.mesh.data=1 plans for one chip."
        ) from error
    restore_sigterm()
    kind = devices[0].device_kind
    if kind not in TPU_MEMORY:
        raise UserError(f"The memory of a {kind!r} is not known here. Known: {', '.join(TPU_MEMORY)}.")
    axes = tuple(len(set(places)) for places in zip(*(chip.coords for chip in devices), strict=True))
    return Chips(devices, int(TPU_MEMORY[kind] * 2**30), axes)


def _gpus(topology: str, gpu: Gpu, size: str) -> Chips:
    count = int(size) if re.fullmatch(r"[1-9]\d{0,5}", size) else 0
    if not count or (count > GPU_HOST and count % GPU_HOST):
        raise UserError(f"--topology={topology}: no such number of GPUs.\n{KNOWN}.")
    if not any(importlib.util.find_spec(f"jax_cuda{cuda}_plugin") for cuda in (13, 12)):
        raise UserError(
            f"--topology={topology} needs XLA's GPU compiler: JAX's CUDA plug-in in the release of this JAX, but no "
            f"GPU and no CUDA libraries.\n{GPU_COMPILER} (the extra gpu-plan)."
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of the libraries that run programs
    from jax.experimental import topologies

    hosts = max(count // GPU_HOST, 1)
    described = topologies.get_topology_desc(
        platform="cuda", target_config=gpu.target, topology=f"1x{hosts}x{count // hosts}"
    )
    variable = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    share = float(os.environ.get(variable, GPU_SHARE))
    return Chips(tuple(described.devices), int(gpu.memory * share), note=f"{share:.0%} of a GPU's, by {variable}")


def require_cuda_tools(error: Exception) -> None:
    """Raise UserError if the GPU compiler failed because it lacks libdevice or ptxas, which CUDA's packages hold."""
    if "libdevice" in str(error) or "ptxas" in str(error):
        raise UserError(f"The GPU compiler lacks libdevice or ptxas: {str(error).splitlines()[0]}\n{GPU_COMPILER}.")

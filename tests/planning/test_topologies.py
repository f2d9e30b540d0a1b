"""Devices that are not there: their names, and what an error says where they, or their compiler, are unknown."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.planning import topologies
from simcse_jax.planning.least_time import chip_of
from simcse_jax.planning.lengths import Lengths
from simcse_jax.planning.plan import Planner, requirements
from simcse_jax.planning.topologies import GPU_COMPILER, GPUS, topology_chips
from simcse_jax.system.errors import UserError
from tests.small_models import SMALL_ENCODER

ROOT = Path(__file__).parent.parent.parent
HAS_GPU_COMPILER = any(find_spec(f"jax_cuda{cuda}_plugin") for cuda in (13, 12))
needs_gpu_compiler = pytest.mark.skipif(not HAS_GPU_COMPILER, reason="the extra gpu-plan is not installed")


@pytest.mark.parametrize(
    "topology", ["h100", "h100:", "h100:0", "h100:12", "h100:2x4", "b100:8", "h100-8", "gpu", "v5e"]
)
def test_a_wrong_topology_lists_the_right_ones(topology: str) -> None:
    with pytest.raises(UserError) as refused:
        topology_chips(topology)
    for right in ("v5e:4x4", "h100:1", "h100:8", "h200:8", "a100:8"):
        assert right in str(refused.value)


def test_without_the_compiler_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        topology_chips("h100:8")
    assert GPU_COMPILER in str(refused.value)
    with pytest.raises(UserError, match=r"jax\[tpu\]"):
        topology_chips("v5e:2x4")


def test_a_compiler_without_the_tools_of_cuda_says_how_to_get_them() -> None:
    with pytest.raises(UserError, match="nvidia-cuda-nvcc"):
        topologies.require_cuda_tools(RuntimeError("INTERNAL: libdevice not found at ./libdevice.10.bc"))
    topologies.require_cuda_tools(RuntimeError("INTERNAL: something else"))


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_described_as_its_published_figures_say(name: str) -> None:
    gpu = GPUS[name]
    chip = chip_of(gpu.name)
    assert chip is not None
    assert chip.hbm == gpu.bandwidth
    # Every core's float32 units make a multiplication and an addition a cycle.
    assert chip.float32_peak == pytest.approx(2 * gpu.cores * gpu.units * gpu.clock_ghz * 1e9, rel=0.01)
    assert gpu.target.count("{") == gpu.target.count("}")
    assert f'device_description_str: "{gpu.name}"' in gpu.target


PLUGIN_AT_IMPORT = """
import simcse_jax.system.devices as devices
devices.start_devices()
import jax
print(jax.default_backend())
"""


@needs_gpu_compiler
@pytest.mark.medium
@pytest.mark.skipif(any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl"))), reason="a GPU is here")
def test_the_plugin_is_quiet_where_there_is_no_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-c", PLUGIN_AT_IMPORT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("cpu\n", "")


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("topology", "devices"), [("h100:1", 1), ("h100:8", 8)])
def test_a_small_step_compiles_for_gpus_that_are_not_there(topology: str, devices: int) -> None:
    recipe = base.get_config()
    values: dict[str, Any] = {**SMALL_ENCODER, "model.vocab_size": 400, "train.batch_size": 512, "eval.data": ""}
    recipe.update_from_flattened_dict(values)
    chips = topology_chips(topology)
    assert len(chips.devices) == devices
    assert chips.memory == int(0.75 * GPUS["h100"].memory)
    config = resolve(recipe, (), devices, needs_data=False)
    made = Planner(config, chips, Lengths(21.9, 8.9))
    assert made.encoder.unroll
    plan = made.compile(512)
    done = plan.work
    assert done is not None
    assert 0.5 * plan.flops < done.flops < 1.1 * plan.flops
    assert plan.memory["total"] > plan.memory["state"] > 0
    assert done.hbm > 3 * plan.memory["state"]
    assert bool(done.sent) == (devices > 1)
    lines = "\n".join(requirements(plan, chips, devices))
    assert re.search(r"least time of a step: 0.\d\d ms, bound by (HBM|links)", lines)
    assert "H100 SXM" in lines

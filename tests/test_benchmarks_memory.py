"""The benchmark of memory: the largest batch of docs/scale.md compiles for one TPU chip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compiled_step import lower, memory_of
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.training.mesh import make_mesh

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_recomputed_layers_take_a_fraction_of_the_memory_on_a_cpu_too() -> None:
    sizes = Architecture("bert", 1000, 128, 8, 4, 512)
    needed = [
        memory_of(lower(make_mesh(1), sizes, 256, "float32", {"model.remat": remat}).compile())["temporaries"]
        for remat in (False, True)
    ]
    assert needed[1] < 0.4 * needed[0]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_batch_of_65536_compiles_for_one_v5e_chip(tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    flags = ["--topology=v5e:2x2", "--batch_sizes=65536", "--layouts=both", f"--json={tmp_path / 'memory.json'}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (step,) = json.loads((tmp_path / "memory.json").read_text())["steps"]
    # GiB: parameters, moments and gradient alone take 1.6; a chip has 15.75.
    assert 1.6 < step["needed"] / 2**30 < 15.75

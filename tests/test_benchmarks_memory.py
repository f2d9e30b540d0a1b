"""What is said of memory: the largest batch of docs/scale.md compiles for one TPU chip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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

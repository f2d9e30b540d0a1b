"""The proof for a GPU, dry-run on the CPU: every part, its files, and a second start that repeats nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks.device_parity import compare
from benchmarks.sizes import ENCODERS
from tests.small_models import demo_files
from tests.small_senteval import write_senteval

PARTS = ("parity", "train-64", "fused-64", "train-512", "fused-512", "encode", "real")


@pytest.mark.slow
def test_all_parts_run_and_are_not_repeated(small_model: Path, tmp_path: Path) -> None:
    files = demo_files()
    write_senteval(tmp_path / "senteval")
    command = [
        *(sys.executable, "-m", "benchmarks.on_gpu", "--tiny", f"--out={tmp_path / 'out'}"),
        f"--sentences={files / 'sentences.txt'}",
        f"--documents={files / 'sentences.txt'}",
        f"--triplets={files / 'triplets.csv'}",
        f"--senteval={tmp_path / 'senteval'}",
        f"--tokenizer={small_model}",
        f"--model={small_model}",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    written = {name: (tmp_path / "out" / f"{name}.json").read_text() for name in PARTS}
    assert json.loads(written["train-64"])["ratio"]["torch"] > 0
    scores = json.loads(written["real"])["scores"]
    assert set(scores) == {"pretrained", "unsup, seed 0", "sup, seed 0"}
    for name in PARTS:
        assert f"## {name}: " in first.stdout
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "..." not in again.stdout
    assert {name: (tmp_path / "out" / f"{name}.json").read_text() for name in PARTS} == written


def test_the_cpu_agrees_with_itself_in_float64() -> None:
    float32, bfloat16 = compare(ENCODERS["tiny"], jax.local_devices()[0])
    assert float32["embeddings"] < 2e-6
    assert float32["gradients"] < 1e-5
    assert 1e-4 < bfloat16["embeddings"] < 5e-2
    assert float32["repeats bit for bit"]

"""The JavaScript of docs/use.md on an exported ONNX model: the same vectors as in Python."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from simcse_jax import SimCSE
from simcse_jax.model_folder.export import convert

PAGE = Path(__file__).parents[2] / "docs" / "use.md"
TEXTS = ["A man plays the guitar.", "", "Zoë isn't at 10,000 Füße; 東京!", "a red dog sleeps " * 30]


@pytest.mark.slow
def test_javascript_gives_the_same_vectors(small_model: Path, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        pytest.skip("needs node and npm")
    # Without scripts: the one of onnxruntime-node fetches CUDA's libraries, and the package itself has the CPU's.
    packages = ["onnxruntime-node", "@huggingface/tokenizers"]
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(tmp_path), *packages]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm cannot install {' and '.join(packages)}: {done.stderr.strip()[-200:]}")
    convert(str(small_model), tmp_path / "exported", onnx=True)
    (code,) = re.findall(r"```javascript\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "512" in code
    code = code.replace("512", "64")  # what this model takes
    code += f"for (const text of {json.dumps(TEXTS)}) console.log(JSON.stringify([...(await embed(text))]));\n"
    (tmp_path / "embed.mjs").write_text(code, encoding="utf-8")
    done = subprocess.run([node, "embed.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vectors = np.array([json.loads(line) for line in done.stdout.splitlines()], np.float32)
    np.testing.assert_allclose(vectors, SimCSE(small_model).encode(TEXTS), rtol=0, atol=1e-5)

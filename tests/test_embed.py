"""The command `embed`: what it writes, a second call, and other settings for the same file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from simcse_jax import SimCSE

ROOT = Path(__file__).parent.parent
# One process for all calls: most of their time would be imports and compiling.
CALLS = """
import json, sys
from absl import flags
from simcse_jax import cli, embed
from simcse_jax.system.errors import UserError
for words in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    cli._parse(["embed", *words])
    try:
        embed.main()
    except UserError as error:
        print("error:", json.dumps(str(error)))
"""


def test_the_file_and_what_may_continue_it(small_model: Path, tmp_path: Path) -> None:
    texts = ["a red dog sleeps", "a man plays music", "a red dog sleeps", "two children " * 40]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n\n")
    call = [f"--model={small_model}", "--input=in.txt", "--out=out.parquet"]
    changes = [
        [],
        [],
        ["--nonormalize"],
        ["--dtype=bfloat16"],
        ["--products=bfloat16"],
        ["--max_length=16"],
        ["--storage=float16"],
    ]
    calls = [*([*call, *change] for change in changes), [*call[:2], "--out=out.csv"]]
    calls.append([*call[:2], "--out=short.parquet", "--truncate_dim=8"])
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, left_out, complete, *refused, short, _ = done.stdout.splitlines()
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("text").to_pylist() == texts
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, SimCSE(small_model).encode(texts), rtol=0, atol=1e-6)
    assert "out.parquet" in written
    assert left_out.startswith("left out: 1 ")
    assert complete != written
    names = ("normalized", "precision", "products of bfloat16", "max_length", "storage", "out.csv")
    for name, line in zip(names, refused, strict=True):
        assert line.startswith("error:")
        assert name in line
    assert "width 8" in short
    cut = np.array(pq.read_table(tmp_path / "short.parquet").column("vector").to_pylist(), np.float32)
    expected = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, rtol=0, atol=1e-6)

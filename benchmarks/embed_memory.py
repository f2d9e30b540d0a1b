"""Measure the memory of `embed` while it streams: `python -m benchmarks.embed_memory --model=DIR --input=FILE`.

Starts `python -m simcse_jax.embed` as a separate process, and reads its memory each time it finishes a part of the
file. Memory may grow until the encoder's cache of packed blocks is full; growth after that is reported separately. The
vectors are thrown away.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks import process_memory
from simcse_jax import cli
from simcse_jax.encoding import CACHED_BLOCKS
from simcse_jax.serving.vector_file import PART
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

EVERY_S = 0.2  # seconds between two readings
WARM = CACHED_BLOCKS + 1  # parts after which the cache is full


def measure(model: str, files: list[str]) -> list[tuple[int, float, int]]:
    """Return (sentences done, seconds since the start, resident bytes) at each part, and the peak as the last entry."""
    seen: list[tuple[int, float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "vectors.parquet"
        parts = Path(f"{out}.parts")
        options = [f"--model={model}", f"--input={','.join(files)}", f"--out={out}"]
        start, highest = time.monotonic(), 0
        with subprocess.Popen(
            [sys.executable, "-m", "simcse_jax.embed", *options], stdout=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                time.sleep(EVERY_S)
                done = len(list(parts.glob("[0-9]*.parquet")))
                try:
                    resident, highest = process_memory.resident(process.pid), process_memory.peak(process.pid)
                except (OSError, StopIteration):  # the process has just ended
                    break
                if done * PART > (seen[-1][0] if seen else 0):
                    seen.append((done * PART, time.monotonic() - start, resident))
            said = process.communicate()[0]
        if process.returncode:
            raise UserError(f"embed ended with status {process.returncode}:\n{said}")
        seen.append((int(said.split("(")[1].split()[0].replace(",", "")), time.monotonic() - start, highest))
    return seen


def table(seen: list[tuple[int, float, int]]) -> list[str]:
    """Format the curve as Markdown: at most 20 of its points, always the last, and the growth after the warm-up."""
    *curve, last = seen
    shown = curve[:: max(1, len(curve) // 20)]
    lines = ["| sentences | seconds | MiB |", "|---:|---:|---:|"]
    lines += [f"| {done:,} | {seconds:,.0f} | {bytes_ / 2**20:,.0f} |" for done, seconds, bytes_ in shown]
    lines += [f"| {last[0]:,}, written | {last[1]:,.0f} | {last[2] / 2**20:,.0f} at its peak |"]
    if len(curve) > WARM:
        grown = (curve[-1][2] - curve[WARM - 1][2]) / 2**20
        lines += ["", f"From {curve[WARM - 1][0]:,} sentences on, {grown:+,.0f} MiB."]
    return lines


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("model", "", "A model, as embed takes it.")
    flags.DEFINE_list("input", [], "Files of sentences, as embed takes them.")
    flags.DEFINE_string("json", "", "Write the curve there as well.")


def main() -> None:
    """Measure as the flags say."""
    if not FLAGS.model or not FLAGS.input:
        raise UserError("--model=DIR and --input=FILE are needed.")
    seen = measure(FLAGS.model, FLAGS.input)
    print("\n".join(table(seen)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(seen) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

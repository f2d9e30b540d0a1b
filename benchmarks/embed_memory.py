"""The memory of `embed` while it streams: `python -m benchmarks.embed_memory --model=DIR --input=FILE`.

Starts `python -m simcse_jax.embed` as a process of its own, and looks at what it holds each time that a part of the
file is finished. Memory may grow until the encoder's cache of packed blocks is full; what it grows after that is told
by itself. The vectors are thrown away.
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

EVERY_S = 0.2  # between two looks
WARM = CACHED_BLOCKS + 1  # parts until everything that is kept was kept once


def measure(model: str, files: list[str]) -> list[tuple[int, float, int]]:
    """(sentences done, seconds since the start, resident bytes) at each part, and last of all the peak at the end."""
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
                except (OSError, StopIteration):  # it has just ended
                    break
                if done * PART > (seen[-1][0] if seen else 0):
                    seen.append((done * PART, time.monotonic() - start, resident))
            said = process.communicate()[0]
        if process.returncode:
            raise UserError(f"embed ended with status {process.returncode}:\n{said}")
        seen.append((int(said.split("(")[1].split()[0].replace(",", "")), time.monotonic() - start, highest))
    return seen


def table(seen: list[tuple[int, float, int]]) -> list[str]:
    """The curve as Markdown: at most 20 of its points, the last always, and what memory grew once all was kept."""
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
    """The command's flags; only the command has them, so that other commands' tests may import this file."""
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

"""Time the real command from its start to the first step, by the lines that it prints.

    python -m benchmarks.start_up --files=sentences.txt --model_folder=DIR --json=FILE

Each shape starts from random weights with an empty cache (`cold`: the data is tokenised, the step compiled), then with
the cache that this start left (`warm`), and ends after its first step. Stages: `parts` (imports, tokenizer, data,
building the step), `weights` (the state before the first step), `compile`, `step`. Seconds are wall time, with
processor time in brackets, which other programs on the machine disturb less; memory is the most that the process held,
pages of cached files included, and in brackets what it holds without them at the first step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import process_memory
from benchmarks.sizes import SIZES
from simcse_jax import cli
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

ROOT = Path(__file__).resolve().parent.parent
# How the line that ends each stage begins.
STAGES = {"parts": "model: ", "weights": "compiling the step", "compile": "compiled in", "step": "step 1/"}

Seconds = tuple[float, float]  # wall time, processor time


def start(shape: str, files: str, model_folder: str, cache: Path) -> dict[str, Any]:
    """Start a run of that shape in its own folder; return the seconds of each stage and in all, and bytes of memory.

    Raises RuntimeError if the run fails.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "-m", "simcse_jax.train", "--config=configs/unsup.py", f"--workdir={workdir}/run"),
            *(f"--config.data.files={Path(files).resolve()}", f"--config.model.name={Path(model_folder).resolve()}"),
            *("--config.model.init=random", "--config.eval.data=", "--config.train.steps=1"),
            *(f"--config.model.{name}={size}" for name, size in dataclasses.asdict(SIZES[shape]).items()),
        ]
        environment = os.environ | {"SIMCSE_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
        begun = time.monotonic()
        ends: dict[str, Seconds] = {}
        memory = (0, 0)
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                ended = [stage for stage, words in STAGES.items() if line.startswith(words)]
                ends |= {stage: (time.monotonic() - begun, _processor_time(process.pid)) for stage in ended}
                if "step" in ends:
                    memory = process_memory.peak(process.pid), process_memory.own(process.pid)
                    break
            process.kill()
    if "step" not in ends:
        raise RuntimeError(f"{' '.join(command)} ended before its first step")
    stages: dict[str, Seconds] = {}
    before = (0.0, 0.0)
    for stage in STAGES:
        stages[stage] = (ends[stage][0] - before[0], ends[stage][1] - before[1])
        before = ends[stage]
    return {**stages, "total": ends["step"], "memory": memory}


def _processor_time(pid: int) -> float:
    """Return the processor seconds that a process has used, in all its threads (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the results as Markdown: a line for each start, a column for each stage."""
    names = [*STAGES, "total"]
    return [
        f"| model | start | {' | '.join(names)} | memory, MiB |",
        "|---|---|" + "---:|" * (len(names) + 1),
        *(
            f"| {result['model']} | {result['start']} | "
            + " | ".join("{:.1f} ({:.1f})".format(*result[name]) for name in names)
            + " | {:,.0f} ({:,.0f}) |".format(*(bytes_ / 2**20 for bytes_ in result["memory"]))
            for result in results
        ),
    ]


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_list("models", ["minilm", "bert-base"], f"Some of {', '.join(SIZES)}.")
    flags.DEFINE_string("files", "", "Sentences to train on, as data.files takes them.")
    flags.DEFINE_string("model_folder", "", "A folder with BERT's tokenizer and config.json.")
    flags.DEFINE_integer("warm", 1, "How many warm starts follow the cold one.", lower_bound=1)
    flags.DEFINE_string("json", "", "Write the figures there as well.")


def main() -> None:
    """Measure as the flags say."""
    if not FLAGS.files or not FLAGS.model_folder:
        raise UserError("--files and --model_folder are needed: sentences, and a folder with BERT's tokenizer.")
    unknown = [model for model in FLAGS.models if model not in SIZES]
    if unknown:
        raise UserError(f"--models: {unknown[0]!r} is unknown.\nUse some of {','.join(SIZES)}.")
    results = []
    for model in FLAGS.models:
        with tempfile.TemporaryDirectory() as cache:
            for name in ["cold"] + ["warm"] * FLAGS.warm:
                stages = start(model, FLAGS.files, FLAGS.model_folder, Path(cache))
                results.append({"model": model, "start": name, **stages})
                print(f"{model}, {name}: {stages['total'][0]:.1f} s", flush=True)
    print("\n".join(["", *table(results)]))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

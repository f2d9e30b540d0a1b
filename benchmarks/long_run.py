"""Memory and compilations over a long run: `python -m benchmarks.long_run --steps=10000`.

Trains a small model on the embedded data, with evaluations and checkpoints, and looks at the process every so many
steps: its resident memory, the arrays that live on devices, and how many programs were compiled so far. After the
warm-up (the first tenth of the run) none of them may grow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
from absl import flags

from configs import demo
from simcse_jax import cli
from simcse_jax.config import resolve
from simcse_jax.training.loop import train
from simcse_jax.training.run import prepare

FLAGS = flags.FLAGS

SAMPLES = 20


def samples_of_a_run(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Train in `folder`, and return what was seen: step, resident bytes, device arrays, their bytes, compilations."""
    recipe, every = demo.get_config(), steps // SAMPLES
    recipe.update_from_flattened_dict(
        {
            "model.num_hidden_layers": 1,
            "model.hidden_size": 16,
            "model.intermediate_size": 32,
            "model.vocab_size": 300,
            "data.cache_dir": str(folder / "cache"),
            "train.batch_size": 32,
            "train.steps": SAMPLES * every,
            "eval.every_steps": every,
            "checkpoint.every_steps": every,
            "mesh.data": 1,
        }
    )
    run = prepare(resolve(recipe, (), jax.device_count()), folder / "run")
    seen, score, loop = [], run.evaluate, threading.get_ident()
    compiled = {"ahead": 0, "waited_for": 0}
    assert score

    def count(event: str, *_: Any, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled["waited_for" if threading.get_ident() == loop else "ahead"] += 1

    def watched(params: Any) -> dict[str, float]:
        seen.append({"step": len(seen) * every, **_look(), **compiled})
        return score(params)

    jax.monitoring.register_event_duration_secs_listener(count)
    train(dataclasses.replace(run, evaluate=watched), folder / "run")
    return seen


def _look() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    live = jax.live_arrays()
    return {
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
        "arrays": len(live),
        "array_bytes": sum(array.nbytes for array in live),
    }


def table(samples: list[dict[str, Any]]) -> list[str]:
    """A line a sample."""
    return [
        "   step   resident MiB   device arrays   of KiB   steps compiled ahead   other programs",
        *(
            f"{s['step']:>7,} {s['resident'] / 2**20:>14.1f} {s['arrays']:>15} {s['array_bytes'] / 2**10:>8.0f} "
            f"{s['ahead']:>22} {s['waited_for']:>16}"
            for s in samples
        ),
    ]


def define_flags() -> None:
    """The command's flags; only the command has them, so that other commands' tests may import this file."""
    flags.DEFINE_integer("steps", 10_000, "Steps to train.", lower_bound=SAMPLES)
    flags.DEFINE_string("json", "", "Write the samples there as well.")


def main() -> None:
    """Train as long as the flags say, and print what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        samples = samples_of_a_run(Path(folder), FLAGS.steps)
    print("\n".join(table(samples)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(samples, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

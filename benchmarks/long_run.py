"""Check memory and compilations over a long run: `python -m benchmarks.long_run --steps=10000`.

Trains a small model on the demo's text, with evaluations and checkpoints. At regular steps it samples the memory of
the process, the arrays on devices, and the number of compiled programs. Exit status 1 if, after the warm-up (the first
fifth of the run), a program was compiled, arrays were left behind, or memory grew by more than MAY_GROW.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks import process_memory
from configs import demo
from simcse_jax import cli
from simcse_jax.config.resolve import resolve
from simcse_jax.training.loop import train
from simcse_jax.training.run import prepare

FLAGS = flags.FLAGS

SAMPLES = 20
MAY_GROW = 64 * 2**20  # bytes: growth that an allocator's arenas explain
FLEETING = 20  # arrays: the batch of the next step, the metrics of the last


def samples_of_a_run(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Train in `folder`; return samples of step, memory in bytes, device arrays, their bytes, compilations."""
    recipe, every = demo.get_config("scratch"), steps // SAMPLES
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
    compiled, seen, dev = [0], [], run.dev
    assert dev

    def count(event: str, *_: Any, **__: Any) -> None:
        compiled[0] += event == "/jax/core/compile/backend_compile_duration"

    def watched(params: Any) -> dict[str, float]:
        seen.append({"step": len(seen) * every, **_look(), "compilations": compiled[0]})
        return dev.evaluate(params)

    jax.monitoring.register_event_duration_secs_listener(count)
    train(dataclasses.replace(run, dev=dev._replace(evaluate=watched)), folder / "run")
    return seen


def _look() -> dict[str, int]:
    live = jax.live_arrays()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: return free memory of arenas to the system
    return {
        "memory": process_memory.own(),
        "arrays": len(live),
        "array_bytes": sum(array.nbytes for array in live),
    }


def table(samples: list[dict[str, Any]]) -> list[str]:
    """Return a line for each sample."""
    return [
        "   step     memory MiB   device arrays   of KiB   programs compiled",
        *(
            f"{s['step']:>7,} {s['memory'] / 2**20:>14.1f} {s['arrays']:>15} {s['array_bytes'] / 2**10:>8.0f} "
            f"{s['compilations']:>19}"
            for s in samples
        ),
    ]


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_integer("steps", 10_000, "Steps to train.", lower_bound=SAMPLES)
    flags.DEFINE_string("json", "", "Write the samples there as well.")


def faults(samples: list[dict[str, Any]]) -> list[str]:
    """Return what grew after the warm-up and stayed grown.

    A checkpoint that is still being written holds arrays for a while, so a rise that goes away is no fault.
    """
    share = len(samples) // 5
    first, last = samples[share], samples[-share:]
    grown = {name: min(sample[name] for sample in last) - first[name] for name in first}
    allowed = {"compilations": 0, "arrays": FLEETING, "memory": MAY_GROW}
    return [
        f"{name} grew by {grown[name]:,} after step {first['step']:,}"
        for name in allowed
        if grown[name] > allowed[name]
    ]


def main() -> int:
    """Train as long as the flags say, and print the samples; return 1 if something grew."""
    with tempfile.TemporaryDirectory() as folder:
        samples = samples_of_a_run(Path(folder), FLAGS.steps)
    print("\n".join(table(samples)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(samples, indent=2) + "\n", encoding="utf-8")
    for fault in (found := faults(samples)):
        print(fault)
    return int(bool(found))


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""Break runs on purpose, resume them, and compare: `python -m benchmarks.faults --runs=110`.

Each run is a small one of its own. It is broken once, in one of these ways in turn:

    kill        kill -9 at a random moment, start-up included
    save        kill -9 during a save
    truncate    kill -9, then cut off random files of the newest checkpoint
    flip        kill -9, then flip one bit in the newest checkpoint
    term        SIGTERM at a random moment
    both        kill -9, then flip one bit in each checkpoint: two starts must be refused; then copies are put back
    corpus      kill -9, then flip a few bits in the cached tokens
    torn        kill -9, then cut metrics.jsonl off and add lines that are no metrics
    board       a file stands where TensorBoard's folder should be
    second      the same command is given again while the run trains: it must be refused, and name the first process
    nan         a weight of the exported model becomes NaN: `embed` must refuse the model

Where it was ended, it is started again with the same command. It counts as survived when it ends well, its final
parameters equal those of an unbroken run, bit for bit, and what had to be refused was. Prints a line for each run and a
total; exit status 1 if one run failed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from simcse_jax import cli
from simcse_jax.data import demo
from simcse_jax.model_folder.run_folder import complete_steps, load_run_params
from simcse_jax.runs.metrics import read_metrics

FLAGS = flags.FLAGS

KINDS = ("kill", "save", "truncate", "flip", "term", "both", "corpus", "torn", "board", "second", "nan")
UNINTERRUPTED = ("board", "second", "nan")
NAN = np.float32(np.nan).tobytes()
STEPS = 40
RECIPE = (
    "--config=configs/demo.py:scratch",
    "--config.model.num_hidden_layers=1",
    "--config.model.hidden_size=16",
    "--config.model.intermediate_size=32",
    "--config.model.vocab_size=300",
    "--config.data.packed=False",
    "--config.train.batch_size=32",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every_steps=1",
    "--config.optimizer.warmup_steps=4",
    "--config.eval.every_steps=10",
    "--config.checkpoint.every_steps=2",
    "--config.mesh.data=1",
)


class Breaker:
    """Break and resume runs in one folder; they share a little data and the compiled programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "sentences.txt").write_text("\n".join(demo.sentences(count=1500)) + "\n", encoding="utf-8")
        graded = [f"{score}\t{first}\t{second}" for score, first, second in demo.graded_pairs(split="dev")[:60]]
        (folder / "dev.tsv").write_text("\n".join(graded) + "\n", encoding="utf-8")

    def start(self, name: str, log: str = "") -> subprocess.Popen[str]:
        """Start the training command; its output is appended to `name.log`."""
        flags = (
            f"--workdir={self.folder / name}",
            f"--config.data.files={self.folder / 'sentences.txt'}",
            f"--config.eval.data={self.folder / 'dev.tsv'}",
            f"--config.data.cache_dir={self.folder / (f'{name}-cache' if 'corpus' in name else 'cache')}",
        )
        return self._command(log or name, "train", *RECIPE, *flags)

    def _command(self, log: str, module: str, *flags: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        environment.pop("XLA_FLAGS", None)
        command = [sys.executable, "-m", f"simcse_jax.{module}", *flags]
        with (self.folder / f"{log}.log").open("a") as file:
            return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True)

    def whole(self) -> Any:
        """Return the parameters of an unbroken run."""
        if self.start("whole").wait():
            raise RuntimeError((self.folder / "whole.log").read_text())
        return load_run_params(self.folder / "whole")[0]

    def broken(self, number: int, seed: int, expected: Any) -> dict[str, Any]:
        """Break one run, resume it, and return how it ended."""
        kinds = FLAGS.kind or KINDS
        kind, chance = kinds[number % len(kinds)], random.Random(f"{seed}-{number}")
        name = f"run-{number}-{kind}"
        workdir, refused = self.folder / name, []  # of commands: whether they were refused as they had to be
        if kind == "board":
            workdir.mkdir()
            (workdir / "tensorboard").touch()
        process = self.start(name)
        moment = self._await_moment(process, name, kind, chance)
        if kind == "second":
            status = self.start(name, f"{name}-again").wait()
            refused.append(status == 2 and str(process.pid) in (self.folder / f"{name}-again.log").read_text())
        if kind not in UNINTERRUPTED:
            process.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
        ended = status = process.wait()
        at = max((line["step"] for line in read_metrics(workdir)), default=-1)
        if kind == "both":
            (workdir / "checkpoints").mkdir(exist_ok=True, parents=True)  # a run that failed at its start has none
            shutil.copytree(workdir / "checkpoints", self.folder / f"{name}-copy")
        damage = self._damage(name, kind, chance)
        if kind == "both":
            refused += [self.start(name).wait() == 2 for _ in range(2)]
            shutil.rmtree(workdir / "checkpoints")
            shutil.copytree(self.folder / f"{name}-copy", workdir / "checkpoints")
        if kind not in UNINTERRUPTED:
            status = self.start(name).wait()
        same = status == 0 and _equal(load_run_params(workdir)[0], expected)
        if kind == "nan" and same:
            refused.append(self._embed_refuses(workdir))
        log = (self.folder / f"{name}.log").read_text()
        aside = log.count("set aside as")
        wanted = {"term": 143, **dict.fromkeys(UNINTERRUPTED, 0)}.get(kind, -signal.SIGKILL)
        return {
            "run": number,
            "kind": kind,
            "moment": moment,
            "ended with": ended,
            "at step": at,
            "damage": damage,
            "set aside": aside,
            "refused": refused,
            "as meant": ended == wanted and all(refused) and (aside > 0) == (kind in ("truncate", "flip", "both")),
            "resumed from": [int(part.split()[0]) for part in log.split("resumed from step ")[1:]],
            "same": same,
        }

    def _embed_refuses(self, workdir: Path) -> bool:
        """Return whether `embed` refuses the exported model with NaN as its first number, and writes nothing."""
        weights, out = workdir / "model" / "model.safetensors", workdir / "vectors.parquet"
        content = bytearray(weights.read_bytes())
        first = 8 + int.from_bytes(content[:8], "little")
        content[first : first + len(NAN)] = NAN
        weights.write_bytes(content)
        flags = (f"--model={weights.parent}", f"--input={self.folder / 'dev.tsv'}", f"--out={out}")
        return self._command(f"{workdir.name}-embed", "embed", *flags).wait() == 2 and not out.exists()

    def _await_moment(self, process: subprocess.Popen[str], name: str, kind: str, chance: random.Random) -> str:
        """Wait until it is time to break the run, and return a description of that moment."""
        workdir = self.folder / name
        if kind == "kill" and chance.random() < 0.3:
            delay = chance.uniform(0.0, 12.0)
            time.sleep(delay)
            return f"{delay:.2f} s after the start"
        step = chance.randint(4 if kind in ("truncate", "flip", "both") else 1, STEPS - 6)
        while process.poll() is None and max((line["step"] for line in read_metrics(workdir)), default=-1) < step:
            time.sleep(0.002)
        needed = {"truncate": 1, "flip": 1, "both": 2}.get(kind, 0)  # complete checkpoints to damage
        while process.poll() is None and len(complete_steps(workdir / "checkpoints" / "last")) < needed:
            time.sleep(0.002)
        if kind == "save":
            while process.poll() is None and not list(workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*")):
                pass
        delay = chance.uniform(0.0, 0.03)
        time.sleep(delay)
        return f"{1000 * delay:.0f} ms after {'a save began past ' if kind == 'save' else ''}step {step}"

    def _damage(self, name: str, kind: str, chance: random.Random) -> str:
        """Damage files of the run as the kind says, and return what was done."""
        workdir = self.folder / name
        if kind == "torn":
            with (workdir / "metrics.jsonl").open("r+b") as file:
                content = file.read()
                file.truncate(max(len(content) - chance.randint(1, 20), 0))
                file.seek(0, os.SEEK_END)
                file.write(b'\n[]\nnull\n{"loss": 1}\n{"step": "x"}\n\xff\n' + b"[" * 100_000)
            return "metrics.jsonl"
        if kind == "corpus":
            tokens = max((self.folder / f"{name}-cache").rglob("*.arrow"), key=_size)
            return ", ".join(_flip(tokens, chance) for _ in range(20))
        saved = [path for path in (workdir / "checkpoints" / "last").glob("*") if path.name.isdigit()]
        if kind not in ("truncate", "flip", "both") or not saved:
            return ""
        newest = max(saved, key=lambda path: int(path.name))
        states = {
            path: [file for file in (path / "state").rglob("*") if file.is_file() and _size(file)] for path in saved
        }
        if kind != "truncate":  # in the arrays themselves: the largest files hold them
            broken = saved if kind == "both" else [newest]
            return ", ".join(_flip(max(states[path], key=_size), chance) for path in broken)
        cut = chance.sample(sorted(states[newest]), chance.randint(1, min(3, len(states[newest]))))
        for file in cut:
            os.truncate(file, chance.randrange(_size(file)))
        return ", ".join(str(file.relative_to(newest)) for file in cut)


def _size(path: Path) -> int:
    return path.stat().st_size


def _flip(path: Path, chance: random.Random) -> str:
    """Flip one bit of a file, and return which."""
    content = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.name}"


def _equal(params: Any, expected: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, params, expected)))


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_integer("runs", 110, "How many runs to break.", lower_bound=1)
    flags.DEFINE_multi_enum("kind", [], KINDS, "Break runs in these ways only.")
    flags.DEFINE_integer("jobs", 2, "How many at a time.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the moments, files and bits.")
    flags.DEFINE_string("json", "", "Write the figures there as well.")


def main() -> int:
    """Break as many runs as the flags say; return 1 if one differs from the unbroken run."""
    with tempfile.TemporaryDirectory() as folder:
        breaker = Breaker(Path(folder))
        expected = breaker.whole()
        results = []
        with ThreadPoolExecutor(FLAGS.jobs) as pool:
            for result in pool.map(lambda number: breaker.broken(number, FLAGS.seed, expected), range(FLAGS.runs)):
                results.append(result)
                print(json.dumps(result), flush=True)
                if not result["same"]:
                    print((breaker.folder / f"run-{result['run']}-{result['kind']}.log").read_text(), file=sys.stderr)
    for kind in KINDS:
        of_kind = [result for result in results if result["kind"] == kind]
        print(f"{kind}: {sum(result['same'] for result in of_kind)} of {len(of_kind)}")
    missed = [result["run"] for result in results if not result["as meant"]]
    if missed:
        print(f"not broken as they were meant to be: {', '.join(map(str, missed))}")
    good = sum(result["same"] and result["as meant"] for result in results)
    print(f"{good} of {len(results)} broken runs survived, and ended with the parameters of the unbroken one")
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(good < len(results))


if __name__ == "__main__":
    define_flags()
    cli.run(main)

r"""Run the proof on a machine with one GPU: parity, speed beside PyTorch, a real training; no network, 25 minutes.

    python -m benchmarks.on_gpu --out=DIR --sentences=wiki.txt --documents=wiki_docs.txt --triplets=nli.csv \
        --senteval=DIR --tokenizer=DIR --model=DIR

The parts, each a command whose output is in OUT/PART.log and whose figures are in OUT/PART.json. A part that has its
figures is not run again, so a broken run goes on where it stopped:

    parity      benchmarks.device_parity: embeddings and gradients against float64 on the CPU, plain and fused attention
    train-64, train-512, fused-64, fused-512
                benchmarks.train_speed: BERT-base in bfloat16 beside PyTorch eager, its fastest attention and
                torch.compile, with model FLOPs as a share of the measured peak
    encode      benchmarks.encode_speed: --model beside sentence-transformers
    real        a small encoder pretrained on --documents for 8 minutes, then unsupervised and supervised SimCSE from
                it, three seeds each; STS before and after

The end prints a table of all parts. --parts names some of them. --tiny runs all parts in sizes that a CPU finishes in
minutes, to see that the command works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from simcse_jax import cli
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

SIDES = "jax,torch-eager,torch,torch-compile"
PRETRAINING_S = 480
BATCH = 256  # of configs/pretrain.py
PROBE_STEPS = 60  # that tell how many steps fit into PRETRAINING_S
SEEDS = (0, 1, 2)
TASKS = "STS12,STS13,STS14,STS15,STS16,STSBenchmark,SICKRelatedness"


def commands() -> dict[str, list[str]]:
    """Return the parts that are one command each: its module and flags."""
    data = [f"--data={FLAGS.sentences}", f"--tokenizer={FLAGS.tokenizer}"]
    sizes = ["--model=bert-base", "--dtype=bfloat16", "--steps=20", "--rounds=5"]
    batches = (64, 512)
    if FLAGS.tiny:
        sizes, batches = ["--model=tiny", "--max_length=8", "--steps=1", "--rounds=1"], (2, 4)
    sides = "jax,torch" if FLAGS.tiny else SIDES
    found = {"parity": ["benchmarks.device_parity", f"--model={'tiny' if FLAGS.tiny else 'bert-base'}"]}
    for name, batch in zip(("64", "512"), batches, strict=True):
        train = ["benchmarks.train_speed", *data, *sizes, f"--batch={batch}"]
        found[f"train-{name}"] = [*train, f"--sides={sides}"]
        # Where the kernels do not run, plain attention is what they are compared with, and all there is.
        found[f"fused-{name}"] = [*train, "--sides=jax", f"--attention={'plain' if FLAGS.tiny else 'fused'}"]
    count = 40 if FLAGS.tiny else 20_000
    found["encode"] = ["benchmarks.encode_speed", f"--model={FLAGS.model}", f"--texts={FLAGS.sentences}"]
    found["encode"] += [f"--sentences={count}", "--peer_batch_size=128,512", f"--parts={2 if FLAGS.tiny else 10}"]
    return found


def run(log: Path, module: str, *arguments: str) -> None:
    """Run a module, its output appended to `log`; UserError with the log's end if it fails."""
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise UserError(f"{module} ended with status {done.returncode}; {log}:\n{end}")


def train_for_real(out: Path, log: Path) -> dict[str, Any]:
    """Pretrain, train both recipes with each seed, and score all; return the scores by model.

    Runs that ended in an earlier start are kept.
    """
    pretrained = _pretrain(out, log)
    models = {"pretrained": pretrained}
    short = ["--config.train.steps=4", "--config.eval.every_steps=2"] if FLAGS.tiny else []
    for variant, files in (("unsup", FLAGS.sentences), ("sup", FLAGS.triplets)):
        for seed in SEEDS[: 1 if FLAGS.tiny else None]:
            workdir = out / f"{variant}-{seed}"
            _train(log, workdir, f"small.py:{variant}", files, f"--config.model.name={pretrained}",
                   f"--config.train.seed={seed}", *short)  # fmt: skip
            models[f"{variant}, seed {seed}"] = workdir
    scores = {}
    for name, model in models.items():
        where = out / f"scores-{model.parent.name if name == 'pretrained' else model.name}"
        pooler = ["--pooler=avg"] if name == "pretrained" else []
        tasks = "STSBenchmark" if FLAGS.tiny else TASKS
        run(log, "simcse_jax.evaluate", f"--model={model}", f"--data={FLAGS.senteval}", f"--tasks={tasks}",
            f"--out={where}", *pooler)  # fmt: skip
        found = json.loads((where / "scores.json").read_text(encoding="utf-8"))["scores"]
        scores[name] = {task: of.get("all", of.get("spearman")) for task, of in found.items()}
    return {"scores": scores}


def _pretrain(out: Path, log: Path) -> Path:
    """Return the model folder of an encoder pretrained for PRETRAINING_S seconds, by the time that a probe takes."""
    workdir = out / "pretrained"
    plan = out / "pretraining-steps.json"
    if not plan.is_file():
        probe = 4 if FLAGS.tiny else PROBE_STEPS
        _train(log, out / "probe", "pretrain.py", FLAGS.documents, *_steps(probe))
        rates = [line["sentences_per_s"] for line in read_metrics(out / "probe") if "sentences_per_s" in line]
        per_step = BATCH / float(np.median(rates[len(rates) // 2 :]))
        steps = 4 if FLAGS.tiny else max(int(PRETRAINING_S / max(per_step, 1e-3)), 500)
        plan.write_text(json.dumps({"steps": steps, "seconds a step": per_step}), encoding="utf-8")
    steps = json.loads(plan.read_text(encoding="utf-8"))["steps"]
    _train(log, workdir, "pretrain.py", FLAGS.documents, *_steps(steps))
    return workdir / "model"


def _steps(count: int) -> list[str]:
    small = ["--config.train.batch_size=8", "--config.model.vocab_size=300"] if FLAGS.tiny else []
    warm_up = f"--config.optimizer.warmup_steps={min(500, count // 4)}"
    return ["--config.train.epochs=0", f"--config.train.steps={count}", warm_up, *small]


def _train(log: Path, workdir: Path, recipe: str, files: str, *changes: str) -> None:
    """Run or resume one training; a run that has ended returns at once."""
    config = Path(__file__).parents[1] / "configs" / recipe
    run(log, "simcse_jax.train", f"--config={config}", f"--workdir={workdir}", f"--config.data.files={files}",
        "--config.train.log_every_steps=1" if workdir.name == "probe" else "--config.train.log_every_steps=50",
        *changes)  # fmt: skip


def summary(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the table of all parts that have figures."""
    for name, found in figures.items():
        yield f"\n## {name}: {found['minutes']:.1f} min"
        if name == "parity":
            yield from (f"- {line}" for line in found["lines"])
        elif "sides" in found:
            for side, of in found["sides"].items():
                ratio = f", ours is {found['ratio'][side]:.2f} x" if side in found["ratio"] else ""
                median, share = 1e3 * of["seconds a step"]["median"], of["share of peak"]
                yield f"- {side}: {median:,.2f} ms a step, {share:.1%} of the peak{ratio}"
        elif "scores" in found:
            for model, of in found["scores"].items():
                yield f"- {model}: {np.mean(list(of.values())):.2f} mean of {len(of)} tasks"
        else:
            yield from (f"- {side}: ours is {ratio:.2f} x" for side, ratio in found["ratio"].items())


def main() -> None:
    """Run the parts that the flags name and that have no figures yet."""
    out = Path(FLAGS.out).expanduser().resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = commands()
    unknown = [name for name in FLAGS.parts if name not in (*parts, "real")]
    if unknown:
        raise UserError(f"--parts: {unknown[0]!r} is unknown.\nUse some of {', '.join((*parts, 'real'))}.")
    figures = {}
    for name in FLAGS.parts or (*parts, "real"):
        result, log = out / f"{name}.json", out / f"{name}.log"
        if not result.is_file():
            print(f"{name} ...", flush=True)
            start, partial = time.monotonic(), out / f"{name}.partial"
            if name == "real":
                found = train_for_real(out, log)
            else:
                module, *arguments = parts[name]
                run(log, module, *arguments, f"--json={partial}")
                found = json.loads(partial.read_text(encoding="utf-8"))
            found["minutes"] = (time.monotonic() - start) / 60
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            partial.replace(result)
        figures[name] = json.loads(result.read_text(encoding="utf-8"))
    print("\n".join(summary(figures)))


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("out", "on_gpu", "Folder of the results.")
    flags.DEFINE_string("sentences", "", "File of sentences: training and encoding.")
    flags.DEFINE_string("documents", "", "File of sentences in documents: pretraining.")
    flags.DEFINE_string("triplets", "", "CSV of sent0, sent1, hard_neg: supervised training.")
    flags.DEFINE_string("senteval", "", "SentEval's folder: STS.")
    flags.DEFINE_string("tokenizer", "", "Folder of a tokenizer, such as that of bert-base-uncased.")
    flags.DEFINE_string("model", "", "Folder of a model that sentence-transformers reads: encoding.")
    flags.DEFINE_list("parts", [], "Some of the parts; default: all.")
    flags.DEFINE_bool("tiny", False, "Sizes for a CPU, to see that the command works.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""Measure training speed beside PyTorch: the same sentences in the same batches, in one run, in alternation.

    python -m benchmarks.train_speed --model=bert-base --batch=64 --data=sentences.txt --tokenizer=DIR --json=FILE
    python -m benchmarks.train_speed --model=bert-large --batch=512 --dtype=bfloat16 ...    # on a GPU

Every side trains unsupervised SimCSE from the same random weights, of a BERT or another family: dropout 0.1 everywhere,
the MLP head, InfoNCE at temperature 0.05, AdamW with linear decay, clipping at 1. The sides (--sides):

    jax                    ours: sentences packed into rows
    torch                  transformers' model padded to the batch's longest, both views in one batch, PyTorch's
                           attention kernels, fused AdamW, autocast for bfloat16
    torch-autocast         `torch` with autocast to bfloat16, whatever --dtype
    torch-eager            the same with transformers' plain attention
    torch-compile          `torch` with torch.compile
    sentence-transformers  its own trainer (pip install 'sentence-transformers[train]'), tokenising included

Each side is a separate process on one device, and they take turns: a round times --steps steps of each, and every
second round reverses the order. Batches are made before the clock starts. First, the losses of `jax` and `torch` are
compared in float32 with dropout off, updates included; sides that disagree are not timed.

Reported are median and quartiles over rounds. Tokens are real ones of both views; model FLOPs are those that these
tokens need, and their share is of the fastest large matrix product timed between the rounds. The first step includes
compilation. Peak memory is the device's; on a CPU the process's, libraries and compiler included. The ratio is to our
seconds in the same round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.sizes import ENCODERS
from benchmarks.train_work import VIEWS, Work
from benchmarks.workers import Worker
from simcse_jax import cli
from simcse_jax.encoder.architecture import ATTENTIONS
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

OURS = "jax"
# Side: its module, and arguments beside the work.
SIDES: dict[str, tuple[str, tuple[Any, ...]]] = {
    OURS: ("benchmarks.train_ours", ()),
    "torch": ("benchmarks.train_torch", ()),
    "torch-autocast": ("benchmarks.train_torch", (False, "sdpa", True)),
    "torch-eager": ("benchmarks.train_torch", (False, "eager")),
    "torch-compile": ("benchmarks.train_torch", (True,)),
    "sentence-transformers": ("benchmarks.train_sentence_transformers", ()),
}
CHECKED_STEPS = 5
WARM_UP_STEPS = 3  # the first step, and steps that no round counts
LOSS_TOLERANCE = 1e-4  # relative
NORM_TOLERANCE = 1e-3  # relative; of the gradient


def started(side: str, work: Work) -> Worker:
    """Start a side in its own process."""
    module, arguments = SIDES[side]
    return Worker(module, "Side", work, *arguments)


def share_and_check(work: Work, with_torch: bool) -> dict[str, float]:
    """Have our side write what all share; return the worst relative differences to PyTorch.

    Raises UserError if they are too large.
    """
    check = dataclasses.replace(work, dropout=0.0, dtype="float32", products="float32", attention="plain")
    with started(OURS, check) as ours:
        ours.call("share")
        if not with_torch:
            return {}
        a = np.array(ours.call("losses", CHECKED_STEPS))
    with started("torch", check) as theirs:
        b = np.array(theirs.call("losses", CHECKED_STEPS))
    loss, norm = (np.abs(a - b) / np.abs(b)).max(0).tolist()
    if not (loss <= LOSS_TOLERANCE and norm <= NORM_TOLERANCE):
        raise UserError(
            f"The two sides disagree over {CHECKED_STEPS} steps without dropout: losses by {loss:.1e} "
            f"({LOSS_TOLERANCE:.0e} is allowed), gradient norms by {norm:.1e} ({NORM_TOLERANCE:.0e}).\n"
            "They do not train alike, so there is nothing to time."
        )
    return {"loss": loss, "gradient norm": norm}


def measure(work: Work, sides: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Return the results: `sides` by name, and `ratio` by peer, which is above 1 where our side is faster.

    work.steps must be those of all rounds and of the warm-up. Our side is measured whether or not it is among `sides`.
    """
    sides = [OURS, *(side for side in sides if side != OURS)]
    torch_too = len(sides) > 1
    differences = share_and_check(work, torch_too)
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(started(side, work)) for side in sides}
        frameworks = ["jax", "torch"] if torch_too else ["jax"]
        products = stack.enter_context(Worker("benchmarks.matrix_peak", "Products", work.dtype, frameworks))
        first_steps = {side: worker.call("first_step") for side, worker in workers.items()}
        for worker in workers.values():
            worker.call("steps", 1, WARM_UP_STEPS)
        times: dict[str, list[float]] = {side: [] for side in sides}
        rates: list[dict[str, float]] = []
        for number in range(rounds):
            first = WARM_UP_STEPS + number * steps
            for side in sides if number % 2 == 0 else reversed(sides):
                times[side].append(workers[side].call("steps", first, first + steps) / steps)
            rates.append(products.call("rates"))
        about = {side: worker.call("about") for side, worker in workers.items()}
        memory = {side: worker.call("peak_memory") for side, worker in workers.items()}
    lengths = work.lengths()[WARM_UP_STEPS : WARM_UP_STEPS + rounds * steps]
    peak = max(rate for each in rates for rate in each.values())
    found = {
        "differences without dropout": differences,
        "cpus": len(os.sched_getaffinity(0)),
        "batch size": work.batch_size,
        "max length": work.max_length,
        "dtype": work.dtype,
        "products": work.products,
        "steps a round": steps,
        "tokens a sentence": float(lengths.mean()),
        "model FLOPs a step": (flops := work.flops(lengths)),
        "matrix peak, FLOP/s": {"best": peak, "all": rates},
        "sides": {},
        "ratio": {},
    }
    for side in sides:
        low, median, high = np.percentile(times[side], [25, 50, 75]).tolist()
        found["sides"][side] = {
            "about": about[side],
            "seconds a step": {"median": median, "quartiles": [low, high], "all": times[side]},
            "sentences/s": work.batch_size / median,
            "tokens/s": VIEWS * float(lengths.sum(1).mean()) / median,
            "model FLOP/s": flops / median,
            "share of peak": flops / median / peak,
            "peak memory, bytes": memory[side],
            "first step, seconds": first_steps[side],
        }
        if side != OURS:
            found["ratio"][side] = float(np.median(np.divide(times[side], times[OURS])))
    return found


def table(figures: dict[str, Any]) -> list[str]:
    """Return a line for each side, as Markdown."""
    lines = [
        "| side | ms a step (quartiles) | sentences/s | tokens/s | model GFLOP/s | of the peak | peak MiB "
        "| first step s | ours is |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, side in figures["sides"].items():
        seconds = side["seconds a step"]
        low, high = (1e3 * quartile for quartile in seconds["quartiles"])
        cells = [
            name,
            f"{1e3 * seconds['median']:,.1f} ({low:,.1f} to {high:,.1f})",
            f"{side['sentences/s']:,.1f}",
            f"{side['tokens/s']:,.0f}",
            f"{side['model FLOP/s'] / 1e9:,.1f}",
            f"{side['share of peak']:.1%}",
            f"{side['peak memory, bytes'] / 2**20:,.0f}",
            f"{side['first step, seconds']:.1f}",
            f"{figures['ratio'][name]:.2f} x" if name in figures["ratio"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(figures: dict[str, Any], title: str, path: str) -> None:
    """Plot sentences a second of each side, with quartiles."""
    from matplotlib.figure import Figure

    sides = figures["sides"]
    speeds = [side["sentences/s"] for side in sides.values()]
    # The upper quartile of the time is the lower one of the speed.
    ends = np.array([figures["batch size"] / np.array(side["seconds a step"]["quartiles"]) for side in sides.values()])
    figure = Figure(figsize=(7, 1 + 0.6 * len(sides)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(sides), speeds, xerr=np.abs(ends[:, ::-1].T - speeds), capsize=3)
    ratio = figures["ratio"]
    labels = [
        f"{speed:,.1f}" + (f", ours {ratio[n]:.2f} x" if n in ratio else "")
        for n, speed in zip(sides, speeds, strict=True)
    ]
    axes.bar_label(bars, labels, padding=6)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set(xlabel="sentences/s", title=title)
    figure.savefig(path, dpi=150)


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_enum("model", "bert-base", list(ENCODERS), "Whose sizes; weights are random.")
    flags.DEFINE_string("data", "", "Sentences to train on, as train's data.files.")
    flags.DEFINE_string("tokenizer", "", "A folder with the tokenizer, such as that of bert-base-uncased.")
    flags.DEFINE_integer("batch", 64, "Sentences a step.", lower_bound=2)
    flags.DEFINE_integer("max_length", 32, "Tokens of the longest sentence.", lower_bound=3)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the encoder computes in.")
    flags.DEFINE_enum("products", "float32", ["float32", "bfloat16", "auto"], "Our model.products.")
    flags.DEFINE_enum("unroll", "auto", ["auto", "on", "off"], "Our model.unroll.")
    flags.DEFINE_enum("attention", "auto", list(ATTENTIONS), "Our model.attention.")
    flags.DEFINE_list("sides", [OURS, "torch", "torch-compile"], f"Some of {', '.join(SIDES)}; {OURS} is always one.")
    flags.DEFINE_integer("steps", 10, "Steps of each side in a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 7, "How often each side has its turn.", lower_bound=1)
    flags.DEFINE_string("json", "", "Write the figures there as well.")
    flags.DEFINE_string("plot", "", "Draw sentences/s there (.png, .svg or .pdf).")


def main() -> None:
    """Measure as the flags say."""
    if not FLAGS.data or not FLAGS.tokenizer:
        raise UserError("--data=FILE and --tokenizer=DIR are needed: sentences, and the tokenizer's folder.")
    unknown = [side for side in FLAGS.sides if side not in SIDES]
    if unknown:
        raise UserError(f"--sides: {unknown[0]!r} is unknown.\nUse some of {','.join(SIDES)}.")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share a GPU's memory
    total = WARM_UP_STEPS + FLAGS.rounds * FLAGS.steps
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            Path(folder),
            FLAGS.data,
            str(Path(FLAGS.tokenizer).absolute()),
            ENCODERS[FLAGS.model],
            FLAGS.batch,
            FLAGS.max_length,
            FLAGS.dtype,
            max(total, CHECKED_STEPS),
            unroll=FLAGS.unroll,
            products=FLAGS.products,
            attention=FLAGS.attention,
        )
        figures = measure(work, FLAGS.sides, FLAGS.steps, FLAGS.rounds)
    title = f"{FLAGS.model}, batch {FLAGS.batch}, {FLAGS.max_length} tokens, {FLAGS.dtype}"
    for side, found in figures["sides"].items():
        print(f"{side}: {found['about']}")
    for what, difference in figures["differences without dropout"].items():
        print(f"without dropout, {CHECKED_STEPS} steps: the {what} of jax and torch differ by {difference:.1e} at most")
    print(
        f"\n{title}; {figures['tokens a sentence']:.1f} tokens a sentence, {FLAGS.rounds} rounds of {FLAGS.steps} "
        f"steps, {figures['cpus']} CPUs; matrix peak {figures['matrix peak, FLOP/s']['best'] / 1e9:,.0f} GFLOP/s\n"
    )
    print("\n".join(table(figures)))
    if FLAGS.json:
        layout = {"unroll": FLAGS.unroll, "attention": FLAGS.attention}
        content = json.dumps({"model": FLAGS.model, **layout, **figures}, indent=2)
        Path(FLAGS.json).write_text(content + "\n", encoding="utf-8")
    if FLAGS.plot:
        draw(figures, title, FLAGS.plot)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

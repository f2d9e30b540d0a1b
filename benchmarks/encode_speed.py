"""Encoding speed, ours beside sentence-transformers': the sentences of the seven STS tasks, in one run, in alternation.

    python -m benchmarks.encode_speed --model=DIR --data=senteval --json=FILE

Both encode the same distinct sentences of the same model folder in float32, sorted by length, on all cores. A round
times each side once; medians and spread are over rounds. Ours is compiled anew by each process, so its first pass is
timed too. --peer_batch_size: sentence-transformers' own (its default is 32), several to give it its best.
Needs PyTorch and sentence-transformers.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from simcse_jax import cli
from simcse_jax.embedding_model import open_model
from simcse_jax.errors import UserError
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.sts import TASKS, load_sts

FLAGS = flags.FLAGS


def sentences(data: str, count: int) -> list[str]:
    """The distinct sentences of the seven STS tasks, or `count` of them drawn at random."""
    folder = senteval_folder(data)
    parts = [pairs for task in TASKS for pairs in load_sts(folder, task).values()]
    distinct = list(dict.fromkeys(text for pairs in parts for text in (*pairs.first, *pairs.second)))
    if not count:
        return distinct
    return [distinct[n] for n in np.random.default_rng(0).permutation(len(distinct))[:count]]


def seconds(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    """How long it took."""
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start


def measure(model: str, texts: list[str], rounds: int, batch_sizes: list[int]) -> dict[str, Any]:
    """The figures: seconds of each side, and `ratio` by peer, which is above 1 where ours is faster."""
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(model)

    def ours(some: list[str]) -> np.ndarray:
        # A fresh order, so that nothing is taken from what is kept of the round before.
        return encoder.encode([some[n] for n in rng.permutation(len(some))])

    def theirs(batch_size: int) -> Callable[[list[str]], Any]:
        return lambda some: peer.encode(some, batch_size=batch_size, show_progress_bar=False)

    encoder, rng = open_model(model), np.random.default_rng(0)
    sides = {"simcse_jax": ours} | {f"sentence-transformers, batch {size}": theirs(size) for size in batch_sizes}
    a, b = encoder.encode(texts[:512]), peer.encode(texts[:512], show_progress_bar=False)
    worst = float(np.abs(a - b).max() / np.abs(b).max())
    if worst > 1e-4:
        raise UserError(
            f"The two sides disagree by {worst:.1e}: they do not encode alike, so there is nothing to time."
        )
    first = seconds(open_model(model).encode, texts)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for encode in sides.values():
        encode(texts[:512])
    ours(texts)  # compiles every shape
    for _ in range(rounds):
        for name, encode in sides.items():
            times[name].append(seconds(encode, texts))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "sentences": len(texts),
        "worst relative difference": worst,
        "seconds": {name: {"median": medians[name], "all": values} for name, values in times.items()},
        "first pass": first,
        "ratio": {name: medians[name] / medians["simcse_jax"] for name in sides if name != "simcse_jax"},
        "ratio of a first pass": {name: medians[name] / first for name in sides if name != "simcse_jax"},
    }


def define_flags() -> None:
    """The command's flags; only the command has them, so that other commands' tests may import this file."""
    flags.DEFINE_string("model", "", "A model folder that both sides can read.")
    flags.DEFINE_string("data", "", "SentEval's data: its folder or a senteval.tar. Default: fetched from the Hub.")
    flags.DEFINE_integer("rounds", 5, "How often each side encodes everything.", lower_bound=1)
    flags.DEFINE_integer("sentences", 0, "Encode that many sentences, drawn at random; 0 = all.", lower_bound=0)
    flags.DEFINE_list("peer_batch_size", ["32", "128"], "sentence-transformers' batch sizes.")
    flags.DEFINE_string("json", "", "Write the figures there as well.")


def main() -> None:
    """Measure as the flags say."""
    if not FLAGS.model:
        raise UserError("--model=DIR is needed: a model folder that sentence-transformers reads too.")
    texts = sentences(FLAGS.data, FLAGS.sentences)
    figures = measure(FLAGS.model, texts, FLAGS.rounds, [int(size) for size in FLAGS.peer_batch_size])
    print(f"{figures['sentences']:,} sentences, {FLAGS.rounds} rounds")
    for name, times in figures["seconds"].items():
        span = f"{min(times['all']):.1f} to {max(times['all']):.1f}"
        ratio = figures["ratio"].get(name)
        print(f"  {name:40s} {times['median']:6.1f} s ({span})" + (f", ours is {ratio:.2f} x as fast" if ratio else ""))
    print(f"  our first pass in a process, weights and compilation included: {figures['first pass']:.1f} s")
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

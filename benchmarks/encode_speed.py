"""Measure encoding speed beside sentence-transformers: the same sentences, in one run, in alternation.

    python -m benchmarks.encode_speed --model=DIR --texts=sentences.txt --sentences=20000 --json=FILE

Both sides encode the same distinct sentences with the same model folder in float32, on all cores, and each sorts them
by length in its own way. The sentences are split into parts, and the sides take turns part by part. The ratio is that
of the summed seconds, and its spread that over the parts. All vectors of the two sides must agree within 2e-5 in every
coordinate (1e-2 with --products=bfloat16, which rounds the factors of our products, 5e-2 with int8). Our side compiles
in each process, so a first part is timed too, from opening the model. Peak memory is that of a process which loads the
model and encodes one part.

--peer_batch_size: sentence-transformers' batch size (its default is 32); give several to find its best. Without
--texts: the sentences of the seven STS tasks. Needs PyTorch and sentence-transformers.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import process_memory
from simcse_jax import cli
from simcse_jax.data.texts import open_column
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.sts import TASKS, load_sts
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

OURS = "simcse_jax"
# How much a coordinate of the two sides may differ, by our products.
CLOSE = {"float32": 2e-5, "bfloat16": 1e-2, "int8": 5e-2}
Encode = Callable[[list[str]], np.ndarray]


def sts_sentences(data: str) -> list[str]:
    """Return the sentences of the seven STS tasks."""
    folder = senteval_folder(data)
    parts = [pairs for task in TASKS for pairs in load_sts(folder, task).values()]
    return [text for pairs in parts for text in (*pairs.first, *pairs.second)]


def distinct(texts: list[str], count: int) -> list[str]:
    """Return each text once, or `count` of them drawn at random; 0 = all."""
    once = list(dict.fromkeys(texts))
    return [once[n] for n in np.random.default_rng(0).permutation(len(once))[: count or None]]


def peer_model(folder: str) -> Any:
    """Return sentence-transformers' own model of the folder, in float32."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, trust_remote_code=False)


def sides(folder: str, batch_sizes: list[int], products: str) -> dict[str, Encode]:
    """Return the encode functions to compare by name, ours first; both cut texts at sentence-transformers' length."""
    peer = peer_model(folder)
    encoder = open_model(folder, max_length=peer.max_seq_length, products=products)
    rng = np.random.default_rng(0)

    def ours(texts: list[str]) -> np.ndarray:
        # A new order, so that no packed block of the round before can be used again.
        order = rng.permutation(len(texts))
        vectors = np.empty((len(texts), encoder.width), np.float32)
        vectors[order] = encoder.encode([texts[n] for n in order])
        return vectors

    def theirs(batch_size: int) -> Encode:
        return lambda texts: peer.encode(texts, batch_size=batch_size, show_progress_bar=False)

    return {OURS: ours} | {f"sentence-transformers, batch {size}": theirs(size) for size in batch_sizes}


def seconds(encode: Encode, texts: list[str]) -> tuple[float, np.ndarray]:
    """Return the seconds that the call took, and its result."""
    start = time.perf_counter()
    vectors = encode(texts)
    return time.perf_counter() - start, vectors


def peak_memory(folder: str, texts: list[str], batch_size: int, products: str) -> dict[str, float]:
    """Return the peak MiB of a process that loads one side's model and encodes the texts."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, size in ((OURS, 0), (f"sentence-transformers, batch {batch_size}", batch_size)):
        with context.Pool(1) as pool:
            found[name] = pool.apply(_encode_once, (folder, texts, size, products))
    return found


def _encode_once(folder: str, texts: list[str], batch_size: int, products: str) -> float:
    if batch_size:  # 0 is our side
        peer_model(folder).encode(texts, batch_size=batch_size, show_progress_bar=False)
    else:
        open_model(folder, products=products).encode(texts)
    return process_memory.peak() / 2**20


def measure(model: str, parts: list[list[str]], batch_sizes: list[int], products: str = "float32") -> dict[str, Any]:
    """Return the results: seconds of each side by part, and for each peer how many times faster our side is."""
    first = seconds(lambda texts: open_model(model, products=products).encode(texts), parts[0])[0]
    compared = sides(model, batch_sizes, products)
    for encode in compared.values():
        encode(parts[0])  # compiles every shape and fills the caches
    times: dict[str, list[float]] = {name: [] for name in compared}
    worst = 0.0
    for part in parts:
        vectors = {}
        for name, encode in compared.items():
            taken, vectors[name] = seconds(encode, part)
            times[name].append(taken)
        worst = float(np.max([worst, *(np.abs(vectors[OURS] - other).max() for other in vectors.values())]))
    if not worst <= CLOSE[products]:  # `not <=` also catches NaN
        raise UserError(f"The sides disagree by {worst:.1e}: they do not encode alike, so no times are told.")
    return {
        "products": products,
        "sentences": sum(map(len, parts)),
        "parts": len(parts),
        "worst difference": worst,
        "seconds": times,
        "first part": first,
        "ratio": {name: sum(times[name]) / sum(times[OURS]) for name in compared if name != OURS},
        "ratio by part": {
            name: [theirs / ours for theirs, ours in zip(times[name], times[OURS], strict=True)]
            for name in compared
            if name != OURS
        },
        "peak MiB": peak_memory(model, parts[0], batch_sizes[0], products),
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Return lines: how the vectors agree, a line for each side, and the time of our first part."""
    count = figures["sentences"]
    lines = [
        f"{count:,} sentences in {figures['parts']} parts, our products of {figures['products']}; vectors differ by "
        f"{figures['worst difference']:.1e} at most"
    ]
    for name, times in figures["seconds"].items():
        line = f"  {name:34s} {sum(times):6.1f} s, {count / sum(times):,.0f} sentences/s"
        if name in figures["ratio"]:
            low, high = min(figures["ratio by part"][name]), max(figures["ratio by part"][name])
            line += f"; ours is {figures['ratio'][name]:.2f} x as fast ({low:.2f} to {high:.2f} by part)"
        lines.append(line + (f"; peak {figures['peak MiB'][name]:,.0f} MiB" if name in figures["peak MiB"] else ""))
    first = f"  our first part in a process, weights and compilation included: {figures['first part']:.1f} s"
    return [*lines, first]


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("model", "", "A model folder that both sides can read.")
    flags.DEFINE_list("texts", [], "Files of sentences; without any, those of the STS tasks.")
    flags.DEFINE_string("data", "", "SentEval's data: its folder or a senteval.tar. Default: fetched from the Hub.")
    flags.DEFINE_integer("parts", 10, "Into how many parts the sentences are dealt.", lower_bound=1)
    flags.DEFINE_integer("sentences", 0, "Encode that many sentences, drawn at random; 0 = all.", lower_bound=0)
    flags.DEFINE_enum("products", "float32", list(CLOSE), "Factors of our matrix products.")
    flags.DEFINE_list("peer_batch_size", ["32", "128"], "sentence-transformers' batch sizes.")
    flags.DEFINE_string("json", "", "Write the figures there as well.")


def main() -> None:
    """Measure as the flags say."""
    if not FLAGS.model:
        raise UserError("--model=DIR is needed: a model folder that sentence-transformers reads too.")
    found = list(open_column(FLAGS.texts)) if FLAGS.texts else sts_sentences(FLAGS.data)
    texts = distinct(found, FLAGS.sentences)
    parts = [texts[n :: FLAGS.parts] for n in range(FLAGS.parts)]
    figures = measure(FLAGS.model, parts, [int(size) for size in FLAGS.peer_batch_size], FLAGS.products)
    print("\n".join(table(figures)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

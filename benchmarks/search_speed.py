"""Measure search speed beside NumPy and faiss: the same vectors and queries, in one run, in alternation.

    python -m benchmarks.search_speed --vectors=1000000 --width=384 --queries=100 --json=FILE

Exact: our index with each storage, NumPy (product and argpartition, block by block), faiss IndexFlatIP. Approximate,
through our index: binary codes, rescored from float32 and from int8 vectors, HNSW and IVF-PQ, with the time to build
them. Bytes are of a vector as it is stored, its code included. A round times each side once, all queries together;
medians and spread are over rounds. Recall is against NumPy's results. Memory is a search's peak above what was held
before it, so without the stored vectors. Vectors are drawn in clusters near a space of 64 dimensions, as vectors of
sentences are: in 384 independent dimensions, all neighbours would be equally far. Needs faiss.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import process_memory
from simcse_jax import cli
from simcse_jax.serving.index.approximate import load_faiss
from simcse_jax.serving.index.binary import words
from simcse_jax.serving.index.rows import STORAGES
from simcse_jax.serving.index.sentence_index import SentenceIndex

FLAGS = flags.FLAGS

LATENT = 64  # dimensions in which clusters and their members differ
CLUSTER = 1000  # vectors in a cluster
BLOCK = 65536  # vectors that NumPy draws, adds and multiplies together
OURS = "exact, float32"
RESCORED = ("float32", "int8")  # storages that binary codes are rescored from
Search = Callable[[], np.ndarray]  # int64[Q, k], ids of the results


def made(count: int, width: int, seed: int = 0) -> Callable[[int], np.ndarray]:
    """Return a function that draws float32[n, width] unit vectors, around the same centres at each call."""
    rng = np.random.default_rng(seed)
    latent = min(LATENT, width)
    centres = rng.standard_normal((max(1, count // CLUSTER), latent), np.float32)
    basis = rng.standard_normal((latent, width), np.float32) / np.float32(latent**0.5)

    def draw(n: int) -> np.ndarray:
        inner = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, latent), np.float32)
        vectors = inner @ basis + 0.1 * rng.standard_normal((n, width), np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return draw


def numpy_search(vectors: np.ndarray, queries: np.ndarray, top_k: int) -> np.ndarray:
    """Return the ids of the best, by product and argpartition, block by block."""
    scores, ids = [], []
    for at in range(0, len(vectors), BLOCK):
        some = queries @ vectors[at : at + BLOCK].T
        best = np.argpartition(some, -min(top_k, some.shape[1]), axis=1)[:, -top_k:]
        scores.append(np.take_along_axis(some, best, axis=1))
        ids.append(best + at)
    all_scores, all_ids = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
    return np.take_along_axis(all_ids, np.argsort(-all_scores, axis=1, kind="stable")[:, :top_k], axis=1)


def our_side(
    vectors: np.ndarray, queries: np.ndarray, top_k: int, kind: str, storage: str
) -> tuple[Search, dict[str, float]]:
    """Return a search through an index of ours, and the seconds to add and build."""
    index = SentenceIndex(vectors.shape[1], "benchmark", kind, storage)
    start = time.perf_counter()
    for at in range(0, len(vectors), BLOCK):
        some = vectors[at : at + BLOCK]
        index.add([""] * len(some), some)
    index.prepare()
    known = {"build_s": time.perf_counter() - start}
    if kind in ("exact", "binary"):
        scale, code = 4 * (storage == "int8"), 4 * words(vectors.shape[1]) * (kind == "binary")
        known["bytes"] = vectors.shape[1] * np.dtype(storage).itemsize + scale + code
    return lambda: index.nearest(queries, top_k)[1], known


def sides(
    vectors: np.ndarray, queries: np.ndarray, top_k: int, kinds: list[str]
) -> dict[str, tuple[Search, dict[str, float]]]:
    """Return every side by its name: its search, and what is already known of it."""
    faiss = load_faiss()
    flat = faiss.IndexFlatIP(vectors.shape[1])
    start = time.perf_counter()
    flat.add(vectors)
    built = {"build_s": time.perf_counter() - start}
    out: dict[str, tuple[Search, dict[str, float]]] = {
        f"exact, {storage}": our_side(vectors, queries, top_k, "exact", storage) for storage in STORAGES
    }
    out["NumPy"] = (lambda: numpy_search(vectors, queries, top_k), {})
    out["faiss IndexFlatIP"] = (lambda: flat.search(queries, top_k)[1], built)
    out |= {f"binary, {storage}": our_side(vectors, queries, top_k, "binary", storage) for storage in RESCORED}
    return out | {f"{kind}, float32": our_side(vectors, queries, top_k, kind, "float32") for kind in kinds}


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true results that were found."""
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return sum(hits) / truth.size


def extra_bytes(search: Search) -> int:
    """Return the resident bytes that a search takes at its peak above those before it, as Linux counts them."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = process_memory.resident()
    search()
    return max(process_memory.peak() - before, 0)


def measure(count: int, width: int, query_count: int, top_k: int, rounds: int, kinds: list[str]) -> dict[str, Any]:
    """Return seconds, recall and memory of each side; `ratio` by peer is above 1 where our float32 search is faster."""
    draw, vectors = made(count, width), np.empty((count, width), np.float32)
    for at in range(0, count, BLOCK):
        vectors[at : at + BLOCK] = draw(min(BLOCK, count - at))
    queries = draw(query_count)
    truth = numpy_search(vectors, queries, top_k)
    figures: dict[str, dict[str, Any]] = {}
    chosen = sides(vectors, queries, top_k, kinds)
    for name, (search, known) in chosen.items():
        start = time.perf_counter()
        found = search()
        first = time.perf_counter() - start
        share = recall(found, truth)
        figures[name] = known | {f"recall@{top_k}": share, "first_s": first, "extra_bytes": extra_bytes(search)}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, (search, _) in chosen.items():
            start = time.perf_counter()
            search()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        figures[name]["seconds"] = {"median": medians[name], "all": values}
    return {
        "vectors": count,
        "width": width,
        "queries": query_count,
        "top_k": top_k,
        "cpus": len(os.sched_getaffinity(0)),
        "sides": figures,
        "ratio": {name: medians[name] / medians[OURS] for name in chosen if name != OURS},
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Return a table with a line for each side."""
    k = figures["top_k"]
    lines = [
        f"{figures['vectors']:,} vectors of width {figures['width']}, {figures['queries']} queries at once, "
        f"the best {k}; {figures['cpus']} cores",
        f"{'':20s} {'median s':>9} {'(spread)':>17} {'recall@' + str(k):>10} {'bytes':>6} {'build s':>8}"
        f" {'search MiB':>11} {'first s':>8}  times ours",
    ]
    for name, side in figures["sides"].items():
        times = side["seconds"]["all"]
        spread = f"({min(times):.3f} to {max(times):.3f})"
        ratio = figures["ratio"].get(name)
        lines.append(
            f"{name:20s} {side['seconds']['median']:>9.3f} {spread:>17} {side[f'recall@{k}']:>10.4f} "
            f"{side.get('bytes', ''):>6} {side.get('build_s', 0):>8.1f} {side['extra_bytes'] / 2**20:>11.0f}"
            f" {side['first_s']:>8.2f}" + (f"  {ratio:.2f}" if ratio else "")
        )
    return lines


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_integer("vectors", 1_000_000, "Vectors to search in.", lower_bound=1)
    flags.DEFINE_integer("width", 384, "Features of a vector.", lower_bound=1)
    flags.DEFINE_integer("queries", 100, "Queries, asked together.", lower_bound=1)
    flags.DEFINE_integer("top_k", 10, "Results of a query.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "How often each side searches.", lower_bound=1)
    flags.DEFINE_list("kinds", ["hnsw", "ivfpq"], "Approximate kinds to build as well; empty for none.")
    flags.DEFINE_string("json", "", "Write the figures there as well.")


def main() -> None:
    """Measure as the flags say."""
    figures = measure(FLAGS.vectors, FLAGS.width, FLAGS.queries, FLAGS.top_k, FLAGS.rounds, FLAGS.kinds)
    print("\n".join(table(figures)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

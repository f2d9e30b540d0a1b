"""Measure centring and whitening on STS: `python -m benchmarks.whitening --model=DIR --data=senteval --texts=FILE`.

A contrastive loss spreads vectors over the sphere. The simplest way to spread them is linear: subtract their mean,
then make their covariance the identity (BERT-whitening, arXiv 2103.15316, a baseline of the paper's table 5). The text
that gives mean and covariance shows what spreading by that text can achieve: here the first lines of --texts, or the
sentences of each task itself. Spearman x 100, STS-B dev and the seven test sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from simcse_jax import cli
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.results import Encode
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.sts import TASKS, evaluate_pairs, joined, load_sts
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS
DEV = "dev"

Map = Callable[[np.ndarray], np.ndarray]


def centred(vectors: np.ndarray) -> Map:
    """Return a map that subtracts the mean of float[N, D] vectors."""
    mean = vectors.mean(0, dtype=np.float64)
    return lambda some: some - mean


def whitened(vectors: np.ndarray) -> Map:
    """Return a map that gives float[N, D] vectors, N > D, mean 0 and the identity as covariance."""
    mean = vectors.mean(0, dtype=np.float64)
    values, directions = np.linalg.eigh(np.cov(vectors.T.astype(np.float64)))
    scaled = directions / np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    return lambda some: (some - mean) @ scaled


def measure(encode: Encode, texts: Sequence[str], sets: dict[str, GradedPairs]) -> dict[str, dict[str, float]]:
    """Return the score of each set by row: as they are, then centred and whitened by `texts` and by each set itself."""
    of_texts = encode(list(texts))
    if len(of_texts) <= of_texts.shape[1]:
        raise UserError(
            f"{len(of_texts)} texts are too few to whiten {of_texts.shape[1]} features.\nGive more of them."
        )
    kinds: dict[str, Callable[[np.ndarray], Map]] = {"centred": centred, "whitened": whitened}
    rows: dict[str, dict[str, float]] = {"as it is": {}}
    rows |= {f"{kind} by {source}": {} for source in ("the text", "each set itself") for kind in kinds}
    by_text = {kind: make(of_texts) for kind, make in kinds.items()}
    for name, pairs in sets.items():
        vectors = encode(pairs.first + pairs.second)
        maps = {"as it is": lambda some: some}
        maps |= {f"{kind} by the text": mapped for kind, mapped in by_text.items()}
        maps |= {f"{kind} by each set itself": make(vectors) for kind, make in kinds.items()}
        for row, mapped in maps.items():
            found = mapped(vectors)
            rows[row][name] = evaluate_pairs(lambda _, found=found: found, pairs)["spearman"]
    return rows


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """Return the rows as Markdown, the average over the test sets last."""
    names = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(names)} | average of the tests |", "|---|" + "---:|" * (len(names) + 1)]
    for row, scores in rows.items():
        average = float(np.mean([score for name, score in scores.items() if name != DEV]))
        lines.append(f"| {row} | {' | '.join(f'{score:.2f}' for score in scores.values())} | {average:.2f} |")
    return lines


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_string("model", None, "A run folder, model folder or Hub name.", required=True)
    flags.DEFINE_string("pooler", None, "Its pooler, where not its own.")
    flags.DEFINE_string("data", "", "SentEval's data: its folder or a senteval.tar. Default: fetched from the Hub.")
    flags.DEFINE_string("texts", None, "A file of sentences, one a line.", required=True)
    flags.DEFINE_integer("count", 20_000, "How many of its lines to take.", lower_bound=2)
    flags.DEFINE_string("json", "", "Write the rows there as well.")


def main() -> None:
    """Measure as the flags say, and print the table."""
    model, folder = open_model(FLAGS.model, FLAGS.pooler), senteval_folder(FLAGS.data)
    with Path(FLAGS.texts).open(encoding="utf-8") as file:
        texts = [line.strip() for line in file if line.strip()][: FLAGS.count]
    sets = {DEV: load_sts(folder, "STSBenchmark", "dev")[""]}
    sets |= {task: joined(task, list(load_sts(folder, task).values())) for task in TASKS}
    rows = measure(model.encode, texts, sets)
    print("\n".join(table(rows)))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

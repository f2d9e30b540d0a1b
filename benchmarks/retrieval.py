"""Measure retrieval beside sentence-transformers and pytrec_eval: every value compared, seconds of both, in one run.

    python -m benchmarks.retrieval --model=DIR --nli=nli_triplets.csv --sts=sts-test.csv --wiki=docs.txt --json=FILE

Three tasks: NLI (a premise finds the sentences that follow from it, among all of these and their contradictions), STS-B
(a first sentence finds the second ones graded 4 and above, among all second ones), and documents of Wikipedia (a
sentence finds those beside it, among all). Ours is the code of `evaluate --retrieval`; theirs
InformationRetrievalEvaluator with batches of 32, its default; pytrec_eval ranks cosines of sentence-transformers'
vectors by itself. Each side has encoded other text before, so that compilation is not timed; seconds hold encoding,
search and measures. In the last task a sentence finds itself first in sentence-transformers' evaluator, and in ours
with self=keep; pytrec_eval is compared without that document, as BEIR removes it.

Needs PyTorch, sentence-transformers and pytrec_eval (`pip install pytrec-eval-terrier`).
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.encode_speed import peer_model
from simcse_jax import cli
from simcse_jax.data import demo
from simcse_jax.data.rows import RowCounts, read_rows
from simcse_jax.data.sources import open_tables
from simcse_jax.embedding_model import EmbeddingModel, open_model
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.evaluation.retrieval.from_text import neighbours
from simcse_jax.evaluation.retrieval.task import evaluate_retrieval
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS
CLOSE = 1e-4  # how much a value in [0, 1] may differ
GRADE = 4.0  # from which pairs of STS-B are relevant
CUTS = (1, 3, 5, 10)
LISTED, BLOCK = 201, 256  # documents that pytrec_eval ranks for a query; queries at a time
PEER = {"binary_ndcg@10": "ndcg@10", "mrr@10": "mrr@10", "capped_map@100": "map@100"} | {
    f"{name}@{k}": f"{name}@{k}" for name in ("recall", "precision", "accuracy") for k in CUTS
}
TREC = {"ndcg@10": "ndcg_cut_10", "map@100": "map_cut_100", "recall@100": "recall_100"} | {
    f"{ours}@{k}": f"{theirs}_{k}"
    for ours, theirs in (("recall", "recall"), ("precision", "P"), ("accuracy", "success"))
    for k in CUTS
}


def task_of(name: str, pairs: list[tuple[str, str]], corpus: list[str]) -> Retrieval:
    """Return the task in which each first text finds its second ones in the corpus; each text is there once.

    Texts that differ in spaces and case alone are one document. A model of lower-cased words gives them equal vectors,
    and ours and sentence-transformers rank equal scores by id in ascending order, pytrec_eval in descending order.
    """
    queries = {text: f"q{n:06d}" for n, text in enumerate(dict.fromkeys(first for first, _ in pairs))}
    searched: dict[str, str] = {}
    for text in corpus:
        searched.setdefault(_as_read(text), text)
    documents = {as_read: f"d{n:06d}" for n, as_read in enumerate(searched)}
    relevant: dict[str, dict[str, int]] = {}
    for first, second in pairs:
        relevant.setdefault(queries[first], {})[documents[_as_read(second)]] = 1
    asked = {key: text for text, key in queries.items()}
    return Retrieval(name, "made", asked, {key: searched[as_read] for as_read, key in documents.items()}, relevant)


def _as_read(text: str) -> str:
    """Return the text without spaces, in lower case."""
    return "".join(text.lower().split())


def nli_task(path: str, most: int) -> Retrieval:
    """Return the task of the first `most` premises."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = set(itertools.islice(dict.fromkeys(row["sent0"] for row in rows), most))
    pairs = [(row["sent0"], row["sent1"]) for row in rows if row["sent0"] in kept]
    return task_of("NLI", pairs, [text for row in rows for text in (row["sent1"], row["hard_neg"]) if text])


def sts_task(path: str) -> Retrieval:
    """Return the task of the pairs graded GRADE and above."""
    pairs = load_graded_pairs(path)
    both = zip(pairs.first, pairs.second, pairs.gold, strict=True)
    return task_of("STS-B test", [(a, b) for a, b, grade in both if grade >= GRADE], pairs.second)


def wiki_task(path: str, most: int) -> Retrieval:
    """Return the task of neighbours in the first documents, with `most` sentences in all."""

    def documents() -> Iterator[list[str]]:
        rows = itertools.islice(read_rows(open_tables([path]), [("text",)], RowCounts()), most)
        for _, group in itertools.groupby(rows, key=lambda row: row[0]):
            yield [text for _, (text,) in group]

    return neighbours("Wikipedia", list(documents()))


def compare(model: EmbeddingModel, peer: Any, task: Retrieval, rng: np.random.Generator) -> dict[str, Any]:
    """Return both sides' values in [0, 1], their largest difference, and seconds; UserError where one is not equal."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    kept, dropped = (dataclasses.replace(task, drops_self=drops) for drops in (False, task.drops_self))

    def encode(texts: list[str]) -> np.ndarray:
        order = rng.permutation(len(texts))  # a new order, so that no packed block of before is used again
        vectors = np.empty((len(texts), model.width), np.float32)
        vectors[order] = model.encode([texts[n] for n in order], normalize=False)
        return vectors

    started = time.perf_counter()
    ours = evaluate_retrieval(encode, kept, task.name).values
    middle = time.perf_counter()
    relevant: Any = {query: set(own) for query, own in task.relevant.items()}
    theirs = InformationRetrievalEvaluator(task.queries, task.documents, relevant, batch_size=32)(peer)
    ended = time.perf_counter()
    without = evaluate_retrieval(encode, dropped, task.name).values if task.drops_self else ours
    trec = trec_values(peer, dropped)
    rows = {
        f"sentence-transformers {name}": (ours[mine] / 100, theirs[f"cosine_{name}"]) for mine, name in PEER.items()
    }
    rows |= {f"pytrec_eval {name}": (without[name] / 100, value) for name, value in trec.items()}
    differences = {name: abs(mine - other) for name, (mine, other) in rows.items()}
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= CLOSE:
        raise UserError(f"{task.name}: {worst} is {rows[worst][1]:.6f}, and ours {rows[worst][0]:.6f}.")
    return {
        "queries": len(task.queries),
        "documents": len(task.documents),
        "values": {name: list(map(float, pair)) for name, pair in rows.items()},
        "worst difference": float(differences[worst]),
        "seconds": {"ours": middle - started, "sentence-transformers": ended - middle},
    }


def trec_values(peer: Any, task: Retrieval) -> dict[str, float]:
    """Return pytrec_eval's values, by our names, of cosines of the peer's vectors; it ranks them itself."""
    import pytrec_eval

    def unit(texts: dict[str, str]) -> np.ndarray:
        found = peer.encode(list(texts.values()), batch_size=32, show_progress_bar=False).astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    queries, documents = unit(task.queries), unit(task.documents)
    ids, sums = np.array(list(task.documents)), dict.fromkeys([*TREC, "mrr@10"], 0.0)
    evaluator = pytrec_eval.RelevanceEvaluator(
        task.relevant, {"ndcg_cut.10", "map_cut.100", "recall.1,3,5,10,100", "P.1,3,5,10", "success.1,3,5,10"}
    )
    first = pytrec_eval.RelevanceEvaluator(task.relevant, {"recip_rank"})
    most = min(LISTED, len(ids))
    for start in range(0, len(queries), BLOCK):
        cosines = queries[start : start + BLOCK] @ documents.T
        best = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        for query, of_documents, at in zip(list(task.queries)[start : start + BLOCK], cosines, best, strict=True):
            run = {str(ids[n]): float(of_documents[n]) for n in at if not (task.drops_self and ids[n] == query)}
            found = evaluator.evaluate({query: run})[query]
            for name, theirs in TREC.items():
                sums[name] += found[theirs]
            top = dict(sorted(run.items(), key=lambda item: -item[1])[:10])
            sums["mrr@10"] += first.evaluate({query: top})[query]["recip_rank"]
    return {name: total / len(queries) for name, total in sums.items()}


def measure(folder: str, tasks: list[Retrieval], say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return the results of each task; say: called with a line on each."""
    model, peer, rng = open_model(folder), peer_model(folder), np.random.default_rng(0)
    warm = demo.sentences(count=2000)
    model.encode(warm)
    peer.encode(warm[:256], batch_size=32, show_progress_bar=False)
    found = {}
    for task in tasks:
        found[task.name] = own = compare(model, peer, task, rng)
        seconds = own["seconds"]
        say(
            f"{task.name}: {own['queries']:,} queries, {own['documents']:,} documents; nDCG@10 "
            f"{100 * own['values']['pytrec_eval ndcg@10'][0]:.2f}; largest of {len(own['values'])} differences "
            f"{own['worst difference']:.1e}; seconds {seconds['ours']:.1f}, sentence-transformers "
            f"{seconds['sentence-transformers']:.1f}"
        )
    return found


def main() -> int:
    """Print a line for each task, and write --json."""
    tasks = [nli_task(FLAGS.nli, FLAGS.queries)] if FLAGS.nli else []
    tasks += [sts_task(FLAGS.sts)] if FLAGS.sts else []
    tasks += [wiki_task(FLAGS.wiki, FLAGS.sentences)] if FLAGS.wiki else []
    if not tasks or not FLAGS.model:
        raise UserError("--model=DIR, and one or more of --nli, --sts and --wiki are needed.")
    found = measure(FLAGS.model, tasks, lambda line: print(line, flush=True))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "The folder of a model.")
    flags.DEFINE_string("nli", "", "A .csv of sent0, sent1, hard_neg.")
    flags.DEFINE_string("sts", "", "SentEval's sts-test.csv, or other graded pairs from 0 to 5.")
    flags.DEFINE_string("wiki", "", "A .txt of sentences, with blank lines between documents.")
    flags.DEFINE_integer("queries", 5000, "Premises of NLI.", lower_bound=1)
    flags.DEFINE_integer("sentences", 10000, "Sentences of Wikipedia.", lower_bound=2)
    flags.DEFINE_string("json", "", "Write all values here.")
    cli.run(main)

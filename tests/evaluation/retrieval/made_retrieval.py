"""Make retrieval tasks, files of them, and vectors for their texts, and score them with others' tools."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from simcse_jax.evaluation.results import Encode
from simcse_jax.evaluation.retrieval.data import Judgment, Record, Retrieval, make_retrieval

# Our names by those of pytrec_eval.
TREC = {"ndcg@10": "ndcg_cut_10", "map@100": "map_cut_100", "recall@100": "recall_100"}
TREC |= {
    f"{ours}@{k}": f"{theirs}_{k}"
    for ours, theirs in (("recall", "recall"), ("precision", "P"), ("accuracy", "success"))
    for k in (1, 3, 5, 10)
}
# Of sentence-transformers.
THEIRS = {"binary_ndcg@10": "ndcg@10", "capped_map@100": "map@100", "mrr@10": "mrr@10"}
THEIRS |= {f"{name}@{k}": f"{name}@{k}" for name in ("recall", "precision", "accuracy") for k in (1, 3, 5, 10)}


def random_task(seed: int = 0, queries: int = 40, documents: int = 300, highest: int = 3, most: int = 20) -> Retrieval:
    """Return a task of random judgments, some of 0, with up to `most` relevant documents a query."""
    rng = np.random.default_rng(seed)
    judgments = [
        Judgment("", f"q{q}", f"d{d}", str(grade))
        for q in range(queries)
        for d, grade in zip(
            rng.choice(documents, rng.integers(2, most + 2), replace=False).tolist(),
            [1, *rng.integers(0, highest + 1, most)],
            strict=False,
        )
    ]
    corpus = [Record("", f"d{d}", f"document {d}") for d in rng.permutation(documents)]
    return make_retrieval(
        "made", "test", corpus, [Record("", f"q{q}", f"query {q}") for q in range(queries)], judgments
    )


def vectors_for(seed: int = 0, width: int = 12, signs: bool = False) -> Encode:
    """Return an `encode` whose vectors depend on the text alone.

    signs: of 1 and -1, so that cosines are few and, for a width of 4 or 16, exact: many are equal in any arithmetic.
    """

    def encode(texts: list[str]) -> np.ndarray:
        found = np.array([np.random.default_rng([seed, *text.encode()]).normal(size=width) for text in texts])
        return (np.sign(found) if signs else found).astype(np.float32)

    return encode


def scored(encode: Encode, task: Retrieval) -> dict[str, dict[str, float]]:
    """Return the cosine of each query with each document, by their ids: a run as pytrec_eval takes it."""

    def unit(texts: dict[str, str]) -> np.ndarray:
        found = encode(list(texts.values())).astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    cosines = unit(task.queries) @ unit(task.documents).T
    return {
        q: dict(zip(task.documents, row.tolist(), strict=True)) for q, row in zip(task.queries, cosines, strict=True)
    }


def trec_scores(run: dict[str, dict[str, float]], relevant: dict[str, dict[str, int]]) -> dict[str, np.ndarray]:
    """Return the measures of pytrec_eval under our names, by query in the order of `run`."""
    import pytrec_eval

    asked = {"ndcg_cut.10", "map_cut.100", "recall.1,3,5,10,100", "P.1,3,5,10", "success.1,3,5,10"}
    found = pytrec_eval.RelevanceEvaluator(relevant, asked).evaluate(run)
    cut = {q: dict(sorted(own.items(), key=lambda item: -item[1])[:10]) for q, own in run.items()}
    first = pytrec_eval.RelevanceEvaluator(relevant, {"recip_rank"}).evaluate(cut)
    scores = {ours: np.array([found[q][theirs] for q in run]) for ours, theirs in TREC.items()}
    return scores | {"mrr@10": np.array([first[q]["recip_rank"] for q in run])}


class TheirModel:
    """Stand in for a SentenceTransformer, with our vectors."""

    similarity_fn_name = "cosine"
    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)

    def __init__(self, encode: Encode):
        self._encode = encode

    def encode_query(self, texts: list[str], **_: Any) -> Any:
        import torch

        return torch.from_numpy(self._encode(list(texts)))

    encode_document = encode = encode_query

    def similarity(self, a: Any, b: Any) -> Any:
        from sentence_transformers.util import cos_sim

        return cos_sim(a, b)


def write_folder(folder: Path, task: Retrieval, split: str = "test") -> Path:
    """Write a task in BEIR's layout; a text of two words is title and text."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", task.documents), ("queries", task.queries)):
        rows = [{"_id": key, "title": "", "text": text, "metadata": {"n": 1}} for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{q}\t{d}\t{grade}" for q, own in task.relevant.items() for d, grade in own.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder

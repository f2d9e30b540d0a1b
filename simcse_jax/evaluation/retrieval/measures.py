"""Measure rankings: nDCG, MRR, MAP, recall, precision and accuracy at k, one value for each query.

Definitions are those of trec_eval, which BEIR and MTEB use through pytrec_eval. sentence-transformers'
InformationRetrievalEvaluator differs in two: its nDCG ignores grades (`binary_ndcg`), and its MAP divides by no more
than k relevant documents (`capped_map`). Where each query has at most k of them, all graded 1, both are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Measure = Callable[["Ranking", int], np.ndarray]


class Ranking(NamedTuple):
    """Hold what Q queries have found, down to rank K, and what they should have found."""

    gains: (
        np.ndarray
    )  # float64[Q, K]: the grade of the document at each rank; 0 if it is not relevant, or there is none
    ideal: np.ndarray  # float64[Q, K]: the grades of the relevant documents, descending, then 0
    relevant: np.ndarray  # int64[Q]: the number of relevant documents, at least 1


def ndcg(ranking: Ranking, k: int) -> np.ndarray:
    """Return the discounted gain, sum of grade / log2(rank + 1), as a share of that of the best ranking."""
    return np.asarray(_discounted(ranking.gains, k) / _discounted(ranking.ideal, k))


def binary_ndcg(ranking: Ranking, k: int) -> np.ndarray:
    """Return nDCG with every grade above 0 taken as 1."""
    return _discounted(ranking.gains > 0, k) / _discounted(ranking.ideal > 0, k)


def _discounted(gains: np.ndarray, k: int) -> np.ndarray:
    top = gains[:, :k]
    return top @ (1 / np.log2(np.arange(2, top.shape[1] + 2)))


def mrr(ranking: Ranking, k: int) -> np.ndarray:
    """Return 1 / rank of the first relevant document, 0 if none is among the first k."""
    hits = ranking.gains[:, :k] > 0
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def average_precision(ranking: Ranking, k: int) -> np.ndarray:
    """Return the sum of the precisions at the ranks of relevant documents, divided by the number of all relevant."""
    return _summed_precisions(ranking, k) / ranking.relevant


def capped_map(ranking: Ranking, k: int) -> np.ndarray:
    """Return average precision divided by the number of relevant documents that k ranks have room for."""
    return _summed_precisions(ranking, k) / np.minimum(ranking.relevant, k)


def _summed_precisions(ranking: Ranking, k: int) -> np.ndarray:
    hits = ranking.gains[:, :k] > 0
    return (hits * hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)).sum(axis=1)


def recall(ranking: Ranking, k: int) -> np.ndarray:
    """Return the share of the relevant documents that are among the first k."""
    return (ranking.gains[:, :k] > 0).sum(axis=1) / ranking.relevant


def precision(ranking: Ranking, k: int) -> np.ndarray:
    """Return the share of the first k documents that are relevant; of fewer than k, the rest counts as not relevant."""
    return (ranking.gains[:, :k] > 0).sum(axis=1) / k


def accuracy(ranking: Ranking, k: int) -> np.ndarray:
    """Return 1 where a relevant document is among the first k, else 0: a hit, trec_eval's `success`."""
    return np.asarray((ranking.gains[:, :k] > 0).any(axis=1), np.float64)


MEASURES: dict[str, Measure] = {
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
    "recall": recall,
    "precision": precision,
    "accuracy": accuracy,
    "binary_ndcg": binary_ndcg,
    "capped_map": capped_map,
}
HEADLINE = "ndcg@10"
# What is computed: the values of sentence-transformers' evaluator, and recall at the depth of BEIR's tables.
NAMES = (
    *(HEADLINE, "mrr@10", "map@100"),
    *(f"{name}@{k}" for name in ("recall", "precision", "accuracy") for k in (1, 3, 5, 10)),
    *("recall@100", "binary_ndcg@10", "capped_map@100"),
)
DEPTH = 100  # ranks that these need


def measure(ranking: Ranking, name: str) -> np.ndarray:
    """Return the measure "NAME@K", float64[Q] in [0, 1]; the ranking must be K deep, or hold all documents."""
    kind, _, k = name.partition("@")
    return MEASURES[kind](ranking, int(k))

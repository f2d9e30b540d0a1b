"""Score reranking: how high the relevant texts of a short list are, by their cosine with the query."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from simcse_jax.evaluation.columns import digest_of, read_columns
from simcse_jax.evaluation.graded_pairs import FEW
from simcse_jax.evaluation.results import Encode, Score, unit_pair
from simcse_jax.system.errors import UserError

NAMES = {
    "query": ("query", "question", "anchor"),
    "positive": ("positive", "positives", "pos"),
    "negative": ("negative", "negatives", "neg"),
}
MEASURES = ("map", "mrr@10", "ndcg@10")
AT = 10


@dataclasses.dataclass(frozen=True)
class Reranking:
    """Hold queries, each with the texts to rank."""

    name: str
    queries: list[str]
    positives: list[list[str]]
    negatives: list[list[str]]
    left_out: int = 0  # queries without a positive, or without a negative

    @property
    def note(self) -> str:
        """Return remarks on queries that are left out, and on too few; "" without any."""
        few = f"only {len(self.queries)} queries, which say little"
        lost = f"{self.left_out:,} queries have no positive, or no negative: left out"
        return "; ".join([*([few] if len(self.queries) < FEW else []), *([lost] if self.left_out else [])])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the texts and of which list each is in."""
        parts = []
        for query, *lists in zip(self.queries, self.positives, self.negatives, strict=True):
            parts += [query, *(text for own in lists for text in (str(len(own)), *own))]
        return digest_of(parts)


def load_reranking(source: str) -> Reranking:
    """Return the lists in a file with the columns query, positive and negative, or names as in NAMES.

    In .jsonl and .parquet, positive and negative may be lists. Rows of one query are one list.
    """
    lists: dict[str, tuple[list[str], list[str]]] = {}
    for line in read_columns(source, NAMES):
        own = lists.setdefault(line.text("query"), ([], []))
        for role, texts in zip(("positive", "negative"), own, strict=True):
            texts += [text for text in line.texts(role) if text not in texts]
    whole = {query: own for query, own in lists.items() if all(own)}
    if not whole:
        raise UserError(f"{source}: no query has both a positive and a negative, so there is nothing to rank.")
    positives, negatives = map(list, zip(*whole.values(), strict=True))
    return Reranking(source, list(whole), positives, negatives, len(lists) - len(whole))


def evaluate_reranking(encode: Encode, data: Reranking, task: str) -> Score:
    """Return "map", "mrr@10" and "ndcg@10", times 100, as means over queries."""
    texts = [text for lists in (data.positives, data.negatives) for own in lists for text in own]
    queries, vectors = (found.astype(np.float32) for found in unit_pair(encode, data.queries, texts, task))
    lengths = [len(own) for lists in (data.positives, data.negatives) for own in lists]
    count = len(data.queries)
    lists = np.split(vectors, np.cumsum(lengths)[:-1])
    each = np.array(
        [
            _measures(np.concatenate([positives, negatives]) @ query, len(positives))
            for query, positives, negatives in zip(queries, lists[:count], lists[count:], strict=True)
        ]
    )
    protocol = {
        "split": "as given",
        "queries": count,
        "texts": len(texts),
        "aggregation": "mean over queries x 100, of rankings by cosine",
        "data": data.fingerprint,
    } | ({"note": data.note} if data.note else {})
    values: dict[str, float] = dict(zip(MEASURES, (100 * each.mean(axis=0)).tolist(), strict=True))
    return Score(task, MEASURES[0], values, protocol, each=each[:, 0])


def _measures(scores: np.ndarray, positives: int) -> tuple[float, float, float]:
    """Return average precision, reciprocal rank and nDCG of scores float32[n], those of the positives first.

    Equal scores are one step of precision, share their discounts in nDCG, and are ranked negatives first for the
    reciprocal rank.
    """
    relevant = np.arange(len(scores)) < positives
    levels, group = np.unique(-scores, return_inverse=True)
    counts = np.bincount(group, minlength=len(levels))
    hits = np.bincount(group, relevant, minlength=len(levels))
    precision = (hits / positives) @ (hits.cumsum() / counts.cumsum())
    rank = int(np.flatnonzero(relevant[np.lexsort((relevant, -scores))])[0]) + 1
    discounts = np.where(np.arange(len(scores)) < AT, 1 / np.log2(np.arange(len(scores)) + 2), 0.0)
    gains = np.repeat(hits / counts, counts)  # at each rank, the mean of those that share it
    ndcg = float(gains @ discounts / discounts[:positives].sum())
    return float(precision), (1 / rank if rank <= AT else 0.0), ndcg

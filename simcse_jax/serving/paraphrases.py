"""Find paraphrases among sentences. Vectors have length 1, so that inner products are cosines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.system.vectors import require_cosine

QUERIES = 1024  # searched at once
MOST = 100  # paraphrases of a sentence


class Pair(NamedTuple):
    """Hold the places of two sentences, first < second, and their cosine."""

    first: int
    second: int
    score: float


def paraphrases(sentences: Sequence[str], vectors: np.ndarray, threshold: float = 0.85) -> list[Pair]:
    """Return each pair of sentences with a cosine of at least `threshold` once, the most similar first.

    vectors: float32[N, D] of length 1. Equal texts count as one sentence, at the first place. A pair counts if one is
    among the `MOST` nearest of the other; so pairs are left out only where many sentences are alike, and memory does
    not grow with N x N. Raises UserError if the threshold is no cosine, or the vectors are not of length 1.
    """
    require_cosine("threshold", threshold, 0.85)
    if not len(sentences):
        return []
    first_place: dict[str, int] = {}
    for place, text in enumerate(sentences):
        first_place.setdefault(text, place)
    kept = np.fromiter(first_place.values(), np.int64, len(first_place))
    index = SentenceIndex(vectors.shape[1], "")
    index.add(list(first_place), vectors[kept])
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(kept), QUERIES):
        scores, ids = index.nearest(vectors[kept[start : start + QUERIES]], MOST + 1)  # each also finds itself
        rows, columns = np.nonzero(scores >= index.lowest(threshold))
        mine, theirs = kept[start + rows], kept[ids[rows, columns]]
        for a, b, score in zip(mine.tolist(), theirs.tolist(), scores[rows, columns].tolist(), strict=True):
            if a != b:
                found.setdefault((min(a, b), max(a, b)), score)
    return sorted((Pair(*places, score) for places, score in found.items()), key=lambda pair: (-pair.score, pair[:2]))

"""Mining with a model's vectors: sentences that say the same, and hard negatives for training pairs.

Both ask a `Nearest` function, such as `SentenceIndex.nearest`. Vectors have length 1, so that products are cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from simcse_jax.serving.index.exact import ExactSearch
from simcse_jax.serving.index.vectors import Vectors
from simcse_jax.system.errors import UserError

# (float32[Q, D], k) -> (float32[Q, k] scores, descending; int64[Q, k] ids, -1 where fewer were found)
Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

QUERIES = 1024  # at once


class Pair(NamedTuple):
    """Two sentences by their places, first < second, and their cosine."""

    first: int
    second: int
    score: float


class Triplet(NamedTuple):
    """A training pair with a hard negative, and what each of the two scores with the anchor."""

    anchor: str
    positive: str
    negative: str
    positive_score: float
    negative_score: float


def paraphrases(
    sentences: Sequence[str],
    vectors: np.ndarray,
    threshold: float = 0.85,
    top_k: int = 100,
    nearest: Nearest | None = None,
) -> list[Pair]:
    """Every pair of sentences with a cosine of at least `threshold`, once, the most similar first.

    vectors: float32[N, D], of length 1. Equal texts are one sentence, that of the first place: no pair is a sentence
    and its repetition. top_k: a pair counts if either is among the other's `top_k` nearest; so there are N x top_k
    pairs at most, however alike all are, and only where many are alike is a pair left out. nearest: finds places among
    `sentences` (of an index to which they alone were added, in order); by default every pair is looked at, block by
    block, in memory that does not grow with N x N. UserError for a threshold or top_k that is out of range.
    """
    require_cosine("threshold", threshold, 0.85)
    _require_positive("top_k", top_k, 100)
    _require_unit(vectors, len(sentences))
    first_place: dict[str, int] = {}
    places = np.fromiter(
        (first_place.setdefault(text, n) for n, text in enumerate(sentences)), np.int64, len(sentences)
    )
    kept = np.fromiter(first_place.values(), np.int64, len(first_place))
    sentence_of = places  # of what `nearest` finds, the place of its first repetition
    if nearest is None:
        # Without the repetitions, which would take up the nearest of each other.
        nearest, sentence_of = _exact_nearest(vectors[kept]), kept
    keys, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, len(kept), QUERIES):
        asked = kept[start : start + QUERIES]
        scores, ids = nearest(vectors[asked], min(top_k + 1, len(sentences)))  # each finds itself as well
        rows, columns = np.nonzero((ids >= 0) & (scores >= threshold))
        mine, theirs = asked[rows], sentence_of[ids[rows, columns]]
        other = mine != theirs
        low, high = np.minimum(mine, theirs)[other], np.maximum(mine, theirs)[other]
        keys.append(low * len(sentences) + high)
        found.append(scores[rows, columns][other])
    key, at = np.unique(np.concatenate(keys), return_index=True)
    score = np.concatenate(found)[at]
    order = np.lexsort((key, -score))
    first, second = np.divmod(key[order], max(len(sentences), 1))
    return [Pair(*pair) for pair in zip(first.tolist(), second.tolist(), score[order].tolist(), strict=True)]


def hard_negatives(
    pairs: Sequence[tuple[str, str]],
    anchors: np.ndarray,
    positives: np.ndarray,
    nearest: Nearest,
    text: Callable[[int], str],
    ranks: tuple[int, int] = (1, 100),
    margin: float = 0.05,
    ceiling: float = 0.9,
) -> Iterator[Triplet]:
    """A triplet for each pair that has a hard negative, in order; a pair without one is left out.

    pairs: (anchor, positive) texts. anchors, positives: their vectors, float32[N, D] of length 1. nearest, text: the
    corpus, as an index has them. A negative is a sentence of the corpus similar to the anchor that is not known to say
    the same: its text is neither the anchor's nor that of any positive that the anchor has in `pairs`. Of these, each
    text counted once and the most similar first, it is the first with a rank from ranks[0] to ranks[1] (1 = the most
    similar), a cosine with the anchor at least `margin` below the positive's, and at most `ceiling`: what is closer is
    often a positive that nobody labelled. The first triplet asked for raises UserError for settings out of range.
    """
    require_window(ranks)
    low, high = ranks
    if not 0 <= margin <= 2:
        raise UserError(f"margin is {margin:g}; it is a difference of cosines from 0 to 2, for example 0.05.")
    require_cosine("ceiling", ceiling, 0.9)
    _require_unit(anchors, len(pairs))
    _require_unit(positives, len(pairs))
    same: dict[str, set[str]] = {}
    for anchor, positive in pairs:
        same.setdefault(anchor, {anchor}).add(positive)
    for start in range(0, len(pairs), QUERIES):
        block = pairs[start : start + QUERIES]
        labels = np.einsum("nd,nd->n", anchors[start : start + QUERIES], positives[start : start + QUERIES]).tolist()
        limits = [min(label - margin, ceiling) for label in labels]
        chosen: dict[int, _Chosen] = {}
        waiting, asked = list(range(len(block))), high + max(len(same[anchor]) for anchor, _ in block)
        while waiting:
            scores, ids = nearest(anchors[start : start + QUERIES][waiting], asked)
            rows = zip(waiting, scores.tolist(), ids.tolist(), strict=True)
            for n, row_scores, row_ids in rows:
                chosen[n] = _first_below(row_scores, row_ids, text, same[block[n][0]], (low, high), limits[n])
            # A corpus that repeats its texts may hold more within the window than was asked for.
            waiting = [n for n in waiting if chosen[n] == _NOT_YET] if ids.shape[1] == asked else []
            asked *= 2
        for n, (anchor, positive) in enumerate(block):
            negative, score = chosen[n]
            if negative is not None:
                yield Triplet(anchor, positive, negative, labels[n], score)


def require_window(ranks: tuple[int, int]) -> None:
    """UserError for a window of ranks that holds none."""
    if not 1 <= ranks[0] <= ranks[1]:
        raise UserError(
            f"The rank window is {ranks[0]} to {ranks[1]}; ranks count from 1 upwards, for example 1 to 100."
        )


_Chosen = tuple[str | None, float]  # a text and its score
_NONE, _NOT_YET = (None, 0.0), (None, 1.0)  # none is in the window; or none among so few


def _first_below(
    scores: list[float],
    ids: list[int],
    text: Callable[[int], str],
    excluded: set[str],
    ranks: tuple[int, int],
    limit: float,
) -> _Chosen:
    """The first text in the window with a score of at most `limit`."""
    seen = set(excluded)
    rank = 0
    for score, found in zip(scores, ids, strict=True):
        if found < 0 or rank == ranks[1]:
            return _NONE
        candidate = text(found)
        if candidate in seen:
            continue
        seen.add(candidate)
        rank += 1
        if rank >= ranks[0] and score <= limit:
            return candidate, score
    return _NONE if rank == ranks[1] else _NOT_YET


def _exact_nearest(vectors: np.ndarray) -> Nearest:
    """A `Nearest` over the rows of float32[N, D], on the accelerator; ids are rows."""
    held, alive = Vectors(vectors.shape[1], "float32"), np.ones(len(vectors), bool)
    held.append(vectors)
    search = ExactSearch(held)
    return lambda queries, k: search.nearest(queries, alive, min(k, len(alive)))


def require_cosine(name: str, value: float, example: float) -> None:
    """UserError unless the value is one."""
    if not -1 <= value <= 1:
        raise UserError(f"{name} is {value:g}; it is a cosine, from -1 to 1, for example {example:g}.")


def _require_positive(name: str, value: int, example: int) -> None:
    if value < 1:
        raise UserError(f"{name} is {value}; it is a number of sentences, 1 or more, for example {example}.")


def _require_unit(vectors: np.ndarray, count: int) -> None:
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(f"{count} texts, but vectors of shape {vectors.shape}; expected ({count}, D).")
    lengths = np.einsum("nd,nd->n", vectors, vectors)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise ValueError("The vectors are not of length 1; encode with normalize=True.")

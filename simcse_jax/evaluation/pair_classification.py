"""Score pairs with a label of 0 or 1: how well one threshold of the cosine separates them."""

from __future__ import annotations

import numpy as np

from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.evaluation.sts import pair_cosines
from simcse_jax.system.errors import UserError

MEASURES = ("ap", "f1", "accuracy", "precision", "recall")


def load_labelled_pairs(source: str) -> GradedPairs:
    """Return pairs whose score is 0 (different) or 1 (the same), as `load_graded_pairs` takes them; else UserError."""
    pairs = load_graded_pairs(source)
    other = pairs.gold[~np.isin(pairs.gold, (0, 1))]
    if len(other):
        raise UserError(
            f"{source}: the label {other[0]:g} is neither 0 nor 1. Pairs with graded scores are judged with --pairs."
        )
    return pairs


def evaluate_pair_classification(encode: Encode, pairs: GradedPairs, task: str) -> Score:
    """Return average precision ("ap"), the best F1 with its precision and recall, and the best accuracy, times 100.

    "f1_threshold" and "accuracy_threshold" are the cosines from which pairs count as the same, not times 100. They are
    chosen on these very pairs, so F1 and accuracy are upper bounds of what a threshold reaches on new ones.
    """
    cosines = pair_cosines(encode, pairs)
    values = {"ap": 100 * float(average_precision(cosines[None], pairs.gold[None])[0])}
    protocol = {
        "split": "as given",
        "pairs": len(cosines),
        "labelled 1": int(pairs.gold.sum()),
        "aggregation": "x 100, by cosine; F1 and accuracy at their best thresholds",
        "data": pairs.fingerprint,
    } | ({"note": pairs.note} if pairs.note else {})
    values |= best_thresholds(cosines, pairs.gold)
    return Score(task, "ap", values, protocol, gold=pairs.gold, cosines=cosines, statistic=average_precision)


def average_precision(cosines: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return the average precision of each row of float64[S, n], gold 0 or 1: float64[S]; 0 without a 1.

    The sum over thresholds of precision times the recall that each adds; equal cosines are one threshold.
    """
    order = np.argsort(-cosines, axis=1, kind="stable")
    scores, labels = (np.take_along_axis(values, order, axis=1) for values in (cosines, gold))
    found = labels.cumsum(axis=1)
    count = scores.shape[1]
    is_end = np.concatenate([scores[:, 1:] != scores[:, :-1], np.ones((len(scores), 1), bool)], axis=1)
    ends = np.where(is_end, np.arange(count), count)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]  # of each pair: the last one with its cosine
    precision = np.take_along_axis(found, ends, axis=1) / (ends + 1)
    total = found[:, -1]
    return np.divide((precision * labels).sum(axis=1), total, out=np.zeros(len(scores)), where=total > 0)


def best_thresholds(cosines: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Return the best F1 and accuracy, times 100, and their thresholds, each between two cosines."""
    order = np.argsort(-cosines, kind="stable")
    scores, labels = cosines[order], gold[order]
    ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    found, chosen, total = labels.cumsum()[ends], ends + 1, labels.sum()
    middles = np.r_[(scores[ends[:-1]] + scores[ends[:-1] + 1]) / 2, scores[-1]]
    right = np.r_[len(labels) - total, found + (len(labels) - total) - (chosen - found)]
    above = np.nextafter(scores[0], np.inf)  # no pair counts as the same
    best, most = int((2 * found / (chosen + total)).argmax()), int(right.argmax())
    return {
        "f1": 200 * float(found[best] / (chosen[best] + total)),
        "precision": 100 * float(found[best] / chosen[best]),
        "recall": 100 * float(found[best] / total),
        "f1_threshold": float(middles[best]),
        "accuracy": 100 * float(right[most] / len(labels)),
        "accuracy_threshold": float(np.r_[above, middles][most]),
    }

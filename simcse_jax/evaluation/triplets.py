"""Score triplets: how often a text is nearer to its positive than to its negative."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from simcse_jax.evaluation.columns import digest_of, read_columns
from simcse_jax.evaluation.graded_pairs import FEW
from simcse_jax.evaluation.results import Encode, Score, unit_pair

NAMES = {
    "anchor": ("anchor", "sent0", "query", "sentence", "premise"),
    "positive": ("positive", "pos", "sent1", "entailment"),
    "negative": ("negative", "neg", "hard_neg", "hard_negative", "contradiction"),
}
MEASURES = ("accuracy",)


@dataclasses.dataclass(frozen=True)
class Triplets:
    """Hold n triplets: three lists of n texts."""

    name: str
    anchors: list[str]
    positives: list[str]
    negatives: list[str]

    @property
    def note(self) -> str:
        """Return a remark on triplets that are too few to say much; "" for others."""
        return f"only {len(self.anchors)} triplets, which say little" if len(self.anchors) < FEW else ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the texts."""
        return digest_of([*self.anchors, *self.positives, *self.negatives])


def load_triplets(source: str) -> Triplets:
    """Return the triplets in a file with the columns anchor, positive and negative, or names as in NAMES."""
    rows = [[line.text(role) for role in NAMES] for line in read_columns(source, NAMES)]
    anchors, positives, negatives = map(list, zip(*rows, strict=True))
    return Triplets(source, anchors, positives, negatives)


def evaluate_triplets(encode: Encode, triplets: Triplets, task: str) -> Score:
    """Return "accuracy", times 100: the share with a higher cosine to the positive; with an equal one it is wrong."""
    queries, documents = triplets.anchors, [*triplets.positives, *triplets.negatives]
    anchors, others = unit_pair(encode, queries, documents, task)
    positives, negatives = np.split(others, 2)
    each = ((anchors * positives).sum(axis=1) > (anchors * negatives).sum(axis=1)).astype(np.float64)
    protocol = {
        "split": "as given",
        "triplets": len(each),
        "aggregation": "share x 100 with a higher cosine to the positive than to the negative",
        "data": triplets.fingerprint,
    } | ({"note": triplets.note} if triplets.note else {})
    return Score(task, MEASURES[0], {MEASURES[0]: 100 * float(each.mean())}, protocol, each=each)

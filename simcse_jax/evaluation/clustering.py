"""Score clustering: whether k-means on the vectors finds the classes of labelled texts, as MTEB measures it."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import numpy as np

from simcse_jax.evaluation.columns import digest_of, read_columns
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import check_vectors, normalize

NAMES = {
    "text": ("text", "sentence", "sentences", "content"),
    "label": ("label", "labels", "class", "category", "topic", "cluster"),
}
MEASURES = ("v_measure",)
# MTEB's settings: draws with replacement, each clustered.
DRAWS, DRAWN, BATCH, SEED = 10, 16384, 512, 42


@dataclasses.dataclass(frozen=True)
class Clustering:
    """Hold n texts with a class each."""

    name: str
    texts: list[str]
    labels: list[str]
    note: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of texts and labels."""
        return digest_of([*self.texts, *self.labels])


def load_clustering(source: str) -> Clustering:
    """Return the texts in a file with the columns text and label, or names as in NAMES; labels may be numbers."""
    texts, labels = [], []
    for line in read_columns(source, NAMES):
        texts.append(line.text("text"))
        label = line.cells["label"]
        if label is None or not str(label).strip() or isinstance(label, list | dict | float):
            raise UserError(f"{line.where}: the label {label!r:.60} must be a word or a whole number.")
        labels.append(str(label).strip())
    if len(set(labels)) < 2 or len(set(labels)) == len(labels):
        raise UserError(
            f"{source}: {len(labels)} texts have {len(set(labels))} different labels; clustering needs at least 2 "
            "classes, and several texts in some of them."
        )
    return Clustering(source, texts, labels)


def evaluate_clustering(encode: Encode, data: Clustering, task: str) -> Score:
    """Return "v_measure", times 100: the mean over draws of texts, each clustered by k-means on vectors of length 1.

    There is no interval of differences: draws overlap, so their spread says too little about other texts.
    """
    vectors = normalize(check_vectors(np.asarray(encode(data.texts)), data.texts, task)).astype(np.float32)
    found = v_measures(vectors, np.array(data.labels))
    protocol = {
        "split": "as given",
        "texts": len(data.texts),
        "classes": len(set(data.labels)),
        "aggregation": f"V-measure x 100, mean of {DRAWS} draws of {DRAWN:,} texts with replacement; MiniBatchKMeans",
        "data": data.fingerprint,
    }
    values = {"v_measure": 100 * float(found.mean()), "v_measure_sd": 100 * float(found.std(ddof=1))}
    return Score(task, MEASURES[0], values, protocol)


def v_measures(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the V-measure of each draw, float64[DRAWS]."""
    from sklearn.cluster import MiniBatchKMeans  # here, because their import takes a second of every start
    from sklearn.metrics import v_measure_score

    rng, found = random.Random(SEED), []
    clusters = len(set(labels.tolist()))
    for _ in range(DRAWS):
        drawn = rng.choices(range(len(labels)), k=DRAWN)
        once: Any = 1  # with k-means++, as scikit-learn's stubs do not know
        kmeans = MiniBatchKMeans(clusters, batch_size=BATCH, n_init=once, random_state=SEED)
        found.append(float(v_measure_score(labels[drawn], kmeans.fit_predict(vectors[drawn]))))
    return np.array(found)

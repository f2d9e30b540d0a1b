"""The geometry of a model's embeddings of graded pairs: `objective.geometry`'s figures, as one Space."""

from __future__ import annotations

import numpy as np

from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.results import Encode, Space
from simcse_jax.objective import geometry
from simcse_jax.system.errors import UserError

CLOSE = 0.8  # of the scale; on STS-B's 0 to 5, pairs above 4, as in SimCSE's figures 2 and 3


def measure_space(encode: Encode, pairs: GradedPairs, scale: tuple[float, float]) -> Space:
    """The Space of the pairs' sentences: alignment over the close pairs, all else over every sentence once.

    scale: the lowest and highest score that a pair can have. Close are the pairs above 80 % of it. UserError when
    there is none, when all sentences are the same, or for a vector that is not finite or zero (names its sentence).
    """
    low, high = scale
    above = low + CLOSE * (high - low)
    close = pairs.gold > above
    if not close.any():
        raise UserError(
            f"{pairs.name}: none of the {len(pairs.gold)} pairs has a score above {above:g}, on the scale from {low:g} "
            f"to {high:g}; the highest is {pairs.gold.max():g}.\nAlignment is measured over such close pairs: add "
            "some, or leave the geometry out."
        )
    sentences = list(dict.fromkeys(pairs.first + pairs.second))
    if len(sentences) < 2:
        raise UserError(f"{pairs.name}: all sentences are {sentences[0]!r:.100}; a space needs at least 2 that differ.")
    units = _unit_vectors(encode, sentences, pairs.name)
    places = {text: place for place, text in enumerate(sentences)}
    first, second = (np.array([places[text] for text in texts])[close] for texts in (pairs.first, pairs.second))
    values = geometry.singular_values(units)
    spectrum = np.asarray(values, np.float64)
    return Space(
        alignment=float(geometry.alignment(units[first], units[second])),
        uniformity=float(geometry.uniformity(units)),
        mean_cosine=float(geometry.mean_cosine(units)),
        effective_rank=float(geometry.effective_rank(values)),
        isotropy=float(geometry.isotropy(units)),
        top_share=float(geometry.top_share(values)),
        singular_values=spectrum / spectrum[0],
        protocol={
            "source": pairs.name,
            "pairs": len(pairs.gold),
            "data": pairs.fingerprint,
            "scale": [low, high],
            "close pairs": int(close.sum()),
            "close above": above,
            "sentences": len(sentences),
            "vectors": "of length 1, not centred",
        },
    )


def _unit_vectors(encode: Encode, sentences: list[str], name: str) -> np.ndarray:
    """float32[N, D], of length 1. UserError for a vector that is not finite or zero."""
    vectors = np.asarray(encode(sentences), np.float64)
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise ValueError(f"encode gave shape {vectors.shape} for {len(sentences)} texts; expected (.., D).")
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(largest) | (largest == 0))
    if len(bad):
        kind = "zero" if largest[bad[0]] == 0 else "not finite"
        raise UserError(
            f"{name}: {len(bad)} of {len(sentences)} sentence vectors are {kind}, e.g. that of "
            f"{sentences[bad[0]]!r:.100}.\n"
            "The model's weights are broken, or training diverged: go back to an earlier checkpoint."
        )
    vectors = vectors / largest
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

"""Measure the geometry of a model's embeddings of graded pairs, with the metrics of `objective.geometry`."""

from __future__ import annotations

import numpy as np

from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.results import Encode, Space
from simcse_jax.objective import geometry
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import check_vectors, normalize

CLOSE = 0.8  # of the scale; on STS-B's 0 to 5: above 4, as in figures 2 and 3 of the SimCSE paper


def measure_space(encode: Encode, pairs: GradedPairs, scale: tuple[float, float]) -> Space:
    """Return the Space of the pairs' sentences: alignment over the close pairs, the rest over each sentence once.

    scale: the lowest and highest score that a pair can have; the pairs above 80 % of it are close. Raises UserError
    when no pair is close, when all sentences are the same, or for a vector that is not finite or zero.
    """
    low, high = scale
    above = low + CLOSE * (high - low)
    close = pairs.gold > above
    if not close.any():
        raise UserError(
            f"{pairs.name}: none of the {len(pairs.gold)} pairs has a score above {above:g} on the scale from {low:g} "
            f"to {high:g}; the highest is {pairs.gold.max():g}.\nAlignment is measured over such close pairs: add "
            "some, or leave out the task geometry."
        )
    sentences = list(dict.fromkeys(pairs.first + pairs.second))
    if len(sentences) < 2:
        raise UserError(f"{pairs.name}: all sentences are {sentences[0]!r:.100}; geometry needs 2 that differ.")
    units = normalize(check_vectors(np.asarray(encode(sentences)), sentences, pairs.name)).astype(np.float32)
    places = {text: place for place, text in enumerate(sentences)}
    first, second = (np.array([places[text] for text in texts])[close] for texts in (pairs.first, pairs.second))
    values = geometry.singular_values(units)
    spectrum = np.asarray(values, np.float64)
    return Space(
        alignment=float(geometry.alignment(units[first], units[second])),
        uniformity=float(geometry.uniformity(units)),
        mean_cosine=float(np.clip(geometry.mean_cosine(units), -1, 1)),
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

"""Scale embeddings to length 1, and refuse those that are broken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simcse_jax.system.errors import UserError

SHORTEST = 1e-12  # shorter vectors are not scaled up to length 1


def normalize(vectors: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return the vectors [..., D] with length 1, in their dtype; a vector of zeros stays. out: where to write them."""
    return np.divide(vectors, np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), SHORTEST), out=out)


def check_vectors(vectors: np.ndarray, texts: Sequence[str], name: str, zeros: bool = False) -> np.ndarray:
    """Return the vectors of these texts as float64[N, D].

    Raises UserError, with the name of the task or file and a text, where a vector is not finite or, unless `zeros` is
    true, zero; and ValueError for another shape.
    """
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"encode returned shape {vectors.shape} for {len(texts)} texts; expected ({len(texts)}, D).")
    vectors = vectors.astype(np.float64)
    is_finite = np.asarray(np.isfinite(vectors).all(axis=1))
    bad = np.flatnonzero(~is_finite | ~(zeros | vectors.any(axis=1)))
    if len(bad):
        kind = "zero" if is_finite[bad[0]] else "not finite"
        raise UserError(
            f"{name}: {len(bad)} of {len(texts)} sentence vectors are {kind}, for example that of "
            f"{texts[bad[0]]!r:.100}.\n"
            "The model's weights are broken, or training diverged: use an earlier checkpoint."
        )
    return vectors


def require_cosine(name: str, value: float, example: float) -> None:
    """Raise UserError unless the value is a possible cosine."""
    if not -1 <= value <= 1:
        raise UserError(f"{name} is {value:g}; it must be a cosine, from -1 to 1, for example {example:g}.")

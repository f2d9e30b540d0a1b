"""Sixty made sentences and their vectors of length 1."""

import numpy as np

VECTORS = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
COSINES = VECTORS @ VECTORS.T
TEXTS = [f"sentence {n}" for n in range(60)]

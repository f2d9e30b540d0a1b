"""SimCSE in JAX: train, judge and use sentence embeddings."""

__version__ = "0.1.0"

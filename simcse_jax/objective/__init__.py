"""Embeddings to loss: jax.numpy only; knows no model and no data."""

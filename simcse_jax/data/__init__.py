"""Text to `Batch`: files, tokens, rows. NumPy only, no JAX."""

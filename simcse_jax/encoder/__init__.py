"""`Batch` to embeddings: the only room that knows Flax."""

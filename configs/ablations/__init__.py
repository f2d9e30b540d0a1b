"""The paper's ablations, each a recipe with rows of its own, for `python -m simcse_jax.sweep` (docs/paper.md)."""

"""Recipes of the paper's ablations; each names its rows for `python -m simcse_jax.sweep` (docs/paper.md)."""

"""Recipes: each key with its default, range and meaning, and their validation."""

"""Sentences and their vectors, to be searched."""

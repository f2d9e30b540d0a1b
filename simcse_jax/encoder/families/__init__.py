"""Hugging Face's config.json and weight names of each family of encoders."""

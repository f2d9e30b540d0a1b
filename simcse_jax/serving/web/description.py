"""The OpenAPI description, with this server's own limits in it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from simcse_jax.serving.web.settings import Settings

_TEXT_FIELDS = {
    "EncodeRequest": ("texts",),
    "SimilarityRequest": ("queries", "keys"),
    "SearchRequest": ("query", "queries"),
    "EmbeddingsRequest": ("input",),
}


def describe_limits(app: FastAPI, settings: Settings, width: int) -> None:
    """Add the limits to the app's description: what is written there is what is taken."""
    schemas = app.openapi()["components"]["schemas"]  # FastAPI makes it once and keeps it
    for name, fields in _TEXT_FIELDS.items():
        for field in fields:
            _limit_texts(schemas[name]["properties"][field], settings)
    schemas["SearchRequest"]["properties"]["top_k"]["maximum"] = settings.max_top_k
    schemas["EmbeddingsRequest"]["properties"]["dimensions"]["anyOf"][0]["const"] = width


def _limit_texts(schema: dict[str, Any], settings: Settings) -> None:
    for option in schema.get("anyOf", [schema]):
        if option["type"] == "array":
            option["maxItems"] = settings.max_texts
            option["items"] = {**option["items"], "maxLength": settings.max_characters}
        else:
            option["maxLength"] = settings.max_characters

"""Describe the server: its answers and failures as OpenAPI models, its limits, and the pages.

Each page is one file that loads nothing from other sites.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
from fastapi import FastAPI, Response
from pydantic import BaseModel

from simcse_jax.serving.web.guard import Settings

FOLDER = Path(__file__).parent
_BLOCK = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_TEXT_FIELDS = {
    "EncodeRequest": ("texts",),
    "SimilarityRequest": ("queries", "keys"),
    "SearchRequest": ("query", "queries"),
    "EmbeddingsRequest": ("input",),
}
# The statuses of failures, and their reasons: of all routes, of those that need the key, and that take a body.
OF_ALL = {
    408: "The request did not arrive within the time limit.",
    413: "The request has too many bytes.",
    421: "The server does not know the host name of the request.",
    500: "The server failed.",
    503: "Too many requests are waiting; Retry-After says when to try again.",
}
OF_KEYED = {401: "The API key is missing or wrong."}
OF_BODIES = {
    400: "The request is not JSON, or cannot be read.",
    415: "The request is not JSON, or compressed.",
    422: "A value is not valid.",
    504: "There was no answer within the time limit.",
}


class Vectors(BaseModel):
    """Hold a vector of length 1 for each text, in their order."""

    vectors: list[list[float]]
    model: str
    width: int


class Similarities(BaseModel):
    """Hold cosines, -1 to 1: a row for each query, a column for each key."""

    similarity: list[list[float]]
    model: str


class FoundText(BaseModel):
    """Hold a text of the index, its cosine with the query, and its id in the index."""

    text: str
    score: float
    id: int


class Hits(BaseModel):
    """Hold the hits of a query, best first; for `queries`, a list for each."""

    hits: list[FoundText] | list[list[FoundText]]
    model: str


class Health(BaseModel):
    """Hold the state of the server."""

    status: Literal["ok"]
    model: str
    width: int
    widths: list[int]  # which `dimensions` may be
    max_length: int  # tokens at which texts are cut
    sentences: int | None  # in the index; null without an index
    prompts: list[str]  # which `prompt_name` may be
    waiting: int  # texts that wait for the model; a long text counts as several
    needs_key: bool


class Embedding(BaseModel):
    """Hold one vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Hold the number of tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Hold vectors in OpenAI's shape."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ServedModel(BaseModel):
    """Hold a model in OpenAI's shape."""

    id: str
    object: Literal["model"]
    created: int  # when the server started, in seconds since 1970
    owned_by: str


class ServedModels(BaseModel):
    """Hold a list of models in OpenAI's shape."""

    object: Literal["list"]
    data: list[ServedModel]


class Failure(BaseModel):
    """Hold an error message."""

    detail: str


class OpenAIFailureBody(BaseModel):
    """Hold an error message with OpenAI's fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFailure(BaseModel):
    """Hold an error in OpenAI's shape."""

    error: OpenAIFailureBody


def failures(reasons: dict[int, str], model: type[BaseModel] = Failure) -> dict[int | str, dict[str, Any]]:
    """Return failures for FastAPI's `responses`. In OpenAI's shape, a wrong value is a 400."""
    return {
        status: {"model": model, "description": reason}
        for status, reason in sorted(reasons.items())
        if (status, model) != (422, OpenAIFailure)
    }


def describe_limits(app: FastAPI, settings: Settings, widths: Sequence[int], prompts: Collection[str]) -> None:
    """Add the server's limits, and its model's widths and names of prompts, to its OpenAPI description."""
    schemas = app.openapi()["components"]["schemas"]  # FastAPI makes the description once and keeps it
    for name, fields in _TEXT_FIELDS.items():
        for field in fields:
            _limit_texts(schemas[name]["properties"][field], settings)
        name_or_null = schemas[name]["properties"]["prompt_name"]["anyOf"]
        if prompts:
            name_or_null[0]["enum"] = list(prompts)
        else:
            del name_or_null[0]
    schemas["SearchRequest"]["properties"]["top_k"]["anyOf"][0]["maximum"] = settings.max_top_k
    for name in ("EncodeRequest", "EmbeddingsRequest"):
        schemas[name]["properties"]["dimensions"]["anyOf"][0]["enum"] = list(widths)


def _limit_texts(schema: dict[str, Any], settings: Settings) -> None:
    for option in schema.get("anyOf", [schema]):
        if option["type"] == "array":
            option["maxItems"] = settings.max_texts
            option["items"] = {**option["items"], "maxLength": settings.max_characters}
        elif option["type"] == "string":
            option["maxLength"] = settings.max_characters


def search_page() -> Response:
    """Return the page to search and compare."""
    return _page((FOLDER / "page.html").read_text(encoding="utf-8"))


def docs_page(description: dict[str, Any], address: str, settings: Settings) -> Response:
    """Return the page about the routes, made from their OpenAPI description. address: the server's, for examples."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"kind": _kind, "example": _example}
    template = environment.get_template("docs.html")
    return _page(template.render(routes=_routes(description), address=address, settings=settings))


def _page(html: str) -> Response:
    """Return a page with a Content-Security-Policy that admits only its own script and style."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _BLOCK.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        hashes[kind].append(f"'sha256-{digest}'")
    policy = "; ".join(
        [
            "default-src 'none'",
            *(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items() if found),
            "img-src data:",  # for the icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def _routes(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Yield the method and path of each route, its description, and the schema of its body ({} without one)."""
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            yield method.upper(), path, route, description["components"]["schemas"].get(name, {})


def _example(schema: dict[str, Any]) -> str:
    """Return an example request as JSON in the order of its fields, which FastAPI sorts by name."""
    example = schema["examples"][0]
    return json.dumps({name: example[name] for name in schema["properties"] if name in example}, ensure_ascii=False)


def _kind(schema: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}s"
    return schema.get("type", "any")

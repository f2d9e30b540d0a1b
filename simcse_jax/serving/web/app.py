"""The server's app: a model and settings to JSON routes and pages (FastAPI)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pydantic_core
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException

from simcse_jax import __version__
from simcse_jax.serving.web import requests as r
from simcse_jax.serving.web.batching import Full, Stopped, TooSlow
from simcse_jax.serving.web.description import describe_limits
from simcse_jax.serving.web.desk import Desk, Model
from simcse_jax.serving.web.failures import described, described_as_openai, failure, in_words
from simcse_jax.serving.web.guard import Guard
from simcse_jax.serving.web.pages import docs_page, search_page
from simcse_jax.serving.web.settings import Settings


def make_app(model: Model, settings: Settings) -> FastAPI:
    """The app; it begins to work when it is started, and finishes what it has when it is stopped."""
    desk = Desk(model, settings)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        desk.encoding.start()
        desk.searching.start()
        yield
        desk.encoding.stop()
        desk.searching.stop()

    app = FastAPI(
        title="Sentence embeddings: encode, compare, search",
        version=__version__,
        docs_url=None,  # FastAPI's own page of the routes loads its scripts from elsewhere; ours is in pages.py
        redoc_url=None,
        redirect_slashes=False,
        lifespan=working,
    )
    app.add_middleware(Guard, settings=settings)
    app.include_router(_pages(desk))
    app.include_router(_json_routes(desk))
    app.include_router(_openai_routes(desk))
    describe_limits(app, settings, model.width)
    app.add_exception_handler(RequestValidationError, _wrong_value)
    app.add_exception_handler(AnyHTTPException, _refusal)
    app.add_exception_handler(Full, _full)
    app.add_exception_handler(Stopped, _stopped)
    app.add_exception_handler(TooSlow, _too_slow)
    return app


def _pages(desk: Desk) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        return search_page()

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return docs_page(request.app.openapi(), desk.settings.api_key is not None)

    return router


def _keyed(desk: Desk) -> list[Any]:
    """For the description alone: it is the guard that looks at keys."""
    return [Security(HTTPBearer(auto_error=False))] if desk.settings.api_key else []


def _json_routes(desk: Desk) -> APIRouter:
    router = APIRouter(route_class=r.StrictRoute, dependencies=_keyed(desk))
    name, width = desk.settings.name, desk.model.width

    @router.post("/encode", response_model=r.Vectors, summary="Vectors of texts", responses=described())
    async def encode(body: r.EncodeRequest) -> Response:
        """A vector of length 1 for each text, in their order; texts longer than the model takes are cut."""
        return _json({"vectors": (await desk.vectors(body.texts)).tolist(), "model": name, "width": width})

    @router.post("/similarity", response_model=r.Similarities, summary="Cosines of two lists", responses=described())
    async def similarity(body: r.SimilarityRequest) -> Response:
        """A row for each query, a column for each key; cosines, -1 to 1."""
        vectors = await desk.vectors([*body.queries, *body.keys])
        queries, keys = np.split(vectors, [len(body.queries)])
        return _json({"similarity": np.clip(queries @ keys.T, -1, 1).tolist(), "model": name})

    @router.post(
        "/search",
        response_model=r.Hits,
        summary="The nearest texts of the index",
        responses=described(_409="The server has no index."),
    )
    async def search(body: r.SearchRequest) -> Response:
        """For "query" its hits, best first; for "queries" a list of hits for each."""
        found = await desk.hits(body.texts, body.top_k, body.threshold)
        hits = [[{"text": h.text, "score": float(h.score), "id": int(h.id)} for h in one] for one in found]
        return _json({"hits": hits if "queries" in body.model_fields_set else hits[0], "model": name})

    @router.get(
        "/health", response_model=r.Health, summary="Whether the server is there", responses=described(*_NO_BODY)
    )
    async def health() -> Response:
        """What it serves, and how much waits."""
        index = desk.model.index
        return _json(
            {
                "status": "ok",
                "model": name,
                "width": width,
                "sentences": None if index is None else len(index),
                "waiting": desk.encoding.waiting,
                "needs_key": desk.settings.api_key is not None,
            }
        )

    return router


_NO_BODY = (400, 401, 415, 422, 504)  # what cannot happen where nothing is sent and no model asked


def _openai_routes(desk: Desk) -> APIRouter:
    router = APIRouter(route_class=r.StrictRoute, dependencies=_keyed(desk))

    @router.post(
        "/v1/embeddings",
        response_model=r.Embeddings,
        summary="Vectors of texts, in OpenAI's shape",
        responses=described_as_openai(),
    )
    async def embeddings(body: r.EmbeddingsRequest) -> Response:
        """For clients that speak it: give them this server's address, ending in /v1, as their base URL."""
        width = desk.model.width
        if body.dimensions not in (None, width):
            raise HTTPException(422, f"dimensions is {body.dimensions}; this model's vectors have {width}, uncut.")
        vectors, tokens = await desk.counted_vectors(body.input)
        rows = vectors.tolist() if body.encoding_format == "float" else map(_base64, vectors)
        return _json(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)],
                "model": desk.settings.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return router


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _json(value: Any) -> Response:
    # Not FastAPI's way, which would check each of the numbers and write them in Python.
    return Response(pydantic_core.to_json(value), media_type="application/json")


async def _wrong_value(request: Request, error: Any) -> Response:
    return failure(request.url.path, 422, in_words(error.errors()))


async def _refusal(request: Request, error: Any) -> Response:
    words = {
        404: "There is no such page; /docs lists what there is.",
        405: "This route takes another method; see /docs.",
    }
    said = words.get(error.status_code) or error.detail
    return failure(request.url.path, error.status_code, said, error.headers)


async def _full(request: Request, _: Exception) -> Response:
    return failure(request.url.path, 503, "Too many texts wait for the model already; come again in a second.")


async def _stopped(request: Request, _: Exception) -> Response:
    return failure(request.url.path, 503, "The server is about to stop.")


async def _too_slow(request: Request, _: Exception) -> Response:
    return failure(request.url.path, 504, "There was no answer within the time limit; ask again, or for less at once.")

"""Build the server's FastAPI app: JSON routes and pages for one model."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pydantic_core
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException

from simcse_jax import __version__
from simcse_jax.serving.web import description as d
from simcse_jax.serving.web import requests as r
from simcse_jax.serving.web.batching import BatchedModel, Model
from simcse_jax.serving.web.guard import Guard, Settings
from simcse_jax.serving.web.metrics import Metrics
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import normalize


def make_app(model: Model, settings: Settings) -> FastAPI:
    """Return the app; when it stops, it finishes the requests that it has."""
    batched = BatchedModel(model, settings)
    metrics = Metrics(lambda: batched.encoding.waiting)

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        yield
        await batched.stop()

    app = FastAPI(
        title="Sentence embeddings: encode, compare, search",
        version=__version__,
        docs_url=None,  # FastAPI's own page loads scripts from other sites; ours is in description.py
        redoc_url=None,
        redirect_slashes=False,
        lifespan=working,
        # For the description only: the guard checks the key.
        dependencies=[Security(HTTPBearer(auto_error=False))] if settings.api_key else [],
        servers=[{"url": settings.path_prefix}] if settings.path_prefix else None,
    )
    routers = _get_routes(batched, metrics), _post_routes(batched), _openai_routes(batched)
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    app.add_middleware(Guard, settings=settings, metrics=metrics, routes=routes)
    if settings.origins:
        # The last to be added is the first to see a request: browsers ask what is allowed without the key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    for router in routers:
        app.include_router(router)
    d.describe_limits(app, settings, model.widths, model.prompts)
    _refuse_ambiguous_prefix(app, settings.path_prefix)
    app.add_exception_handler(RequestValidationError, _wrong_value)
    app.add_exception_handler(AnyHTTPException, _refusal(f"{settings.path_prefix}/docs"))
    return app


def _refuse_ambiguous_prefix(app: FastAPI, prefix: str) -> None:
    """Raise UserError if the prefix begins like a route: a path would then say two things, as proxies may strip it."""
    firsts = {path.split("/")[1] for path in (*app.openapi()["paths"], "/docs")}
    if prefix and prefix.split("/")[1] in firsts:
        raise UserError(
            f"path_prefix is {prefix!r}, but {', '.join(sorted(firsts))} are routes. Take another, for example /embed."
        )


def _get_routes(batched: BatchedModel, metrics: Metrics) -> APIRouter:
    router = APIRouter()
    settings, model = batched.settings, batched.model

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return d.search_page()

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        address = f"{str(request.base_url).rstrip('/')}{settings.path_prefix}"
        return d.docs_page(request.app.openapi(), address, settings)

    @router.get("/health", response_model=d.Health, summary="State of the server", responses=d.failures(d.OF_ALL))
    async def health() -> Response:
        """Return what the server serves, and how many texts are waiting; 503 if the model does not encode."""
        await batched.check()
        return _json(
            {
                "status": "ok",
                "model": settings.name,
                "width": model.width,
                "widths": model.widths,
                "max_length": model.max_length,
                "sentences": None if model.index is None else len(model.index),
                "prompts": list(model.prompts),
                "waiting": batched.encoding.waiting,
                "needs_key": settings.api_key is not None,
            }
        )

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        summary="Numbers for Prometheus",
        responses=d.failures(d.OF_ALL | d.OF_KEYED),
    )
    async def numbers() -> Response:
        """Return requests by route and status, their times, the waiting texts, and the server's memory."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _post_routes(batched: BatchedModel) -> APIRouter:
    router = APIRouter(route_class=r.StrictRoute)
    name, widths = batched.settings.name, batched.model.widths
    failures = d.failures(d.OF_ALL | d.OF_KEYED | d.OF_BODIES)

    @router.post("/encode", response_model=d.Vectors, summary="Vectors of texts", responses=failures)
    async def encode(body: r.EncodeRequest) -> Response:
        """Return a vector of length 1 for each text, in their order; texts beyond the model's limit are cut."""
        _require_width(body.dimensions, widths)
        vectors, _ = await batched.vectors(body.texts, body.truncate, prompt_name=body.prompt_name)
        vectors = _shortened(vectors, body.dimensions)
        return _json({"vectors": vectors.tolist(), "model": name, "width": vectors.shape[1]})

    @router.post("/similarity", response_model=d.Similarities, summary="Cosines", responses=failures)
    async def similarity(body: r.SimilarityRequest) -> Response:
        """Return cosines, -1 to 1: a row for each query, a column for each key."""
        texts = [*body.queries, *body.keys]
        vectors, _ = await batched.vectors(texts, body.truncate, prompt_name=body.prompt_name)
        queries, keys = np.split(vectors, [len(body.queries)])
        return _json({"similarity": np.clip(queries @ keys.T, -1, 1).tolist(), "model": name})

    no_index = d.failures({409: "The server has no index."})

    @router.post(
        "/search", response_model=d.Hits, summary="The nearest texts of the index", responses=failures | no_index
    )
    async def search(body: r.SearchRequest) -> Response:
        """Return the hits of `query`, best first, or a list of hits for each of `queries`."""
        texts = body.queries or [body.query or ""]
        found = await batched.hits(texts, body.top_k or r.TOP_K, body.threshold, body.truncate, body.prompt_name)
        hits = [[{"text": h.text, "score": float(h.score), "id": int(h.id)} for h in one] for one in found]
        return _json({"hits": hits if body.queries else hits[0], "model": name})

    return router


def _openai_routes(batched: BatchedModel) -> APIRouter:
    router = APIRouter(prefix=r.OPENAI_PREFIX, route_class=r.StrictRoute)
    name, widths = batched.settings.name, batched.model.widths
    served = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "simcse_jax"}
    failures = d.failures(d.OF_ALL | d.OF_KEYED, d.OpenAIFailure)

    @router.get("/models", response_model=d.ServedModels, summary="The model, as a list", responses=failures)
    async def models() -> Response:
        """Return the one model of this server."""
        return _json({"object": "list", "data": [served]})

    @router.get(
        "/models/{id:path}",
        response_model=d.ServedModel,
        summary="The model",
        responses=failures | d.failures({404: "The server has no such model."}, d.OpenAIFailure),
    )
    async def model(id: str) -> Response:
        """Return the model of this name."""
        if id != name:
            raise HTTPException(404, f"This server has no model {id:.80}; it has {name}.")
        return _json(served)

    @router.post(
        "/embeddings",
        response_model=d.Embeddings,
        summary="Vectors of texts, in OpenAI's format",
        responses=failures | d.failures(d.OF_BODIES, d.OpenAIFailure),
    )
    async def embeddings(body: r.EmbeddingsRequest) -> Response:
        """Return vectors as OpenAI's API does; set a client's base URL to this server's address followed by /v1."""
        _require_width(body.dimensions, widths)
        options = {"counted": True, "prompt_name": body.prompt_name}
        vectors, tokens = await batched.vectors(body.input, body.truncate, **options)
        vectors = _shortened(vectors, body.dimensions)
        rows = map(_base64, vectors) if body.encoding_format == "base64" else vectors.tolist()
        return _json(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)],
                "model": name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return router


def _require_width(dimensions: int | None, widths: Sequence[int]) -> None:
    """Raise HTTPException 422 for a width that is not one of the model's."""
    if dimensions not in (None, *widths):
        known = " or ".join(map(str, widths))
        raise HTTPException(422, f"dimensions is {dimensions}; this model's vectors have {known}.")


def _shortened(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Return the first features of vectors, scaled to length 1, as `SimCSE.encode` does with truncate_dim."""
    return vectors if dimensions in (None, vectors.shape[1]) else normalize(vectors[:, :dimensions])


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _json(value: Any) -> Response:
    # FastAPI itself would check every number and write it in Python.
    return Response(pydantic_core.to_json(value), media_type="application/json")


async def _wrong_value(request: Request, error: Any) -> Response:
    return r.failure(request.url.path, 422, r.format_errors(error.errors()))


def _refusal(docs: str) -> Any:
    """Return the handler of refusals. docs: the path of the page about the routes."""
    messages = {
        "Not Found": f"There is no such page. {docs} lists the routes.",
        "Method Not Allowed": f"This route takes another method. See {docs}.",
    }

    async def refusal(request: Request, error: Any) -> Response:
        message = messages.get(error.detail, str(error.detail))
        return r.failure(request.url.path, error.status_code, message, error.headers)

    return refusal

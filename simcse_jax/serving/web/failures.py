"""What clients are told when something is wrong: words, in the shape that each route's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from pydantic import BaseModel

OPENAI_PATHS = "/v1/"
RETRY_AFTER_S = "1"


class Failure(BaseModel):
    """What went wrong, in words."""

    detail: str


class OpenAIFailureBody(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFailure(BaseModel):
    """The shape of OpenAI's errors."""

    error: OpenAIFailureBody


# Every status that a route may answer with, and why; for the OpenAPI description.
WHY = {
    400: "The request is no JSON that can be read.",
    401: "The API key is missing or wrong.",
    408: "The request did not arrive within the time limit.",
    413: "The request has too many bytes.",
    415: "The request is not said to be JSON.",
    421: "The server is called by a name that it does not know.",
    422: "A value is not what is asked for.",
    500: "The server is at fault.",
    503: "Too much waits already; Retry-After says when to come again.",
    504: "There was no answer within the time limit.",
}


def described(*without: int, **more: str) -> dict[int | str, dict[str, Any]]:
    """The failures of a route for FastAPI's `responses`; without: statuses that it has not, more: `_409="Why."`."""
    whys = {status: why for status, why in WHY.items() if status not in without}
    whys |= {int(status[1:]): why for status, why in more.items()}
    return {status: {"model": Failure, "description": why} for status, why in whys.items()}


def described_as_openai() -> dict[int | str, dict[str, Any]]:
    """The same for the routes in OpenAI's shape, where a wrong value is a 400."""
    return {s: {"model": OpenAIFailure, "description": why} for s, why in WHY.items() if s != 422}


def failure(path: str, status: int, words: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response that says so, in the shape of the path's clients."""
    headers = dict(headers or {})
    if status == 503:
        headers.setdefault("Retry-After", RETRY_AFTER_S)
    body: dict[str, Any] = {"detail": words}
    if path.startswith(OPENAI_PATHS):
        status = 400 if status == 422 else status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        code = {401: "invalid_api_key", 503: "overloaded", 504: "timeout"}.get(status)
        body = {"error": {"message": words, "type": kind, "param": None, "code": code}}
    # ASCII: words may quote what the client sent, and a lone surrogate is no UTF-8.
    return Response(json.dumps(body), status, headers, "application/json")


def in_words(errors: list[Any]) -> str:
    """What pydantic found, as sentences: "texts[3]: Input should be a valid string."; the first three of them."""
    said = []
    for error in errors[:3]:
        steps = [step for step in error["loc"] if step != "body"]
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step:.60}" for step in steps).lstrip(".")
        words = error["msg"].removeprefix("Value error, ")
        said.append(f"{place}: {words}" if place else words)
    more = [f"and {len(errors) - 3} more like these"] if len(errors) > 3 else []
    return "; ".join(said + more) + "."

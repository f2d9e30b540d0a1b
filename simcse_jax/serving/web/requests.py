"""Read and check the bodies of requests, and say what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from simcse_jax.system.texts import half_character

if TYPE_CHECKING:
    from simcse_jax.serving.web.guard import Settings

# "5" is not a number, and an unknown key is an error.
STRICT = ConfigDict(strict=True, extra="forbid")
MOST_KEYS = 100  # of one object; routes know a handful
TOP_K = 5  # hits of a query by default
OPENAI_PREFIX = "/v1"
RETRY_AFTER_S = "1"


def _example(**example: Any) -> ConfigDict:
    """Return a model config with an example for the OpenAPI description."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_tokens(value: Any) -> Any:
    first = value[0] if isinstance(value, list) and value else None
    if type(first[0] if isinstance(first, list) and first else first) is int:
        words = "token ids belong to another tokenizer; send the text (LangChain: check_embedding_ctx_length=False)"
        raise ValueError(words)
    return _as_list(value)


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON's 5.0 is 5


DIMENSIONS = "The width of the vectors; see /health for widths."
Number = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_as_integer)]


def _text_or_list() -> WithJsonSchema:
    several = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    return WithJsonSchema({"anyOf": [{"type": "string"}, several]})


# The first wrong text ends the check: there may be millions, each with a long message.
TextList = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Texts = Annotated[TextList, BeforeValidator(_as_list), _text_or_list()]  # a single text counts as a list of one


class _Body(BaseModel):
    """Hold what all routes take. Null means left out, for every key that may be."""

    truncate: bool | None = Field(
        default=None, description="false refuses texts beyond the model's limit; they are cut otherwise."
    )
    prompt_name: str | None = Field(
        default=None, description="A prompt of the model, which is put before each text; see /health for names."
    )


class EncodeRequest(_Body):
    """Hold the texts to encode: one, or a list."""

    model_config = STRICT | _example(texts=["A man is playing guitar.", "Someone plays an instrument."])
    texts: Texts
    dimensions: Number | None = Field(default=None, description=DIMENSIONS)


class SimilarityRequest(_Body):
    """Hold two lists of texts; each may be a single text."""

    model_config = STRICT | _example(queries=["A man is playing guitar."], keys=["Someone plays.", "It rains."])
    queries: Texts
    keys: Texts


def _one_of_two(schema: dict[str, Any]) -> None:
    schema["examples"] = [{"query": "someone plays an instrument", "top_k": TOP_K}]
    schema["oneOf"] = [
        {"required": [name], "properties": {name: {"type": kind}, other: {"type": "null"}}}
        for name, kind, other in (("query", "string", "queries"), ("queries", "array", "query"))
    ]


class SearchRequest(_Body):
    """Hold what to search for: `query`, one text, or `queries`, a list."""

    model_config = STRICT | {"json_schema_extra": _one_of_two}
    query: str | None = None
    queries: TextList | None = None
    top_k: Number | None = Field(default=TOP_K, description="The largest number of hits for a query.")
    threshold: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False, description="The lowest score.")

    @model_validator(mode="after")
    def _one(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either `query`, one text, or `queries`, a list of texts")
        return self


class EmbeddingsRequest(_Body):
    """Hold what OpenAI's clients send; unknown keys are ignored."""

    model_config = ConfigDict(strict=True) | _example(input=["A man is playing guitar."], model="simcse")
    input: Annotated[TextList, BeforeValidator(_no_tokens), _text_or_list()]
    model: str | None = Field(default=None, description="Any name; the server has one model, and the answer names it.")
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Number | None = Field(default=None, description=DIMENSIONS)


def check_texts(texts: list[str], settings: Settings) -> None:
    """Raise HTTPException 422 if there are too many texts, or one is too long."""
    if len(texts) > settings.max_texts:
        raise HTTPException(422, f"{len(texts):,} texts in one request; the limit is {settings.max_texts:,}.")
    for number, text in enumerate(texts):
        if len(text) > settings.max_characters:
            words = f"has {len(text):,} characters; the limit is {settings.max_characters:,}."
            raise HTTPException(422, f"{name_text(number, texts)} {words}")


def name_text(number: int, texts: list[str]) -> str:
    """Return how a message names one of the texts of a request."""
    return f"Text {number}" if len(texts) > 1 else "The text"


def read_json(body: bytes) -> Any:
    """Parse a body as JSON; raises HTTPException: 400 if it cannot be read, 422 if a text holds half a character."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repeated_keys)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"The body is not JSON in UTF-8: {error!s:.200}.") from error
    except ValueError as error:  # of Python's `int`
        raise HTTPException(400, "The body has a number with too many digits.") from error
    except RecursionError as error:
        raise HTTPException(400, "The body has too many lists or objects within each other.") from error
    # A lone surrogate, half of a character, cannot be tokenised or sent back. Only \u can make one.
    if b"\\u" in body and (fault := _find_half(value)):
        raise HTTPException(422, f"{fault.lstrip('.')}. Remove it.")
    return value


def _find_half(value: Any) -> str:
    """Return in words where a value of JSON holds half a character, as in ".texts[3] holds ..."; "" for none."""
    if isinstance(value, str):
        fault = half_character(value)
        return f" {fault}" if fault else ""
    if isinstance(value, dict):
        for key, one in value.items():
            if fault := half_character(key):
                return f" has a key that {fault}"
            if fault := _find_half(one):
                return f".{key:.60}{fault}"
    elif isinstance(value, list):
        for n, one in enumerate(value):
            if fault := _find_half(one):
                return f"[{n}]{fault}"
    return ""


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise HTTPException(400, f"An object has {len(pairs):,} keys; the limit is {MOST_KEYS}.")
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise HTTPException(400, f"The key {key:.60} occurs twice in one object.")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise HTTPException(400, f"The body is not JSON: {name} is not one of its numbers.")


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """Read the body of a route with `read_json`."""

    def get_route_handler(self) -> Any:
        """Return the handler, with a strict request in place of the usual one."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def failure(path: str, status: int, words: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with an error message, in OpenAI's shape for its paths."""
    headers = dict(headers or {})
    if status == 503:
        headers.setdefault("Retry-After", RETRY_AFTER_S)
    body: dict[str, Any] = {"detail": words}
    if path.startswith(f"{OPENAI_PREFIX}/"):
        status = 400 if status == 422 else status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        code = {401: "invalid_api_key", 503: "overloaded", 504: "timeout"}.get(status)
        body = {"error": {"message": words, "type": kind, "param": None, "code": code}}
    # ASCII: words may quote what the client sent, and a lone surrogate has no UTF-8.
    return Response(json.dumps(body), status, headers, "application/json")


def format_errors(errors: list[Any]) -> str:
    """Return the first three of pydantic's errors as text: "texts[3]: Input should be a valid string."."""
    found = []
    for error in errors[:3]:
        steps = [step for step in error["loc"] if step != "body"]
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step:.60}" for step in steps).lstrip(".")
        words = error["msg"].removeprefix("Value error, ")
        found.append(f"{place}: {words}" if place else words)
    more = [f"and {len(errors) - 3} more"] if len(errors) > 3 else []
    return "; ".join(found + more) + "."

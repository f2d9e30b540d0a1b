"""What clients send and get: the bodies of all routes, checked, and their JSON read strictly."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema, model_validator

from simcse_jax.serving.web.settings import Settings

# "5" is no number and a misspelt key no key: better said than guessed.
STRICT = ConfigDict(strict=True, extra="forbid")
MOST_KEYS = 100  # of one object; no route knows more than a handful


def _shown(**example: Any) -> ConfigDict:
    """For the description: what a request looks like."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_tokens(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise ValueError("lists of token ids are not taken, for they would be another tokenizer's; send the text")
    return _listed(value)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON's 5.0 is 5


Number = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]


def _text_or_list() -> WithJsonSchema:
    several = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    return WithJsonSchema({"anyOf": [{"type": "string"}, several]})


# The first wrong text ends the check: there may be millions, and each would be described at length.
TextList = Annotated[list[str], FailFast(), Field(min_length=1)]
Texts = Annotated[TextList, BeforeValidator(_listed), _text_or_list()]  # one text counts as a list of it


class EncodeRequest(BaseModel):
    """Texts to encode: one, or a list."""

    model_config = STRICT | _shown(texts=["A man is playing guitar.", "Someone plays an instrument."])
    texts: Texts


class Vectors(BaseModel):
    """A vector of length 1 for each text, in their order."""

    vectors: list[list[float]]
    model: str
    width: int


class SimilarityRequest(BaseModel):
    """Two lists of texts, each also a single one."""

    model_config = STRICT | _shown(queries=["A man is playing guitar."], keys=["Someone plays.", "It rains."])
    queries: Texts
    keys: Texts


class Similarities(BaseModel):
    """Cosines, -1 to 1: a row for each query, a column for each key."""

    similarity: list[list[float]]
    model: str


def _one_of_two(schema: dict[str, Any]) -> None:
    schema["examples"] = [{"query": "someone plays an instrument", "top_k": 5}]
    schema["oneOf"] = [{"required": ["query"]}, {"required": ["queries"]}]
    for name in ("query", "queries"):
        schema["properties"][name].pop("default", None)


class SearchRequest(BaseModel):
    """What to look for: `query`, one text, or `queries`, a list."""

    model_config = STRICT | {"json_schema_extra": _one_of_two}
    query: str = ""
    queries: TextList = []
    top_k: Number = Field(default=5, description="The most hits for a query.")
    threshold: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False, description="The lowest score.")

    @model_validator(mode="after")
    def _one(self) -> SearchRequest:
        if len(self.model_fields_set & {"query", "queries"}) != 1:
            raise ValueError("give either `query`, one text, or `queries`, a list of texts")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries as a list."""
        return self.queries if "queries" in self.model_fields_set else [self.query]


class FoundText(BaseModel):
    """A text of the index, its cosine with the query, and its number in the index."""

    text: str
    score: float
    id: int


class Hits(BaseModel):
    """The hits of a query, best first; of `queries`, a list of them for each."""

    hits: list[FoundText] | list[list[FoundText]]
    model: str


class Health(BaseModel):
    """That the server is there, and what it serves."""

    status: Literal["ok"]
    model: str
    width: int
    sentences: int | None  # in the index; null: there is none
    waiting: int  # what waits for the model, in texts; a long one counts for several
    needs_key: bool


class EmbeddingsRequest(BaseModel):
    """What OpenAI's clients send; keys that mean nothing here are passed over."""

    model_config = ConfigDict(strict=True) | _shown(input=["A man is playing guitar."], model="simcse")
    input: Annotated[TextList, BeforeValidator(_no_tokens), _text_or_list()]
    model: str = Field(default="", description="Any name: the server has one model, and says which.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Number | None = Field(default=None, description="If given, the model's own width.")


class Embedding(BaseModel):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """What OpenAI's clients get."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


def check_texts(texts: list[str], settings: Settings) -> None:
    """HTTPException 422 where there are too many of them, or one is too long."""
    if len(texts) > settings.max_texts:
        raise HTTPException(422, f"{len(texts):,} texts in one request; the limit is {settings.max_texts:,}.")
    for number, text in enumerate(texts):
        if len(text) > settings.max_characters:
            which = f"Text {number}" if len(texts) > 1 else "The text"
            words = f"{which} has {len(text):,} characters; the limit is {settings.max_characters:,}."
            raise HTTPException(422, words)


def read_json(body: bytes) -> Any:
    """The value that the body holds; HTTPException 400 for what is no JSON, half a character or too many keys."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_twins)
        if b"\\u" in body:
            # A lone surrogate, half of a character, is no text: no tokenizer takes it, nor can it be sent back.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"The body is not UTF-8 (byte {error.start}).") from error
    except UnicodeEncodeError as error:
        raise HTTPException(400, "A string holds half of a character (a lone surrogate such as \\ud800).") from error
    except RecursionError as error:
        raise HTTPException(400, "The JSON is nested too deeply.") from error
    except ValueError as error:
        raise HTTPException(400, f"The body is no JSON: {error!s:.200}.") from error
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise HTTPException(400, f"An object has {len(pairs):,} keys; the limit is {MOST_KEYS}.")
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key:.60} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


class _StrictRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


class StrictRoute(APIRoute):
    """A route whose body is read by `read_json`."""

    def get_route_handler(self) -> Any:
        """The handler, with the strict request in place of the usual one."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict

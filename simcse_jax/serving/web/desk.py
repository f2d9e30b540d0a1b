"""The model behind its queues: what the routes ask for, done together for all clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from fastapi import HTTPException

from simcse_jax.serving.web.batching import Batcher
from simcse_jax.serving.web.requests import check_texts
from simcse_jax.serving.web.settings import Settings

if TYPE_CHECKING:
    from simcse_jax.serving.index.sentence_index import Hit

LONG = 1000  # characters of a text that counts as one where texts are counted for the queue


class Model(Protocol):
    """What the server needs of `SimCSE`; all but `index` is called from one thread alone."""

    @property
    def width(self) -> int: ...
    @property
    def index(self) -> Any: ...
    def encode(self, sentences: list[str]) -> np.ndarray: ...
    def count_tokens(self, sentences: list[str]) -> Any: ...  # whole numbers, one for each


class _Text(NamedTuple):
    text: str
    counted: bool = False


class _Query(NamedTuple):
    vector: np.ndarray
    top_k: int
    threshold: float | None


class Desk:
    """Answers what the routes ask; `encoding` and `searching` are to be started before, and stopped after."""

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        limits = (settings.max_together, settings.max_waiting, settings.time_limit_s)
        self.encoding = Batcher(self._encode, *limits, size=lambda asked: 1 + len(asked.text) // LONG)
        self.searching = Batcher(self._search, *limits)

    async def vectors(self, texts: list[str]) -> np.ndarray:
        """float32[N, D], of length 1."""
        check_texts(texts, self.settings)
        return np.stack([vector for vector, _ in await self.encoding.results([_Text(text) for text in texts])])

    async def counted_vectors(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """The same, and how many tokens the model read."""
        check_texts(texts, self.settings)
        found = await self.encoding.results([_Text(text, counted=True) for text in texts])
        return np.stack([vector for vector, _ in found]), sum(count for _, count in found)

    async def hits(self, texts: list[str], top_k: int, threshold: float | None) -> list[list[Hit]]:
        """For each text its hits, best first; HTTPException 409 without an index."""
        if self.model.index is None:
            words = "This server has no sentences to search; start it with --corpus=FILE, or with a saved index."
            raise HTTPException(409, words)
        if top_k > self.settings.max_top_k:
            raise HTTPException(422, f"top_k is {top_k:,}; the limit is {self.settings.max_top_k:,}.")
        if len(texts) * top_k > self.settings.max_hits:
            words = f"{len(texts):,} queries with top_k {top_k:,} are up to {len(texts) * top_k:,} hits; the limit is"
            raise HTTPException(422, f"{words} {self.settings.max_hits:,}.")
        vectors = await self.vectors(texts)
        return await self.searching.results([_Query(vector, top_k, threshold) for vector in vectors])

    def _encode(self, asked: list[_Text]) -> list[tuple[np.ndarray, int]]:
        vectors = self.model.encode([text for text, _ in asked])
        counted = [text for text, counted in asked if counted]
        counts = iter(self.model.count_tokens(counted) if counted else ())
        return [
            (vector, int(next(counts)) if counted else 0) for vector, (_, counted) in zip(vectors, asked, strict=True)
        ]

    def _search(self, queries: list[_Query]) -> list[list[Hit]]:
        found: dict[int, list[Hit]] = {}
        for top_k in {query.top_k for query in queries}:  # nobody pays for the many hits of another
            places = [n for n, query in enumerate(queries) if query.top_k == top_k]
            hits = self.model.index.search(np.stack([queries[n].vector for n in places]), top_k)
            found |= dict(zip(places, hits, strict=True))
        return [
            [hit for hit in found[n] if query.threshold is None or hit.score >= query.threshold]
            for n, query in enumerate(queries)
        ]

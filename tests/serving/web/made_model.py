"""A model for the server's tests: words hashed to vectors, at once and always the same; and an index over them."""

import functools
import hashlib
import threading
from typing import NamedTuple

import numpy as np

from simcse_jax.system.texts import NoTokensError

WIDTH = 32
CAPTIONS = (
    "A man is playing guitar.",
    "Someone plays an instrument.",
    "A woman slices an onion.",
    "It has been raining all day.",
    "Two dogs run over the beach.",
    "The man is playing a flute.",
    "<b>Not & bold</b> in any page.",
    "A very long text " + "that goes on and on and on, " * 12 + "until it ends.",
)


class Hit(NamedTuple):
    text: str
    score: float
    id: int


@functools.cache
def hashed(text: str) -> np.ndarray:
    """float32[WIDTH] of length 1: the sum of a random vector for each word, so that shared words mean closeness."""
    total = np.full(WIDTH, 1e-3, np.float32)
    for word in text.lower().replace(".", "").split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        total += np.random.default_rng(seed).standard_normal(WIDTH, np.float32)
    return total / np.linalg.norm(total)


class MadeIndex:
    def __init__(self, texts: tuple[str, ...] = CAPTIONS):
        self.texts = texts
        self.vectors = np.array([hashed(text) for text in texts], np.float32).reshape(-1, WIDTH)
        self.searched: list[int] = []  # the number of queries of each call

    def __len__(self) -> int:
        return len(self.texts)

    def search(self, queries: np.ndarray, top_k: int = 5, threshold: float | None = None) -> list[list[Hit]]:
        self.searched.append(len(queries))
        scores = queries @ self.vectors.T
        low = -1 if threshold is None else threshold
        return [[Hit(self.texts[n], row[n], n) for n in np.argsort(-row)[:top_k] if row[n] >= low] for row in scores]


class MadeModel:
    """The part of SimCSE that the server uses. gate: closed, it lets nothing be encoded; entered: set by each call."""

    def __init__(self, index: MadeIndex | None = None):
        self.width, self.widths, self.max_length, self.index = WIDTH, (WIDTH // 2, WIDTH), 128, index
        self.prompts = {"query": "someone asks ", "document": ""}
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def encode(self, sentences: list[str], *, prompt: str | None = None) -> np.ndarray:
        sentences = [f"{prompt or ''}{text}" for text in sentences]
        self.calls.append(list(sentences))
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(30)
        if "poison" in sentences:
            raise RuntimeError("poisoned")
        if "\u200b" in sentences:
            raise NoTokensError("The text has no tokens.")
        return np.stack([hashed(text) * (np.nan if text == "nan" else 1) for text in sentences])

    def count_tokens(self, sentences: list[str], cut: bool = True, prompt: str | None = None) -> list[int]:
        self.threads.add(threading.get_ident())
        counts = [len(f"{prompt or ''}{text}".split()) + 2 for text in sentences]
        return [min(count, self.max_length) for count in counts] if cut else counts

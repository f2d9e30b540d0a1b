"""Discrete augmentations: sentences with words cut away, deleted or repeated (SimCSE's table 1; ESimCSE, section 3.1).

What happens to a sentence is a function of the step's key and of its place in the global batch. Special tokens stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.hashing import token_bits


class Change(Protocol):
    """A way to change sentences."""

    def bound(self, lengths: np.ndarray) -> np.ndarray:
        """int32, like `lengths`: the most tokens that sentences of so many can have afterwards."""
        ...

    def __call__(self, tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        """Changed sentences, of int32 arrays of token ids; places: int[N], theirs in the batch; key: uint32[4]."""
        ...


class Words(NamedTuple):
    """N sentences laid end to end, n tokens, and their words."""

    ids: np.ndarray  # int32[n]
    sentence: np.ndarray  # int64[n]: which sentence, from 0
    position: np.ndarray  # int64[n]: place in it
    word: np.ndarray  # int64[n]: which word of all W, from 0; -1 for special tokens
    owner: np.ndarray  # int64[W]: the sentence of each word
    rank: np.ndarray  # int64[W]: place of each word in its sentence
    counts: np.ndarray  # int64[N]: words of each sentence


def words_of(tokens: Sequence[np.ndarray], vocabulary: Vocabulary) -> Words:
    """The words of these sentences."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ids = np.concatenate(tokens)
    sentence = np.repeat(np.arange(len(tokens)), lengths)
    position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    starts = vocabulary.word_starts(ids, position == 0)
    owner = sentence[starts]
    counts = np.bincount(owner, minlength=len(tokens))
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    word = np.where(vocabulary.special[ids], -1, np.cumsum(starts) - 1)
    return Words(ids, sentence, position, word, owner, rank, counts)


@dataclass(frozen=True)
class Crop:
    """A stretch of the words is kept, and a share `rate` of them, at either end, cut away."""

    vocabulary: Vocabulary
    rate: float

    def bound(self, lengths: np.ndarray) -> np.ndarray:
        return lengths

    def __call__(self, tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, self.vocabulary)
        cut = share(self.rate, words.counts, words.counts - 1, key, places)
        first = (_chances(key[1], places) * (cut + 1)).astype(np.int64)
        last = first + words.counts - cut
        kept = (words.rank >= first[words.owner]) & (words.rank < last[words.owner])
        return _times(words, _of_words(words, kept.astype(np.int64)))


@dataclass(frozen=True)
class WordDeletion:
    """A share `rate` of the words is deleted; 0: exactly one. One word is always left."""

    vocabulary: Vocabulary
    rate: float

    def bound(self, lengths: np.ndarray) -> np.ndarray:
        return lengths

    def __call__(self, tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, self.vocabulary)
        deleted = chosen_words(words, np.ones_like(words.owner, bool), self.rate, words.counts - 1, key, places)
        return _times(words, _of_words(words, 1 - deleted.astype(np.int64)))


@dataclass(frozen=True)
class Repetition:
    """Tokens of text are repeated (ESimCSE): between none and max(2, rate * n) of them, as many as max_length allows.

    n counts special tokens, as ESimCSE's code does.
    """

    vocabulary: Vocabulary
    rate: float
    max_length: int

    def bound(self, lengths: np.ndarray) -> np.ndarray:
        return np.minimum(lengths + self._most(lengths), self.max_length).astype(lengths.dtype)

    def _most(self, lengths: np.ndarray) -> np.ndarray:
        return np.maximum(2, (self.rate * lengths).astype(lengths.dtype))

    def __call__(self, tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, self.vocabulary)
        text = words.word >= 0
        lengths = np.bincount(words.sentence, minlength=len(tokens))
        of_text = np.bincount(words.sentence[text], minlength=len(tokens))
        most = np.minimum(np.minimum(self._most(lengths), self.max_length - lengths), of_text)
        wanted = (_chances(key[0], places) * (most + 1)).astype(np.int64)
        bits = token_bits(key[1], places[words.sentence], words.position)
        return _times(words, 1 + (text & _first(words.sentence, bits, text, wanted)))


def share(rate: float, of: np.ndarray, most: np.ndarray, key: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64[N]: rate * `of`, rounded up or down by chance, so that on average it is exactly that; 0 to `most`."""
    return np.clip(np.floor(rate * of + _chances(key[0], places)).astype(np.int64), 0, np.maximum(most, 0))


def chosen_words(
    words: Words, among: np.ndarray, rate: float, most: np.ndarray, key: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """bool[W]: a share `rate` of each sentence's words, or one where it is 0, at random among bool[W]; at most most."""
    wanted = share(rate, words.counts, most, key, places) if rate else np.minimum(1, np.maximum(most, 0))
    bits = token_bits(key[1], places[words.owner], words.rank)
    return _first(words.owner, bits, among, wanted)


def _first(owner: np.ndarray, bits: np.ndarray, among: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool[n]: of each owner's among bool[n], those `wanted` with the smallest bits; owner is sorted."""
    candidates = np.flatnonzero(among)
    order = candidates[np.lexsort((bits[candidates], owner[candidates]))]
    counts = np.bincount(owner[order], minlength=len(wanted))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.zeros(len(owner), bool)
    first[order[rank < wanted[owner[order]]]] = True
    return first


def _chances(key: np.uint32, places: np.ndarray) -> np.ndarray:
    """float64[N] in [0, 1): one number a sentence."""
    return token_bits(key, places, np.full_like(places, -1)) / 2**32


def _of_words(words: Words, values: np.ndarray) -> np.ndarray:
    """int64[n]: each token has its word's value of int64[W], special tokens 1."""
    return np.where(words.word >= 0, np.r_[values, 0][words.word], 1)


def _times(words: Words, counts: np.ndarray) -> list[np.ndarray]:
    """The sentences with each token int64[n] times."""
    lengths = np.bincount(words.sentence, counts, minlength=len(words.counts)).astype(np.int64)
    return np.split(np.repeat(words.ids, counts), np.cumsum(lengths)[:-1])

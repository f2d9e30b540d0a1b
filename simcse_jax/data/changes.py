"""Change sentences: words cut away, deleted or repeated (SimCSE's table 1; ESimCSE, section 3.1).

What happens to a sentence is a function of the step's key and of its place in the global batch. Special tokens stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.hashing import token_bits


class Tokens(NamedTuple):
    """Hold what a change needs to know of the tokens of a corpus."""

    tokenizer: Any
    vocabulary: Vocabulary
    max_length: int  # tokens that a sentence can have at most, special tokens included


def _same(lengths: np.ndarray) -> np.ndarray:
    return lengths


class Change(NamedTuple):
    """Hold a way to change sentences.

    apply: (tokens, places, key) -> the changed sentences; both are lists of N int32 arrays of token ids. places int[N]:
    the sentences' places in the global batch; key uint32[4]. The arrays that come in stay as they are.
    bound: lengths int32[...] -> int32, the most tokens that sentences of these lengths can have afterwards.
    """

    apply: Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray], list[np.ndarray]]
    bound: Callable[[np.ndarray], np.ndarray] = _same


class Words(NamedTuple):
    """Hold the words of N sentences laid end to end, n tokens in all."""

    ids: np.ndarray  # int32[n]
    sentence: np.ndarray  # int64[n]: which sentence, from 0
    position: np.ndarray  # int64[n]: place in it
    word: np.ndarray  # int64[n]: which word of all W, from 0; -1 for special tokens
    owner: np.ndarray  # int64[W]: the sentence of each word
    rank: np.ndarray  # int64[W]: place of each word in its sentence
    counts: np.ndarray  # int64[N]: words of each sentence


def words_of(tokens: Sequence[np.ndarray], vocabulary: Vocabulary) -> Words:
    """Return the words of these sentences."""
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


def crop(given: Tokens, *, rate: float) -> Change:
    """Return a change that keeps a stretch of the words, and cuts a share `rate` of them away at the ends."""

    def apply(tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, given.vocabulary)
        cut = share(rate, words.counts, words.counts - 1, key, places)
        first = (_chances(key[1], places) * (cut + 1)).astype(np.int64)
        last = first + words.counts - cut
        kept = (words.rank >= first[words.owner]) & (words.rank < last[words.owner])
        return _repeat_tokens(words, _of_words(words, kept.astype(np.int64)))

    return Change(apply)


def word_deletion(given: Tokens, *, rate: float) -> Change:
    """Return a change that deletes a share `rate` of the words, exactly one for 0; one word is always left."""

    def apply(tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, given.vocabulary)
        deleted = choose_words(words, np.ones_like(words.owner, bool), rate, words.counts - 1, key, places)
        return _repeat_tokens(words, _of_words(words, 1 - deleted.astype(np.int64)))

    return Change(apply)


def repetition(given: Tokens, *, rate: float) -> Change:
    """Return ESimCSE's change: between none and max(2, rate * n) tokens are repeated, as many as max_length allows.

    n counts special tokens, as ESimCSE's code does; these are never repeated.
    """

    def most_of(lengths: np.ndarray) -> np.ndarray:
        return np.maximum(2, (rate * lengths).astype(lengths.dtype))

    def bound(lengths: np.ndarray) -> np.ndarray:
        return np.minimum(lengths + most_of(lengths), given.max_length).astype(lengths.dtype)

    def apply(tokens: Sequence[np.ndarray], places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
        words = words_of(tokens, given.vocabulary)
        text = words.word >= 0
        lengths = np.bincount(words.sentence, minlength=len(tokens))
        of_text = np.bincount(words.sentence[text], minlength=len(tokens))
        most = np.minimum(np.minimum(most_of(lengths), given.max_length - lengths), of_text)
        wanted = (_chances(key[0], places) * (most + 1)).astype(np.int64)
        bits = token_bits(key[1], places[words.sentence], words.position)
        return _repeat_tokens(words, 1 + (text & _first(words.sentence, bits, text, wanted)))

    return Change(apply, bound)


def share(rate: float, of: np.ndarray, most: np.ndarray, key: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return int64[N]: rate * `of`, rounded up or down by chance, so exact on average; from 0 to `most`."""
    return np.clip(np.floor(rate * of + _chances(key[0], places)).astype(np.int64), 0, np.maximum(most, 0))


def choose_words(
    words: Words, among: np.ndarray, rate: float, most: np.ndarray, key: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Return bool[W]: for each sentence, a share `rate` of its words (one for 0), drawn from those in bool[W] `among`.

    At most int[N] `most` words of a sentence.
    """
    wanted = share(rate, words.counts, most, key, places) if rate else np.minimum(1, np.maximum(most, 0))
    bits = token_bits(key[1], places[words.owner], words.rank)
    return _first(words.owner, bits, among, wanted)


def _first(owner: np.ndarray, bits: np.ndarray, among: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return bool[n]: of each owner's items in `among`, the `wanted` with the smallest bits; owner is sorted."""
    candidates = np.flatnonzero(among)
    order = candidates[np.lexsort((bits[candidates], owner[candidates]))]
    counts = np.bincount(owner[order], minlength=len(wanted))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.zeros(len(owner), bool)
    first[order[rank < wanted[owner[order]]]] = True
    return first


def _chances(key: np.uint32, places: np.ndarray) -> np.ndarray:
    """Return float64[N] in [0, 1): one number a sentence."""
    return token_bits(key, places, np.full_like(places, -1)) / 2**32


def _of_words(words: Words, values: np.ndarray) -> np.ndarray:
    """Return int64[n]: for each token its word's value of int64[W], for special tokens 1."""
    return np.where(words.word >= 0, np.r_[values, 0][words.word], 1)


def _repeat_tokens(words: Words, counts: np.ndarray) -> list[np.ndarray]:
    """Return the sentences with each token int64[n] times."""
    lengths = np.bincount(words.sentence, counts, minlength=len(words.counts)).astype(np.int64)
    return np.split(np.repeat(words.ids, counts), np.cumsum(lengths)[:-1])

"""Mask copies of sentences as BERT does (Devlin et al. 2019, section 3.1 and appendix A.1).

What is masked is a function of (seed, step) and of the token's place in its sentence of the global batch, never of its
group, row or host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.group import Group, MaskedGroup
from simcse_jax.hashing import token_bits

# Shares of the tokens to predict that become the mask, or a random token; the rest stay as they are.
MASKED, REPLACED = 0.8, 0.1
LONGEST_WORD = 8  # tokens; longer words are masked in parts, as a text without spaces would be one word


@dataclass(frozen=True)
class Masking:
    """Mask the sentences of a group.

    rate: share of the tokens of text to predict, in (0, 1). whole_word: choose words, not their pieces. all_masked: all
    tokens to predict become the mask.
    """

    vocabulary: Vocabulary
    rate: float
    whole_word: bool
    seed: int
    all_masked: bool = False

    def __call__(self, group: Group, step: int) -> MaskedGroup:
        """Return the masked copy of one group int32[R, T] at a step.

        Of each sentence with n tokens (or whole words) of text, rate * n are chosen, rounded up or down by chance, so
        that every one of them is chosen with probability `rate`, however many pieces it has.
        """
        purpose = 0x686964 if self.all_masked else 0x6D6C6D  # "hid", "mlm"
        key = np.random.SeedSequence([self.seed, step, purpose]).generate_state(4)
        row_length = group.ids.shape[1]
        at = np.flatnonzero(group.segments)  # places of tokens, sentence by sentence
        ids, positions = group.ids.ravel()[at], group.positions.ravel()[at]
        numbers = group.sentences.ravel()[at]
        begins = positions == 0
        sentence = np.cumsum(begins) - 1  # which of the group's, in the order of the rows
        bits = [token_bits(key[n], numbers, positions) for n in range(3)]
        chances = token_bits(key[3], numbers[begins], positions[begins]) / 2**32

        text = self.vocabulary.predictable[ids]
        starts = _cut(self.vocabulary.word_starts(ids, begins)) if self.whole_word else text
        chosen = np.flatnonzero(_chosen(sentence, text, starts, bits[0], self.rate, chances))

        mask_id, regular = self.vocabulary.mask_id, self.vocabulary.regular
        assert mask_id is not None  # `require_mask_token` has seen to it
        what = bits[1][chosen] / 2**32 * (not self.all_masked)
        random_ids = regular[bits[2][chosen] % len(regular)]
        new = np.where(what < MASKED, mask_id, np.where(what < MASKED + REPLACED, random_ids, ids[chosen]))
        masked = group.ids.copy()
        masked.ravel()[at[chosen]] = new
        sentences = group.first_tokens.shape[0]
        size = prediction_slots(self.rate, len(group.ids), row_length, sentences, self.whole_word)
        places, labels = np.zeros((2, size), np.int32)
        chosen = chosen[:size]  # cuts only whole words, and these hardly ever: see `prediction_slots`
        places[: len(chosen)] = at[chosen]
        labels[: len(chosen)], labels[len(chosen) :] = ids[chosen], -1
        return MaskedGroup(masked, places, labels)


def prediction_slots(rate: float, rows: int, row_length: int, sentences: int, whole_word: bool = False) -> int:
    """Return how many tokens to predict a masked group int32[rows, row_length] of so many sentences can hold.

    For whole words, only the number of all tokens is a sure bound, so they get six standard deviations above the mean
    for the longest words. What does not fit is masked and not predicted.
    """
    mean = rate * rows * row_length
    if not whole_word:
        return math.ceil(mean) + sentences
    return min(rows * row_length, math.ceil(mean + 6 * math.sqrt(mean * LONGEST_WORD)))


def _cut(starts: np.ndarray) -> np.ndarray:
    """Return bool[n]: where words begin, and the parts of words longer than LONGEST_WORD."""
    at = np.arange(len(starts))
    since = at - np.maximum.accumulate(np.where(starts, at, 0))
    return starts | (since % LONGEST_WORD == 0)


def _chosen(
    sentence: np.ndarray, text: np.ndarray, starts: np.ndarray, bits: np.ndarray, rate: float, chances: np.ndarray
) -> np.ndarray:
    """Return bool[n]: the tokens of the words that are chosen, those with the smallest bits.

    sentence int[n], ascending; text, starts bool[n]: tokens of text, and those that begin a word; chances float[S]:
    how the number of a sentence's words is rounded. Tokens that are not text belong to no word; some words are empty.
    """
    word = np.cumsum(starts) - 1
    some = np.bincount(word[text], minlength=int(starts.sum())) > 0
    owner, draw = sentence[starts][some], bits[starts][some]
    wanted = np.floor(rate * np.bincount(owner, minlength=len(chances)) + chances).astype(np.int64)
    order = np.lexsort((draw, owner))
    first = np.searchsorted(owner[order], np.arange(len(wanted)))
    taken, chosen = np.zeros(len(order), bool), np.zeros(len(some), bool)
    taken[order] = np.arange(len(order)) - first[owner[order]] < wanted[owner[order]]
    chosen[some] = taken
    return text & chosen[word] if len(chosen) else text & False

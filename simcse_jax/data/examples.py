"""Draw the examples of a batch: V texts each, as the files hold them, or with a positive that is made for the step.

Everything is a function of (seed, step) and of the example's place in the batch. Lengths and hashes of a whole batch
are known without its tokens, so every host knows the shapes of all groups, and makes only the texts that it feeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from simcse_jax.data.changes import Change
from simcse_jax.hashing import token_bits
from simcse_jax.system.errors import UserError


class Drawn(NamedTuple):
    """Hold the texts of a batch of B examples."""

    lengths: np.ndarray  # int32[B, V]: the most tokens that each text can have; 0 for a missing hard negative
    hashes: np.ndarray  # uint64[B, V]: equal for texts that may not be each other's negatives; 0 for a missing one
    token_ids: Callable[[np.ndarray], list[list[np.ndarray]]]  # [n][V] int32 arrays, of the examples at places int[n]
    scores: np.ndarray | None = None  # float32[B], where examples have them
    unpooled: np.ndarray | None = None  # int64[B, V]: first tokens, those of a prompt, that are not pooled


class Examples(Protocol):
    """Hold E examples of V texts."""

    @property
    def texts(self) -> int:
        """The number V of texts an example."""
        ...

    def __len__(self) -> int: ...

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        """Return the examples of ids int64[B] for this step's batch."""
        ...


class TokenTable(Protocol):
    """Hold E rows of V tokenised texts, as a corpus does."""

    lengths: np.ndarray  # int32[E, V]
    hashes: np.ndarray  # uint64[E, V]

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]: ...


class ColumnExamples:
    """Take each row of a table as an example, the same at every step; scores: float32[E], of graded pairs."""

    def __init__(self, table: TokenTable, scores: np.ndarray | None = None):
        self.table, self.scores = table, scores
        self.texts = table.lengths.shape[1]

    def __len__(self) -> int:
        return len(self.table.lengths)

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        table = self.table
        scores = None if self.scores is None else self.scores[ids]
        return Drawn(table.lengths[ids], table.hashes[ids], lambda places: table.token_ids(ids[places]), scores)


class ChangedCopies:
    """Pair each row of a table of one text with a copy that is changed, in another way at every step.

    The copy counts as the same text: where a batch holds a sentence twice, neither is a negative of the other.
    """

    texts = 2

    def __init__(self, table: TokenTable, change: Change, seed: int):
        self.table, self.change, self.seed = table, change, seed

    def __len__(self) -> int:
        return len(self.table.lengths)

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        lengths, hashes = self.table.lengths[ids], self.table.hashes[ids]

        def token_ids(places: np.ndarray) -> list[list[np.ndarray]]:
            originals = [tokens for (tokens,) in self.table.token_ids(ids[places])]
            changed = self.change.apply(originals, places, _key(self.seed, step))
            return [list(pair) for pair in zip(originals, changed, strict=True)]

        return Drawn(np.concatenate([lengths, self.change.bound(lengths)], 1), np.repeat(hashes, 2, 1), token_ids)


class WithPrompts:
    """Leave the first tokens of texts, those of a prompt, out of what is pooled; unpooled: how many, text by text."""

    def __init__(self, examples: Examples, unpooled: Sequence[int]):
        self.examples, self.texts = examples, examples.texts
        self.unpooled = np.array(unpooled, np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        unpooled = np.broadcast_to(self.unpooled, (len(ids), self.texts))
        return self.examples.draw(ids, step)._replace(unpooled=unpooled)


class NextSentences:
    """Pair each sentence with one of the `window` that follow it in its document, another at every step.

    documents: int32[E], the number of each row's document. The last sentence of a document is no anchor.
    """

    texts = 2

    def __init__(self, table: TokenTable, documents: np.ndarray, window: int, seed: int):
        """Find the sentences that have a next one; raises UserError when there is none."""
        self.table, self.seed = table, seed
        ends = np.r_[np.flatnonzero(np.diff(documents)), len(documents) - 1]
        following = np.repeat(ends, np.diff(np.r_[-1, ends])) - np.arange(len(documents))
        self.rows = np.flatnonzero(following)
        self.following = np.minimum(following[self.rows], window)
        if not len(self.rows):
            raise UserError(
                "data.positive = 'next_sentence': every document of the data is a single sentence.\nGive text in "
                "which a blank line stands between documents, and not between sentences."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        places = np.arange(len(ids))
        bits = token_bits(_key(self.seed, step)[0], places, np.zeros_like(places))
        first = self.rows[ids]
        both = np.stack([first, first + 1 + bits % self.following[ids]], axis=1)
        table = self.table

        def token_ids(places: np.ndarray) -> list[list[np.ndarray]]:
            flat = [tokens for (tokens,) in table.token_ids(both[places].ravel())]
            return [flat[n : n + 2] for n in range(0, len(flat), 2)]

        return Drawn(table.lengths[both, 0], table.hashes[both, 0], token_ids)


def _key(seed: int, step: int) -> np.ndarray:
    """Return uint32[4], the key of all choices of a step."""
    return np.random.SeedSequence([seed, step, 0x706F73]).generate_state(4)  # "pos"

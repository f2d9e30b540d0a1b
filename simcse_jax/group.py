"""Define the types that all rooms share: a group of packed sentences, and its masked copy."""

from __future__ import annotations

from typing import Any, NamedTuple

# NumPy where groups are made, jax.Array once they are on a device.
Array = Any


NO_TEXT = -(2**31)  # the text id of a hard negative that its example lacks


class Group(NamedTuple):
    """Hold the token arrays of one group; several groups are stacked on leading axes.

    A sentence's tokens are contiguous within one row. An unused slot has length 0 and first token 0.
    """

    ids: Array  # int32[R, T]: token ids; 0 in padding
    segments: Array  # int32[R, T]: 1, 2, ... for a row's sentences, 0 in padding; attention stays within a number
    positions: Array  # int32[R, T]: place of the token in its sentence, from 0
    sentences: Array  # int32[R, T]: place of the token's sentence in the global batch
    first_tokens: Array  # int32[N]: r * T + t of each sentence's first token
    lengths: Array  # int32[N]: tokens of each sentence

    def split(self, rows: int, slots: int) -> tuple[Group, Group]:
        """Split a group, not stacked, in two: its first `rows` rows with its first `slots` sentences, and the rest."""
        first, rest = zip(
            *((x[:rows], x[rows:]) for x in self[:4]), *((x[:slots], x[slots:]) for x in self[4:]), strict=True
        )
        return Group(*first), Group(*rest)._replace(first_tokens=self.first_tokens[slots:] - rows * self.ids.shape[1])


class MaskedGroup(NamedTuple):
    """Hold the masked copy of a group and what is to be predicted; several groups are stacked on leading axes.

    An unused place has label -1.
    """

    ids: Array  # int32[R, T]: the group's token ids; those to predict are masked, replaced or kept
    places: Array  # int32[M]: r * T + t of each token to predict
    labels: Array  # int32[M]: its id in the group

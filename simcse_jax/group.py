"""The types that every room shares: a group of packed sentences, and its masked copy."""

from __future__ import annotations

from typing import Any, NamedTuple

# NumPy where groups are made, jax.Array once they are on a device.
Array = Any


class Group(NamedTuple):
    """The token arrays of one group; more groups stack on leading axes.

    A sentence's tokens are contiguous within one row. An unused slot has length 0 and first token 0.
    """

    ids: Array  # int32[R, T]: token ids; 0 where nothing is
    segments: Array  # int32[R, T]: 1, 2, ... by sentence within the row (who may attend to whom); 0 = padding
    positions: Array  # int32[R, T]: place of the token in its sentence, from 0
    sentences: Array  # int32[R, T]: place of the token's sentence in the global batch
    first_tokens: Array  # int32[N]: r * T + t of each sentence's first token
    lengths: Array  # int32[N]: tokens of each sentence

    def split(self, rows: int, slots: int) -> tuple[Group, Group]:
        """Two groups of one: its first `rows` rows, which hold the sentences of its first `slots` slots, and the rest.

        Not of stacked ones.
        """
        first, rest = zip(
            *((x[:rows], x[rows:]) for x in self[:4]), *((x[:slots], x[slots:]) for x in self[4:]), strict=True
        )
        return Group(*first), Group(*rest)._replace(first_tokens=self.first_tokens[slots:] - rows * self.ids.shape[1])


class MaskedGroup(NamedTuple):
    """The masked copy of a group, and what its encoder is to predict; more groups stack on leading axes.

    An unused place has label -1.
    """

    ids: Array  # int32[R, T]: the group's token ids, some of them masked, replaced or kept to be predicted
    places: Array  # int32[M]: r * T + t of each token to predict
    labels: Array  # int32[M]: its id in the group

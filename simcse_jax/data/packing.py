"""Sentences to the rows of a group.

A group is the unit of work of the encoder: N sentences laid into R rows of T tokens. One sentence a row is the loosest
packing, so padded and packed batches run the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simcse_jax.group import Group


class Slots(NamedTuple):
    """Where each sentence of a group goes; derived from lengths alone."""

    rows: np.ndarray  # int64[N]
    starts: np.ndarray  # int64[N]
    used: int  # rows that hold anything


def first_fit(lengths: np.ndarray, row_length: int, one_per_row: bool = False) -> Slots:
    """Where sentences of these lengths go in rows of `row_length` tokens: each in the first row with room.

    Longest first, which wastes least; ties keep their order, so the result is a function of the lengths alone.
    lengths: int[N], each at most row_length (ValueError otherwise).
    """
    return fit_groups(np.asarray(lengths)[None], row_length, one_per_row)[0]


def fit_groups(lengths: np.ndarray, row_length: int, one_per_row: bool = False) -> list[Slots]:
    """`first_fit` of many groups side by side: every host lays out the whole global batch, at every step.

    lengths: int[G, N].
    """
    lengths = np.asarray(lengths, np.int64)
    groups, count = lengths.shape
    if lengths.size and lengths.max() > row_length:
        raise ValueError(f"A sentence of {lengths.max()} tokens does not fit in a row of {row_length}.")
    rows, starts, filled = np.zeros((3, groups, count), np.int64)
    if one_per_row:
        return [Slots(np.arange(count), starts[group], count) for group in range(groups)]
    each, top = np.arange(groups), 0
    for sentence in np.argsort(-lengths, axis=1, kind="stable").T:
        length = lengths[each, sentence]
        row = np.argmax(filled[:, : top + 1] <= (row_length - length)[:, None], axis=1)  # the last is untouched by all
        rows[each, sentence], starts[each, sentence] = row, filled[each, row]
        filled[each, row] += length
        top = max(top, int(row.max()) + 1)
    used = rows.max(1, initial=-1) + 1
    return [Slots(rows[group], starts[group], int(used[group])) for group in range(groups)]


def below(parts: Sequence[Slots], rows: Sequence[int]) -> Slots:
    """The slots of several parts of a group, one below the other: part p has rows[p] rows, at least those it uses."""
    tops = np.cumsum([0, *rows[:-1]])
    return Slots(
        np.concatenate([part.rows + top for part, top in zip(parts, tops, strict=True)]),
        np.concatenate([part.starts for part in parts]),
        int(tops[-1]) + parts[-1].used,
    )


def fill(
    tokens: Sequence[np.ndarray], slots: Slots, places: np.ndarray, shape: tuple[int, int], count: int | None = None
) -> Group:
    """The group that holds these sentences.

    tokens: N arrays of token ids; slots from `first_fit`; places int[N]: each sentence's place in the global batch;
    shape: (R, T), R at least `slots.used`; count: slots of the group, at least N (default N).
    """
    row_count, row_length = shape
    if count is not None and count < len(tokens):
        raise ValueError(f"{len(tokens)} sentences do not fit in a group of {count} slots.")
    if slots.used > row_count:
        raise ValueError(f"{slots.used} rows do not fit in a group of {row_count} rows.")
    lengths = np.fromiter((len(t) for t in tokens), np.int64, len(tokens))
    size = int(lengths.sum())
    begin = slots.rows * row_length + slots.starts
    position = np.arange(size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    where = np.repeat(begin, lengths) + position

    def laid(values: np.ndarray) -> np.ndarray:
        flat = np.zeros(row_count * row_length, np.int32)
        flat[where] = values
        return flat.reshape(row_count, row_length)

    first_tokens, all_lengths = np.zeros((2, count or len(tokens)), np.int32)
    first_tokens[: len(tokens)], all_lengths[: len(tokens)] = begin, lengths
    return Group(
        ids=laid(np.concatenate(tokens) if len(tokens) else np.zeros(0)),
        segments=laid(np.repeat(_segments(slots), lengths)),
        positions=laid(position),
        sentences=laid(np.repeat(np.asarray(places, np.int64), lengths)),
        first_tokens=first_tokens,
        lengths=all_lengths,
    )


def _segments(slots: Slots) -> np.ndarray:
    """int64[N]: the ordinal of each sentence within its row, from 1 (any labels distinct within a row would do)."""
    order = np.lexsort((slots.starts, slots.rows))
    rows = slots.rows[order]
    new_row = np.r_[True, rows[1:] != rows[:-1]] if len(rows) else np.zeros(0, bool)
    begins = np.maximum.accumulate(np.where(new_row, np.arange(len(rows)), 0))
    segments = np.empty(len(rows), np.int64)
    segments[order] = np.arange(len(rows)) - begins + 1
    return segments


def pack(
    tokens: Sequence[np.ndarray],
    row_length: int,
    rows: int | None = None,
    first_sentence: int = 0,
    one_per_row: bool = False,
) -> Group:
    """One group that holds these sentences, numbered from `first_sentence`, in as few rows as first fit finds.

    rows: number of rows of the result (default: as many as are used).
    """
    slots = first_fit(np.array([len(t) for t in tokens], np.int64), row_length, one_per_row)
    places = first_sentence + np.arange(len(tokens))
    return fill(tokens, slots, places, (rows or max(slots.used, 1), row_length))

"""Pack the sentences of a group into rows.

A group is the unit of work of the encoder: N sentences in R rows of T tokens. One sentence a row is the loosest
packing, so padded and packed batches run the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simcse_jax.group import Group


class Slots(NamedTuple):
    """Hold where each sentence of a group goes."""

    rows: np.ndarray  # int64[N]
    starts: np.ndarray  # int64[N]
    used: int  # rows that hold anything


def fit_groups(lengths: np.ndarray, row_length: int, one_per_row: bool = False) -> list[Slots]:
    """Return where sentences go in rows of `row_length` tokens: each in the first row of its group with room.

    lengths: int[G, N], each at most row_length (ValueError otherwise). Longest sentences first, which wastes least;
    ties keep their order, so the result is a function of the lengths alone. Groups are laid out side by side, as every
    host lays out the whole global batch at every step.
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


def stack_parts(parts: Sequence[Slots], rows: Sequence[int]) -> Slots:
    """Return the slots of a group whose parts are stacked; part p takes rows[p] rows, at least those it uses."""
    tops = np.cumsum([0, *rows[:-1]])
    return Slots(
        np.concatenate([part.rows + top for part, top in zip(parts, tops, strict=True)]),
        np.concatenate([part.starts for part in parts]),
        int(tops[-1]) + parts[-1].used,
    )


def fill(
    tokens: Sequence[np.ndarray], slots: Slots, places: np.ndarray, shape: tuple[int, int], count: int | None = None
) -> Group:
    """Return the group that holds these sentences.

    tokens: N arrays of token ids, empty for a missing text; slots: from `fit_groups`; places int[N]: each sentence's
    place in the global batch; shape: (R, T), R at least `slots.used`; count: slots of the group, default N.
    """
    row_count, row_length = shape
    if count is not None and count < len(tokens):
        raise ValueError(f"{len(tokens)} sentences do not fit in a group of {count} slots.")
    if slots.used > row_count:
        raise ValueError(f"{slots.used} rows do not fit in a group of {row_count} rows.")
    lengths = np.fromiter((len(t) for t in tokens), np.int64, len(tokens))
    size = int(lengths.sum())
    begin = np.where(lengths > 0, slots.rows * row_length + slots.starts, 0)
    position = np.arange(size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    where = np.repeat(begin, lengths) + position

    def lay(values: np.ndarray) -> np.ndarray:
        flat = np.zeros(row_count * row_length, np.int32)
        flat[where] = values
        return flat.reshape(row_count, row_length)

    first_tokens, all_lengths = np.zeros((2, count or len(tokens)), np.int32)
    first_tokens[: len(tokens)], all_lengths[: len(tokens)] = begin, lengths
    return Group(
        ids=lay(np.concatenate(tokens) if len(tokens) else np.zeros(0)),
        segments=lay(np.repeat(_segments(slots), lengths)),
        positions=lay(position),
        sentences=lay(np.repeat(np.asarray(places, np.int64), lengths)),
        first_tokens=first_tokens,
        lengths=all_lengths,
    )


def without_first(group: Group, counts: np.ndarray | int) -> Group:
    """Return a group whose first tokens of each sentence are not pooled; attention sees them.

    group: perhaps stacked. counts: how many of each sentence, int[N], or one number for all; a sentence of no more
    tokens keeps its first place and has none to pool.
    """
    lengths = np.maximum(group.lengths - counts, 0)
    firsts = np.where(lengths > 0, group.first_tokens + counts, group.first_tokens)
    return group._replace(first_tokens=firsts.astype(np.int32), lengths=lengths.astype(np.int32))


def _segments(slots: Slots) -> np.ndarray:
    """Return int64[N], the ordinal of each sentence within its row, from 1; any distinct labels would do."""
    order = np.lexsort((slots.starts, slots.rows))
    rows = slots.rows[order]
    new_row = np.r_[True, rows[1:] != rows[:-1]] if len(rows) else np.zeros(0, bool)
    begins = np.maximum.accumulate(np.where(new_row, np.arange(len(rows)), 0))
    segments = np.empty(len(rows), np.int64)
    segments[order] = np.arange(len(rows)) - begins + 1
    return segments

"""Packing: every token once, in one piece, where the group says it is."""

import numpy as np
import pytest

from simcse_jax.data.packing import Slots, fill, fit_groups
from simcse_jax.group import Group
from tests.packed import pack


def _tokens(seed: int, count: int, longest: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 1000, n).astype(np.int32) for n in rng.integers(2, longest + 1, count)]


def first_fit(lengths: np.ndarray, row_length: int, one_per_row: bool = False) -> Slots:
    return fit_groups(lengths[None], row_length, one_per_row)[0]


def _check(group: Group, tokens: list[np.ndarray], first_sentence: int) -> None:
    """Require that each sentence is contiguous in one row, numbered right, alone in its segment; all else padding."""
    row_length = group.ids.shape[1]
    seen = np.zeros(group.ids.shape, bool)
    for n, ids in enumerate(tokens):
        assert group.lengths[n] == len(ids)
        row, start = divmod(int(group.first_tokens[n]), row_length)
        here = (row, slice(start, start + len(ids)))
        np.testing.assert_array_equal(group.ids[here], ids)  # shorter if it crossed the row's end
        np.testing.assert_array_equal(group.positions[here], np.arange(len(ids)))
        assert set(group.sentences[here]) == {first_sentence + n}
        (segment,) = set(group.segments[here].tolist())
        assert segment > 0
        assert np.sum(group.segments[row] == segment) == len(ids)
        assert not seen[here].any()
        seen[here] = True
    for field in (group.ids, group.segments, group.positions, group.sentences):
        assert field.dtype == np.int32
        assert not field[~seen].any()


@pytest.mark.parametrize("one_per_row", [False, True])
def test_pack_places_every_sentence_whole(one_per_row: bool) -> None:
    for seed in range(20):
        tokens = _tokens(seed, 1 + seed * 3, 32)
        group = pack(tokens, 32, first_sentence=100, one_per_row=one_per_row)
        _check(group, tokens, 100)
        assert group.ids.shape[0] == len(tokens) or not one_per_row


def test_one_per_row_keeps_the_order() -> None:
    tokens = _tokens(0, 9, 16)
    group = pack(tokens, 16, one_per_row=True)
    np.testing.assert_array_equal(group.first_tokens, 16 * np.arange(9))


def test_rows_and_slots_beyond_need_are_empty() -> None:
    tokens = _tokens(1, 5, 8)
    slots = first_fit(np.array([len(t) for t in tokens]), 16)
    group = fill(tokens, slots, np.arange(5), (7, 16), count=12)
    _check(group, tokens, 0)
    assert group.ids.shape == (7, 16)
    assert group.lengths.shape == (12,)
    assert not group.lengths[5:].any()
    assert not group.first_tokens[5:].any()


def test_group_of_nothing() -> None:
    nothing = np.zeros(0, np.int64)
    group = fill([], Slots(nothing, nothing, 0), nothing, (2, 8), count=4)
    assert group.ids.shape == (2, 8)
    assert group.lengths.shape == (4,)
    assert not any(field.any() for field in group)
    assert first_fit(nothing, 8).used == 0


def test_first_fit_is_tight_and_a_function_of_lengths() -> None:
    lengths = np.random.default_rng(0).integers(3, 33, 512)
    slots = first_fit(lengths, 128)
    assert slots.used * 128 < 1.02 * lengths.sum()
    again = first_fit(lengths.astype(np.int32), 128)
    np.testing.assert_array_equal(slots.rows, again.rows)
    np.testing.assert_array_equal(slots.starts, again.starts)


def test_first_fit_by_hand() -> None:
    slots = first_fit(np.array([3, 5, 4, 8, 3]), 8)  # 8 | 5 3 | 4 3
    np.testing.assert_array_equal(slots.rows, [1, 1, 2, 0, 2])
    np.testing.assert_array_equal(slots.starts, [5, 0, 0, 0, 4])
    assert slots.used == 3


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit in a row of 8"):
        first_fit(np.array([3, 9]), 8)
    tokens = _tokens(2, 4, 8)
    slots = first_fit(np.array([len(t) for t in tokens]), 8, one_per_row=True)
    with pytest.raises(ValueError, match="4 rows do not fit in a group of 3"):
        fill(tokens, slots, np.arange(4), (3, 8))

"""A mixture's order is a function of (seed, step), its shares hold, and each source keeps its own texts."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.examples import ColumnExamples, Examples, WithPrompts
from simcse_jax.data.mixture import MixedExamples, MixedOrder, SameTwice, Turns, shares
from simcse_jax.group import NO_TEXT
from simcse_jax.system.errors import UserError

BATCH, GROUP, LONGEST = 16, 4, 12
ROWS = {"a": 40, "b": 100, "c": 23}
SHARES = [0.5, 0.3, 0.2]


class Table:
    """Hold rows of `columns` texts, whose tokens and hashes tell their source, column and row."""

    def __init__(self, source: int, rows: int, columns: int):
        places = 10_000 * source + 1000 * np.arange(columns) + np.arange(rows)[:, None]
        self.hashes = (places + 1).astype(np.uint64)
        self.lengths = np.random.default_rng(source).integers(3, LONGEST + 1, places.shape).astype(np.int32)

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        both = zip(self.hashes[rows], self.lengths[rows], strict=True)
        return [[np.full(n, h, np.int32) for h, n in zip(*row, strict=True)] for row in both]


def order(by_batch: bool = True, seed: int = 0, rows: dict[str, int] = ROWS) -> MixedOrder:
    return MixedOrder(rows, SHARES[: len(rows)], BATCH, seed, by_batch)


def mixture(by_batch: bool = True, columns: Sequence[int] = (3, 1, 2)) -> Batches:
    """Return a mixture of triplets, single texts that are their own positives, and pairs."""
    made: list[Examples] = [ColumnExamples(Table(n, rows, columns[n])) for n, rows in enumerate(ROWS.values())]
    made = [SameTwice(each) if each.texts == 1 else each for each in made]
    return Batches(MixedExamples(made, SHARES), Layout(BATCH, GROUP, 2 * LONGEST), 0, order=order(by_batch))


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [70, 25, 5], [0.999, 0.001], [1 / 3] * 3, [2.0]])
def test_shares_hold_among_any_thousand_steps(weights: list[float]) -> None:
    sources, numbers = Turns(weights, 5)(0, 30_000)
    for source, weight in enumerate(weights):
        own = sources == source
        np.testing.assert_array_equal(numbers[own], np.arange(own.sum()))
        counts = np.concatenate([[0], np.cumsum(own)])
        off = counts[1000:] - counts[:-1000] - 1000 * weight / sum(weights)
        assert np.abs(off).max() < 10
    assert not np.array_equal(sources[:5000], Turns(weights, 6)(0, 5000)[0]) or len(weights) == 1
    again = Turns(weights, 5)
    for first in (0, 1, 19, 20, 777, 20_479, 20_480, 29_900):  # any turn, without those before it
        for whole, part in zip((sources, numbers), again(first, 90), strict=True):
            np.testing.assert_array_equal(whole[first : first + 90], part)


def test_shares_are_weights_or_follow_the_rows() -> None:
    assert shares([3, 1], [10, 1000], 0) == [0.75, 0.25]
    assert shares([1, 1], [100, 300], 1) == [0.25, 0.75]
    assert shares([1, 1], [10, 10**6], 0.01) == [0, 1]
    np.testing.assert_allclose(shares([1, 2], [100, 400], 2), [0.2, 0.8])


@pytest.mark.parametrize("by_batch", [True, False])
def test_each_source_passes_over_all_of_its_rows_before_any_comes_again(by_batch: bool) -> None:
    made, seen = order(by_batch), {name: [] for name in ROWS}
    starts = {"a": 0, "b": 40, "c": 140}
    for step in range(60):
        ids = made.ids(step)
        found = [name for name, first in starts.items() if ((ids >= first) & (ids < first + ROWS[name])).any()]
        assert found == [made.source(step)] if by_batch else made.source(step) == ""
        for name, first in starts.items():
            seen[name] += [i - first for i in ids.tolist() if first <= i < first + ROWS[name]]
    for name, rows in ROWS.items():
        whole = rows // BATCH * BATCH if by_batch else rows
        passes = [seen[name][at : at + whole] for at in range(0, len(seen[name]) - whole + 1, whole)]
        assert len(passes) > 1
        assert all(len({*one}) == whole for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes)
    assert made.steps_per_epoch == sum(ROWS.values()) // BATCH
    for step in (59, 3):
        np.testing.assert_array_equal(made.ids(step), order(by_batch).ids(step))
    assert not np.array_equal(order(by_batch, seed=1).ids(3), made.ids(3))


def test_one_source_alone_has_the_order_of_no_mixture() -> None:
    table = Table(0, 103, 2)
    plain = Batches(ColumnExamples(table), Layout(BATCH, GROUP, 2 * LONGEST), 7)
    alone = MixedOrder({"a": 103}, [1.0], BATCH, 7, True)
    mixed = Batches(MixedExamples([ColumnExamples(table)], [1.0]), Layout(BATCH, GROUP, 2 * LONGEST), 7, order=alone)
    assert mixed.row_counts == plain.row_counts
    for step in (0, 5, 6, 40):
        for one, other in zip(jax.tree.leaves(plain(step)), jax.tree.leaves(mixed(step)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_examples_are_drawn_as_they_always_were() -> None:
    """What old runs resume with."""
    made = Batches(ColumnExamples(Table(0, 103, 1)), Layout(BATCH, GROUP, 2 * LONGEST), 3)
    assert made.example_ids(7)[:6].tolist() == [9, 43, 96, 32, 15, 5]


@pytest.mark.parametrize("by_batch", [True, False])
def test_every_text_is_where_it_belongs_and_others_are_missing(by_batch: bool) -> None:
    made = mixture(by_batch)
    for step in range(6):
        batch: Any = made(step)
        ids, groups = made.example_ids(step), batch.inputs.groups
        sources = np.searchsorted([40, 140], ids, side="right")
        for place, (source, row) in enumerate(zip(sources, ids - np.array([0, 40, 140])[sources], strict=True)):
            first = 10_000 * source + row + 1
            texts = {0: [first, first + 1000, first + 2000], 1: [first, first], 2: [first, first + 1000]}[int(source)]
            for text, token in enumerate([*texts, *[None] * (3 - len(texts))]):
                group, slot = place // GROUP, text * GROUP + place % GROUP
                begin, length = groups.first_tokens[group, slot], groups.lengths[group, slot]
                assert (batch.text_ids[text, place] == NO_TEXT) == (token is None)
                assert set(groups.ids[group].ravel()[begin : begin + length].tolist()) == {token} - {None}
                if token:  # equal texts are two sentences, with dropout of their own
                    assert groups.sentences[group].ravel()[begin] == text * BATCH + place
            assert (batch.text_ids[0, place] == batch.text_ids[1, place]) == (source == 1)
        part = made(step, [1, 2])
        for whole, some in zip(jax.tree.leaves(batch.inputs), jax.tree.leaves(part.inputs), strict=True):
            np.testing.assert_array_equal(whole[1:3], some)


def test_scores_of_graded_pairs_stay_with_their_examples() -> None:
    made = [ColumnExamples(Table(n, 40, 2), np.arange(40, dtype=np.float32) + 100 * n) for n in range(2)]
    drawn = MixedExamples(made, [0.5, 0.5]).draw(np.array([3, 77, 39, 40]), 0)
    assert drawn.scores is not None
    assert drawn.scores.tolist() == [3, 137, 39, 100]


def test_prompts_of_each_source_are_left_out_of_pooling() -> None:
    plain = ColumnExamples(Table(0, 40, 2))
    prompted = SameTwice(WithPrompts(ColumnExamples(Table(1, 100, 1)), [2]))
    drawn = MixedExamples([plain, prompted], [0.5, 0.5]).draw(np.array([3, 77, 39, 40]), 0)
    assert drawn.unpooled is not None
    assert drawn.unpooled.tolist() == [[0, 0], [2, 2], [0, 0], [2, 2]]
    assert [texts[0][0] for texts in drawn.token_ids(np.array([3, 0]))] == [10_001, 4]


@pytest.mark.parametrize(
    ("rows", "by_batch", "message"),
    [
        (
            {"a": 40, "b": 15},
            True,
            r"has 16 examples of the source 'b', which has only 15\.\n.*batch_size=8, .*mixing=",
        ),
        ({"a": 40, "b": 4}, False, r"about 5 examples of the source 'b', which has only 4\.\nUse .*batch_size=8"),
    ],
)
def test_too_few_rows_of_a_source_are_refused(rows: dict[str, int], by_batch: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        order(by_batch, rows=rows)
    assert order(False, rows={"a": 40, "b": 6}).ids(0).shape == (BATCH,)

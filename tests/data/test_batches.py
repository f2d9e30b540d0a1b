"""Batches are a function of (seed, step), whole, in a handful of shapes."""

import jax
import numpy as np
import pytest

from simcse_jax.data.batches import Batch, Batches, Layout
from simcse_jax.data.examples import ColumnExamples
from simcse_jax.system.errors import UserError

EXAMPLES, BATCH, GROUP, LONGEST = 103, 16, 4, 16


class Table:
    """Hold examples whose tokens tell which row and column they are from: id = 1000 * column + row + 1."""

    def __init__(self, columns: int = 1, examples: int = EXAMPLES):
        rng = np.random.default_rng(1)
        self.lengths = rng.integers(3, LONGEST + 1, (examples, columns)).astype(np.int32)
        self.hashes = np.arange(examples * columns, dtype=np.uint64).reshape(examples, columns)

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        columns = range(self.lengths.shape[1])
        return [[np.full(self.lengths[r, c], 1000 * c + r + 1, np.int32) for c in columns] for r in rows]


def batches(columns: int = 1, seed: int = 0, **layout: bool) -> Batches:
    return Batches(ColumnExamples(Table(columns)), Layout(BATCH, GROUP, 2 * LONGEST, **layout), seed)


def first_ids(batch: Batch) -> np.ndarray:
    """int[G, N]: the first token's id of each sentence."""
    ids = batch.inputs.groups.ids.reshape(len(batch.inputs.groups.ids), -1)
    return np.take_along_axis(ids, batch.inputs.groups.first_tokens, 1)


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    made = batches()
    assert (made.steps_per_epoch, made.dropped) == (6, 7)
    epochs = [np.concatenate([made.example_ids(6 * epoch + n) for n in range(6)]) for epoch in range(3)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 96
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(epochs[0]) != set(epochs[1])  # other examples are left out
    np.testing.assert_array_equal(batches().example_ids(14), made.example_ids(14))
    assert not np.array_equal(batches(seed=1).example_ids(14), made.example_ids(14))


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("one_per_row", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_every_token_is_where_it_belongs(columns: int, one_per_row: bool, apart: bool) -> None:
    """With anchors apart, they are in rows of their own."""
    apart = apart and columns > 1
    made = batches(columns, one_per_row=one_per_row, separate_anchors=apart)
    batch, rows, lengths = made(4), made.example_ids(4), Table(columns).lengths
    parts = [((0,), batch.inputs.groups), ((1, 2), batch.inputs.non_anchors)]
    for places, part in parts if apart else [(range(columns), batch.inputs.groups)]:
        assert part is not None
        for e, row in enumerate(rows):
            for at, v in enumerate(places):
                slot = at * GROUP + e % GROUP
                begin, length = part.first_tokens[e // GROUP, slot], part.lengths[e // GROUP, slot]
                assert length == lengths[row, v]
                ids, segments, positions, sentences = (x[e // GROUP].ravel()[begin : begin + length] for x in part[:4])
                np.testing.assert_array_equal(ids, 1000 * v + row + 1)
                assert len(set(segments)) == 1
                np.testing.assert_array_equal(positions, np.arange(length))
                np.testing.assert_array_equal(sentences, v * BATCH + e)
        assert (part.segments > 0).sum() == lengths[rows][:, places].sum()
    np.testing.assert_array_equal(batch.text_ids, batches(columns, one_per_row=one_per_row)(4).text_ids)


def test_shapes_of_texts_apart_are_a_handful_and_enough() -> None:
    made = Batches(ColumnExamples(Table(2, examples=5000)), Layout(64, 64, 32, separate_anchors=True), 0)
    assert 2 <= len(made.row_counts) <= 6
    assert {made(step).rows for step in range(made.steps_per_epoch)} <= set(made.row_counts)
    assert made.row_counts[-1] == (64, 64)
    whole = Batches(ColumnExamples(Table(2, examples=5000)), Layout(64, 64, 32), 0)
    assert sum(made.planned_rows) < 1.1 * sum(whole.planned_rows)


@pytest.mark.parametrize("apart", [False, True])
def test_some_groups_are_those_of_the_whole_batch(apart: bool) -> None:
    made = batches(3, separate_anchors=apart)
    whole, part = made(2), made(2, [1, 2])
    for a, b in zip(jax.tree.leaves(whole.inputs), jax.tree.leaves(part.inputs), strict=True):
        np.testing.assert_array_equal(a[1:3], b)
    np.testing.assert_array_equal(whole.text_ids, part.text_ids)


def test_equal_texts_have_equal_numbers() -> None:
    table = Table(3)
    table.hashes[:] = np.arange(EXAMPLES * 3).reshape(-1, 3) % 20 * (97 << 33)  # every bit of a hash counts
    made = Batches(ColumnExamples(table), Layout(BATCH, GROUP, 32), 0)
    hashes, texts = table.hashes[made.example_ids(0)].T, made(0).text_ids
    np.testing.assert_array_equal(
        texts.ravel()[:, None] == texts.ravel()[None], hashes.ravel()[:, None] == hashes.ravel()[None]
    )
    one = batches()(0).text_ids
    np.testing.assert_array_equal(one[0], one[1])  # with dropout as the noise, the positive is the anchor's own text


def test_shapes_are_a_handful_and_enough() -> None:
    made = Batches(ColumnExamples(Table(examples=5000)), Layout(64, 64, 32), 0)
    assert len(made.row_counts) <= 6
    shapes = {made(step).inputs.groups.ids.shape for step in range(made.steps_per_epoch)}
    assert shapes <= {(1, *rows, 32) for rows in made.row_counts}
    fullness = np.mean([(made(step).inputs.groups.segments > 0).mean() for step in range(20)])
    padded = Table(examples=5000).lengths.mean() / LONGEST
    assert fullness > padded + 0.2


def test_a_stream_starts_anywhere() -> None:
    made = batches()
    streamed = list(made.stream(5, 9))
    assert len(streamed) == 4
    for step, batch in zip(range(5, 9), streamed, strict=True):
        np.testing.assert_array_equal(batch.inputs.groups.ids, made(step).inputs.groups.ids)
    assert first_ids(streamed[0]).shape == (BATCH // GROUP, GROUP)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size = 16, but the data has only 9 examples.\nUse .*batch_size=8"):
        Batches(ColumnExamples(Table(examples=9)), Layout(16, 16, 32), 0)

"""Make the batch of a step from (seed, step) alone.

There is no iterator state, so resuming is exact, on any number of devices or hosts. Shapes and duplicates follow from
the lengths and hashes of the whole global batch, so every process knows them without a collective, and makes only the
groups that it feeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from simcse_jax.data import packing
from simcse_jax.data.examples import Drawn, Examples
from simcse_jax.data.masking import Masking
from simcse_jax.data.mixture import MixedExamples
from simcse_jax.data.order import EpochOrder, Order
from simcse_jax.data.text_vectors import TextVectors
from simcse_jax.group import NO_TEXT, Array, Group, MaskedGroup

# Batches from whose lengths the shapes of a run are chosen.
SAMPLED_BATCHES = 32

# Rows of a group; with separate anchors, those of the anchors, and those of the other texts.
Rows = tuple[int, ...]


class EncoderInputs(NamedTuple):
    """Hold the groups of a batch, stacked; all arrays are sharded by group.

    V texts an example, n examples a group, B = G * n examples a batch. Example e is in group e // n; text v of it is
    sentence v * B + e of the global batch, and slot v * n + e % n of its group. With separate anchors, `groups` hold
    the anchors alone, and `non_anchors` the other texts, text v in slot (v - 1) * n + e % n.
    """

    groups: Group  # arrays int32[G, R, T] and int32[G, V * n]; [G, n] with separate anchors
    # Copies for masked language modelling, of `groups` and, in rows below them, of `non_anchors`; None without it.
    masked: MaskedGroup | None = None
    # Copies of `groups` with the tokens masked that a predictor replaces to make positives; None without one.
    replacement: MaskedGroup | None = None
    non_anchors: Group | None = None  # arrays int32[G, R', T] and int32[G, (V - 1) * n]; None: anchors not separate


class Batch(NamedTuple):
    """Hold one global batch, or the groups of it that this process feeds."""

    inputs: EncoderInputs
    # int32[K + 1, B], on every device: equal id = equal text, NO_TEXT = none; rows: anchors, positives, hard negatives
    text_ids: Array
    # float32[G, V, n, D'], sharded by group: the teacher's vector of each text, 0 for a missing one; None without it
    teacher: Array | None = None
    grades: Array | None = None  # float32[G, n], sharded by group: the score of each example; None without scores

    @property
    def rows(self) -> Rows:
        """The row counts of its groups."""
        parts = (self.inputs.groups, self.inputs.non_anchors)
        return tuple(part.ids.shape[1] for part in parts if part is not None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """State how a batch is laid out. None of it changes a number of the training."""

    batch_size: int
    group_size: int
    row_length: int
    one_per_row: bool = False
    separate_anchors: bool = False  # anchors in groups of their own, for a second encoder that reads the other texts


class Batches:
    """Make the batches of a run: `batches(step)` for any step, in any order, on any host."""

    def __init__(
        self,
        examples: Examples,
        layout: Layout,
        seed: int,
        masking: Masking | None = None,
        replacing: Masking | None = None,
        global_text_ids: bool = False,
        vectors: TextVectors | None = None,
        order: Order | None = None,
    ):
        """Choose the row counts; raises UserError when there are fewer examples than one batch takes.

        masking: makes `EncoderInputs.masked`; replacing: makes `EncoderInputs.replacement`. global_text_ids: ids of
        texts can be compared between batches; two texts then share one by chance once in 2**32 pairs. vectors: the
        teacher's, for `Batch.teacher`. order: which examples a batch has; None: whole batches of permutations.
        """
        self.vectors, self.global_text_ids = vectors, global_text_ids
        self.examples, self.layout, self.seed, self.masking, self.replacing = examples, layout, seed, masking, replacing
        self.order = order or EpochOrder(len(examples), layout.batch_size, seed)
        self.row_counts = self._choose_row_counts()

    def example_ids(self, step: int) -> np.ndarray:
        """Return int64[B], the examples of this step's batch."""
        return self.order.ids(step)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of a pass over the data."""
        return self.order.steps_per_epoch

    @property
    def dropped(self) -> int:
        """The number of examples that a whole epoch leaves out, others each time."""
        return self.order.dropped

    def __call__(self, step: int, groups: Sequence[int] | None = None) -> Batch:
        """Return the batch of a step. groups: those to make, None = all; shapes are those of the whole batch."""
        size, total = self.layout.group_size, self.layout.batch_size
        drawn = self._draw(step)
        parts = self._slots(drawn)
        used = _used(parts)
        rows = next(counts for counts in self.row_counts if np.all(np.array(counts) >= used))
        shape = sum(rows), self.layout.row_length
        filled = []
        groups = range(total // size) if groups is None else groups
        for group in groups:
            examples = np.arange(group * size, (group + 1) * size)
            tokens = drawn.token_ids(examples)
            columns = range(self.examples.texts)
            places = np.concatenate([column * total + examples for column in columns])
            slots = packing.stack_parts([slots[group] for slots in parts], rows)
            filled.append(packing.fill([t[column] for column in columns for t in tokens], slots, places, shape))
        copies = {
            name: None if make is None else _stacked([make(group, step) for group in filled])
            for name, make in (("masked", self.masking), ("replacement", self.replacing))
        }
        by_group = list(groups)
        if drawn.unpooled is not None:  # after copies were made, which mask tokens of prompts too
            counts = self._by_group(drawn.unpooled)[by_group]
            filled = [packing.without_first(group, own) for group, own in zip(filled, counts, strict=True)]
        non_anchors = None
        if self.layout.separate_anchors:
            filled, rest = zip(*(group.split(rows[0], size) for group in filled), strict=True)
            non_anchors = _stacked(rest)
        inputs = EncoderInputs(_stacked(filled), **copies, non_anchors=non_anchors)
        teacher = None
        if self.vectors is not None:
            hashes = drawn.hashes.reshape(-1, size, self.examples.texts)[by_group]
            teacher = self.vectors(hashes.swapaxes(1, 2))
        grades = None if drawn.scores is None else drawn.scores.reshape(-1, size)[by_group]
        return Batch(inputs, self._text_ids(drawn), teacher, grades)

    def stream(
        self, first_step: int, last_step: int, groups: Sequence[int] | None = None, depth: int = 4
    ) -> Iterator[Batch]:
        """Yield the batches of steps first_step <= step < last_step, made in background threads, `depth` ahead."""
        steps = grain.MapDataset.range(first_step, last_step).map(functools.partial(self, groups=groups))
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=depth)))

    @property
    def sentences(self) -> int:
        """The number of texts of a batch, without those that whole sources of a mixture do not have."""
        examples = self.examples
        texts = examples.mean_texts if isinstance(examples, MixedExamples) else examples.texts
        return round(self.layout.batch_size * texts)

    @property
    def planned_rows(self) -> Rows:
        """The row counts that memory is planned for, which batches of this data hardly ever exceed."""
        return self.row_counts[-2:][0]

    def _draw(self, step: int) -> Drawn:
        return self.examples.draw(self.example_ids(step), step)

    def _slots(self, drawn: Drawn) -> list[list[packing.Slots]]:
        """Return where each sentence of each group goes, part by part, from the lengths of the whole batch alone."""
        layout = self.layout
        lengths = np.split(self._by_group(drawn.lengths), np.cumsum(self._sentences)[:-1], axis=1)
        return [packing.fit_groups(part, layout.row_length, layout.one_per_row) for part in lengths]

    def _by_group(self, values: np.ndarray) -> np.ndarray:
        """Return [G, V * n], the values [B, V] of an example's texts as slots of its group have them."""
        by_column = values.reshape(-1, self.layout.group_size, self.examples.texts).swapaxes(1, 2)
        return by_column.reshape(len(by_column), -1)

    @property
    def _sentences(self) -> Rows:
        """The number of sentences in each part of a group; as many rows are always enough."""
        size, texts = self.layout.group_size, self.examples.texts
        return (size, (texts - 1) * size) if self.layout.separate_anchors else (texts * size,)

    def _text_ids(self, drawn: Drawn) -> np.ndarray:
        hashes = drawn.hashes.T
        if self.global_text_ids:
            ids = np.maximum(hashes.astype(np.uint32).view(np.int32), NO_TEXT + 1)
        else:
            ids = np.unique(hashes, return_inverse=True)[1].reshape(hashes.shape).astype(np.int32)
        ids = np.where(drawn.lengths.T == 0, np.int32(NO_TEXT), ids)
        return np.concatenate([ids, ids]) if len(ids) == 1 else ids

    def _choose_row_counts(self) -> tuple[Rows, ...]:
        """Return the few row counts, ascending, that batches are padded to, so that a run compiles few shapes.

        From the first batches of the run's own order: quantiles 1/3, 2/3 and 0.95 (of each part of a group), the
        largest, one with some room, and the worst possible. A function of data, layout and seed, so a resumed run has
        the same.
        """
        sentences = np.array(self._sentences)
        if self.layout.one_per_row:
            return (self._sentences,)
        sampled = [_used(self._slots(self._draw(step))) for step in range(min(SAMPLED_BATCHES, self.steps_per_epoch))]
        *common, largest = np.quantile(sampled, [1 / 3, 2 / 3, 0.95, 1], axis=0, method="higher").astype(int)
        counts = [*common, largest, largest + largest // 8 + 1, sentences]
        return tuple(sorted({tuple(np.minimum(count, sentences).tolist()) for count in counts}))


def format_rows(rows: Rows) -> str:
    """Return row counts as text."""
    return " + ".join(map(str, rows))


def _used(parts: list[list[packing.Slots]]) -> list[int]:
    """Return the rows that the fullest group needs, part by part."""
    return [max(slots.used for slots in part) for part in parts]


def _stacked(tuples: Sequence[Any]) -> Any:
    """Return one named tuple of arrays with a leading axis, of many alike."""
    return type(tuples[0])(*map(np.stack, zip(*tuples, strict=True)))

"""(seed, step) to Batch.

The order of the data is a function of (seed, step) alone: there is no iterator state, so resuming is exact, on any
number of devices or hosts. Shapes and duplicates are derived from the length and hash columns of the whole global
batch, so every process knows them without a collective, and materialises only the groups that it feeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import grain.experimental
import numpy as np

from simcse_jax.data import packing
from simcse_jax.data.examples import Drawn, Examples
from simcse_jax.data.masking import Masking
from simcse_jax.group import Array, Group, MaskedGroup
from simcse_jax.system.errors import UserError

# Batches looked at to choose the shapes of a run.
SAMPLED_BATCHES = 32

# Rows of a group; where texts are apart, those of anchors, and those of the others.
Rows = tuple[int, ...]


class Batch(NamedTuple):
    """One global batch, or the groups of it that this process feeds.

    V texts an example, n examples a group, B = G * n examples a batch. Example e stands in group e // n; text v of it
    is sentence v * B + e of the global batch, and slot v * n + e % n of its group. Where texts are apart, `groups` hold
    the anchors alone, and `others` the rest, text v in slot (v - 1) * n + e % n.
    """

    groups: Group  # arrays int32[G, R, T] and int32[G, V * n]; [G, n] where texts are apart
    texts: Array  # int32[K + 1, B]: equal number = equal text; rows: anchors, positives, hard negatives
    masked: MaskedGroup | None = None  # masked copies of groups, and of others in rows below them; None without masking
    hidden: MaskedGroup | None = None  # groups, masked where a predictor writes; None without one
    others: Group | None = None  # arrays int32[G, R', T] and int32[G, (V - 1) * n]; None unless texts are apart

    @property
    def fed(self) -> Fed:
        """What the encoders get of it."""
        return Fed(self.groups, self.masked, self.hidden, self.others)

    @property
    def rows(self) -> Rows:
        """How many rows its groups have."""
        return tuple(part.ids.shape[1] for part in (self.groups, self.others) if part is not None)


class Fed(NamedTuple):
    """What encoders get of a batch; see there."""

    groups: Group
    masked: MaskedGroup | None = None
    hidden: MaskedGroup | None = None
    others: Group | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch is laid out. None of it changes a number of the training; `apart` goes with a second encoder."""

    batch_size: int
    group_size: int
    row_length: int
    one_per_row: bool = False
    apart: bool = False  # anchors in rows of their own, as an encoder of their own reads them


class Batches:
    """The batches of a run: `batches(step)` for any step, in any order, on any host."""

    def __init__(
        self,
        examples: Examples,
        layout: Layout,
        seed: int,
        masking: Masking | None = None,
        hiding: Masking | None = None,
        lasting_numbers: bool = False,
    ):
        """Raises UserError when there are fewer examples than one batch takes.

        masking: adds masked copies. hiding: adds what a predictor is to replace. lasting_numbers: numbers of texts can
        be compared between batches; different texts then share one by chance, once in 2**32 pairs.
        """
        self.lasting_numbers = lasting_numbers
        self.examples, self.layout, self.seed, self.masking, self.hiding = examples, layout, seed, masking, hiding
        count = len(examples)
        self.steps_per_epoch = count // layout.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"train.batch_size = {layout.batch_size}, but the data has only {count} examples.\n"
                f"Use --config.train.batch_size={_power_below(count)} or give more data."
            )
        self.dropped = count % layout.batch_size  # examples a whole epoch leaves out, others each time
        self.row_counts = self._choose_row_counts()

    def rows(self, step: int) -> np.ndarray:
        """int64[B]: the examples of this step's batch. Each epoch is a permutation of its own."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        first, last = batch * self.layout.batch_size, len(self.examples) - 1
        shuffled = grain.experimental.index_shuffle
        return np.array([shuffled(first + i, last, seed, 4) for i in range(self.layout.batch_size)], np.int64)

    def __call__(self, step: int, groups: Sequence[int] | None = None) -> Batch:
        """The batch of a step; `groups`: those to materialise (None = all; shapes are those of the whole batch)."""
        size, total = self.layout.group_size, self.layout.batch_size
        drawn = self._draw(step)
        parts = self._slots(drawn)
        used = _used(parts)
        rows = next(counts for counts in self.row_counts if np.all(np.array(counts) >= used))
        shape = sum(rows), self.layout.row_length
        laid = []
        for group in range(total // size) if groups is None else groups:
            examples = np.arange(group * size, (group + 1) * size)
            tokens = drawn.token_ids(examples)
            columns = range(self.examples.texts)
            places = np.concatenate([column * total + examples for column in columns])
            slots = packing.below([slots[group] for slots in parts], rows)
            laid.append(packing.fill([t[column] for column in columns for t in tokens], slots, places, shape))
        copies = [_stacked([how(group, step) for group in laid]) if how else None for how in self._copies]
        others = None
        if self.layout.apart:
            laid, rest = zip(*(group.split(rows[0], size) for group in laid), strict=True)
            others = _stacked(rest)
        return Batch(_stacked(laid), self._texts(drawn), *copies, others=others)

    def stream(
        self, first_step: int, last_step: int, groups: Sequence[int] | None = None, depth: int = 4
    ) -> Iterator[Batch]:
        """The batches of steps first_step <= step < last_step, made in background threads, `depth` ahead."""
        steps = grain.MapDataset.range(first_step, last_step).map(functools.partial(self, groups=groups))
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=depth)))

    @property
    def planned_rows(self) -> Rows:
        """The row counts that memory is planned for: what batches of this data hardly ever exceed."""
        return self.row_counts[-2:][0]

    @property
    def _copies(self) -> tuple[Masking | None, Masking | None]:
        return self.masking, self.hiding

    def _draw(self, step: int) -> Drawn:
        return self.examples.draw(self.rows(step), step)

    def _slots(self, drawn: Drawn) -> list[list[packing.Slots]]:
        """Where each sentence of each group goes, part by part; the lengths of the batch are all that it needs."""
        layout = self.layout
        by_column = drawn.lengths.reshape(-1, layout.group_size, self.examples.texts).swapaxes(1, 2)
        lengths = np.split(by_column.reshape(len(by_column), -1), np.cumsum(self._sentences)[:-1], axis=1)
        return [packing.fit_groups(part, layout.row_length, layout.one_per_row) for part in lengths]

    @property
    def _sentences(self) -> Rows:
        """Sentences in each part of a group: as many rows are always enough."""
        size, texts = self.layout.group_size, self.examples.texts
        return (size, (texts - 1) * size) if self.layout.apart else (texts * size,)

    def _texts(self, drawn: Drawn) -> np.ndarray:
        hashes = drawn.hashes.T
        if self.lasting_numbers:
            numbers = hashes.astype(np.uint32).view(np.int32)
        else:
            numbers = np.unique(hashes, return_inverse=True)[1].reshape(hashes.shape).astype(np.int32)
        return np.concatenate([numbers, numbers]) if len(numbers) == 1 else numbers

    def _choose_row_counts(self) -> tuple[Rows, ...]:
        """The few row counts, ascending, that batches are padded up to, so that a run compiles a handful of shapes.

        From the first batches of the run's own order: what a third, two thirds and 19 of 20 stay within (of texts
        apart: in each part), the largest, one with some room, and the worst possible. A function of data, layout and
        seed, so a resumed run has the same.
        """
        sentences = np.array(self._sentences)
        if self.layout.one_per_row:
            return (self._sentences,)
        sampled = [_used(self._slots(self._draw(step))) for step in range(min(SAMPLED_BATCHES, self.steps_per_epoch))]
        *common, largest = np.quantile(sampled, [1 / 3, 2 / 3, 0.95, 1], axis=0, method="higher").astype(int)
        counts = [*common, largest, largest + largest // 8 + 1, sentences]
        return tuple(sorted({tuple(np.minimum(count, sentences).tolist()) for count in counts}))


def written(rows: Rows) -> str:
    """Row counts for the eye."""
    return " + ".join(map(str, rows))


def _used(parts: list[list[packing.Slots]]) -> list[int]:
    """Rows that the fullest group needs, part by part."""
    return [max(slots.used for slots in part) for part in parts]


def _stacked(tuples: Sequence[Any]) -> Any:
    """One named tuple of arrays with a leading axis, of many alike."""
    return type(tuples[0])(*map(np.stack, zip(*tuples, strict=True)))


def _power_below(count: int) -> int:
    """The largest power of two that is at most count (at least 1)."""
    return 1 << max(count.bit_length() - 1, 0)

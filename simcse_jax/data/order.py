"""Say which examples a batch has, from (seed, step) alone."""

from __future__ import annotations

from typing import Protocol

import grain.experimental
import numpy as np

from simcse_jax.system.errors import UserError


class Order(Protocol):
    """Say which examples each step's batch has."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of a pass over the data."""
        ...

    @property
    def dropped(self) -> int:
        """The number of examples that a whole epoch leaves out, others each time."""
        ...

    def ids(self, step: int) -> np.ndarray:
        """Return int64[B], the examples of a step's batch."""
        ...

    def source(self, step: int) -> str:
        """Return the source that a step's batch is of; "" where that is no single one of several."""
        ...


class Permutations:
    """Order `count` rows without end: each epoch is a permutation of its own, whose first `per_epoch` rows are taken.

    source: the number of these rows' source among several, from 0; each has permutations of its own.
    """

    def __init__(self, count: int, per_epoch: int, seed: int, source: int = 0):
        self.count, self.per_epoch, self.seed, self.source = count, per_epoch, seed, source

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return int64[n], the rows that come at these places int64[n]."""
        epochs, places = np.divmod(numbers, self.per_epoch)
        seeds = {epoch: self._seed(epoch) for epoch in np.unique(epochs).tolist()}
        both = zip(epochs.tolist(), places.tolist(), strict=True)
        shuffled = grain.experimental.index_shuffle
        return np.array([shuffled(place, self.count - 1, seeds[epoch], 4) for epoch, place in both], np.int64)

    def _seed(self, epoch: int) -> int:
        # With source 0 it is the seed of [seed, epoch], as zeros at the end do not count.
        return int(np.random.SeedSequence([self.seed, epoch, self.source]).generate_state(1)[0])


class EpochOrder:
    """Take whole batches of a permutation of the examples, another one each epoch."""

    def __init__(self, count: int, batch_size: int, seed: int):
        """Raise UserError where there are fewer examples than a batch has."""
        self.batch_size, self.steps_per_epoch = batch_size, count // batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"train.batch_size = {batch_size}, but the data has only {count} examples.\n"
                f"Use --config.train.batch_size={power_below(count)} or give more data."
            )
        self.dropped = count % batch_size
        self._rows = Permutations(count, self.steps_per_epoch * batch_size, seed)

    def ids(self, step: int) -> np.ndarray:
        """Return int64[B], the examples of a step's batch."""
        return self._rows(step * self.batch_size + np.arange(self.batch_size))

    def source(self, step: int) -> str:
        """Return "": there are not several sources."""
        del step
        return ""


def power_below(count: int) -> int:
    """Return the largest power of two that is at most count (at least 1)."""
    return 1 << max(count.bit_length() - 1, 0)

"""Mix several sources of examples: whose turn it is, and their examples as those of one source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from simcse_jax.data.examples import Drawn, Examples
from simcse_jax.data.order import Permutations, power_below
from simcse_jax.hashing import token_bits
from simcse_jax.system.errors import UserError

BLOCK = 20  # turns of which each source has its share, up to one
_PERIOD, _STRIDE = 1024, 633  # blocks after which offsets repeat; _STRIDE / _PERIOD is near the golden ratio
_ONE = 1 << 32  # shares are counted in units of 2**-32, as integers are the same on every machine


def shares(weights: Sequence[float], rows: Sequence[int], temperature: float) -> list[float]:
    """Return the share of each source, weight x rows^(1 / temperature), or its weight alone; they sum to 1."""
    power = 1 / temperature if temperature else 0
    sizes = [weight * (count / max(rows)) ** power for weight, count in zip(weights, rows, strict=True)]
    return [size / sum(sizes) for size in sizes]


class Turns:
    """Say which source each turn is of: a function of the seed and the turn's number, with shares that hold throughout.

    The turns of a block are numbers (p + offset) / BLOCK, p a permutation that the seed and the block make, and the
    unit interval is parted among the sources. The offsets of blocks spread evenly over [0, 1), so what a source lacks
    in one block it gets in another: among any turns in a row it has its share, up to a few turns.
    """

    def __init__(self, shares: Sequence[float], seed: int):
        """shares: of each source, of any sum."""
        self._key = np.random.SeedSequence([seed, 0x6D6978]).generate_state(1)[0]  # "mix"
        ends = np.cumsum(shares)
        bounds = np.rint(ends / ends[-1] * _ONE).astype(np.int64)
        offsets = np.arange(_PERIOD, dtype=np.int64) * _STRIDE % _PERIOD * (_ONE // _PERIOD)
        # int64[_PERIOD, sources]: how many points p of a block are below the end of each source's part
        self._thresholds = -((offsets[:, None] - BLOCK * bounds) // _ONE)
        turns = np.diff(self._thresholds, axis=1, prepend=0)
        self._before = np.concatenate([np.zeros_like(turns[:1]), np.cumsum(turns, 0)])

    def __call__(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return int64[count] each, of the turns from `first` on: the source, and how many it has had before."""
        begin, end = first // BLOCK, -(-(first + count) // BLOCK)
        blocks = np.arange(begin, end)
        bits = token_bits(self._key, blocks[:, None], np.arange(BLOCK)[None])
        points = np.argsort(bits, axis=1, kind="stable")
        periods, places = np.divmod(blocks, _PERIOD)
        sources = (points[:, :, None] >= self._thresholds[places][:, None]).sum(2)
        before = periods[:, None] * self._before[-1] + self._before[places]
        own = np.cumsum(sources[:, :, None] == np.arange(before.shape[1]), axis=1)
        numbers = np.take_along_axis(before[:, None] + own, sources[:, :, None], 2)[:, :, 0] - 1
        part = slice(first - begin * BLOCK, first - begin * BLOCK + count)
        return sources.ravel()[part], numbers.ravel()[part]


class MixedOrder:
    """Take the examples of several sources in their turns, each in permutations of its own.

    An epoch is as many examples as all sources have together. A source that has had all of its rows begins its next
    permutation, whatever the others have had; where it does so within a batch of several, that batch may have a row
    twice, as a duplicate (objective.mask_duplicates).
    """

    dropped = 0  # of its epochs, which are no whole permutations

    def __init__(self, rows: Mapping[str, int], shares: Sequence[float], batch_size: int, seed: int, by_batch: bool):
        """Raise UserError where a source has fewer rows than a batch takes of it.

        rows, shares: of each source. by_batch: a batch is of one source; else each example has its turn.
        """
        self.rows, self.shares = dict(rows), dict(zip(rows, shares, strict=True))
        self.batch_size, self.by_batch = batch_size, by_batch
        for name in rows:
            self._require_rows(name)
        counts = list(rows.values())
        self.steps_per_epoch = max(sum(counts) // batch_size, 1)
        self._turns = Turns(shares, seed)
        self._starts = np.cumsum([0, *counts[:-1]])
        whole = batch_size if by_batch else 1
        self._order = [Permutations(count, count // whole * whole, seed, number) for number, count in enumerate(counts)]

    def _require_rows(self, name: str) -> None:
        count = self.rows[name]
        typical = self.batch_size if self.by_batch else math.ceil(self.shares[name] * self.batch_size)
        if count < typical:
            other = "" if not self.by_batch else "mix examples (--config.data.mixing=example), "
            smaller = max(int(self.batch_size * count / typical), 2)
            raise UserError(
                f"train.batch_size = {self.batch_size}, and a batch has {'' if self.by_batch else 'about '}{typical} "
                f"examples of the source {name!r}, which has only {count}.\n"
                f"Use --config.train.batch_size={power_below(smaller)}, {other}or give it more data."
            )

    def ids(self, step: int) -> np.ndarray:
        """Return int64[B], the examples of a step's batch; those of a source come after those of the sources before."""
        size = self.batch_size
        if self.by_batch:
            [source], [number] = self._turns(step, 1)
            return self._starts[source] + self._order[source](number * size + np.arange(size))
        sources, numbers = self._turns(step * size, size)
        ids = self._starts[sources]
        for source, rows in enumerate(self._order):
            own = sources == source
            ids[own] += rows(numbers[own])
        return ids

    def source(self, step: int) -> str:
        """Return the source that a step's batch is of; "" where batches are of several."""
        return list(self.rows)[self._turns(step, 1)[0][0]] if self.by_batch else ""


class MixedExamples:
    """Hold the examples of several sources, one after another; a text that a source does not have is missing."""

    def __init__(self, sources: Sequence[Examples], shares: Sequence[float]):
        """shares: of each source in training."""
        self.sources = sources
        self.texts = max(source.texts for source in sources)
        self.mean_texts = sum(share * source.texts for share, source in zip(shares, sources, strict=True))
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        """Return the examples of ids int64[B] for this step's batch."""
        source = np.searchsorted(self._ends, ids, side="right")
        parts = []
        for number in np.unique(source).tolist():
            own = np.flatnonzero(source == number)
            first = self._ends[number] - len(self.sources[number])
            parts.append((own, self.sources[number].draw(ids[own] - first, step)))

        def spread(field: str, kind: type) -> np.ndarray:
            whole = np.zeros((len(ids), self.texts), kind)
            for own, drawn in parts:
                values = getattr(drawn, field)
                if values is not None:
                    whole[own, : values.shape[1]] = values
            return whole

        def token_ids(places: np.ndarray) -> list[list[np.ndarray]]:
            found: dict[int, list[np.ndarray]] = {}
            for own, drawn in parts:
                asked = np.flatnonzero(np.isin(own, places))
                for place, texts in zip(own[asked].tolist(), drawn.token_ids(asked), strict=True):
                    found[place] = [*texts, *[np.zeros(0, np.int32)] * (self.texts - len(texts))]
            return [found[place] for place in places.tolist()]

        unpooled = any(drawn.unpooled is not None for _, drawn in parts)
        scores = None
        if all(drawn.scores is not None for _, drawn in parts):
            scores = np.zeros(len(ids), np.float32)
            for own, drawn in parts:
                scores[own] = drawn.scores
        return Drawn(
            spread("lengths", np.int32),
            spread("hashes", np.uint64),
            token_ids,
            scores,
            unpooled=spread("unpooled", np.int64) if unpooled else None,
        )


class SameTwice:
    """Give each text of a source of single texts as its own positive: another sentence, with other dropout."""

    texts = 2

    def __init__(self, examples: Examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def draw(self, ids: np.ndarray, step: int) -> Drawn:
        """Return the examples of ids int64[B] for this step's batch."""
        drawn = self.examples.draw(ids, step)
        return drawn._replace(
            lengths=np.repeat(drawn.lengths, 2, 1),
            hashes=np.repeat(drawn.hashes, 2, 1),
            token_ids=lambda places: [[tokens, tokens] for (tokens,) in drawn.token_ids(places)],
            unpooled=None if drawn.unpooled is None else np.repeat(drawn.unpooled, 2, 1),
        )

"""InfoNCE (SimCSE's equations 1 and 5), streamed over tiles of candidates.

In the forward pass, tiles of candidates pass by each tile of anchors, and an anchor keeps the largest logit so far and
the sum relative to it: all that a log-sum-exp needs. The backward pass computes each tile again: with the finished
log-sum-exp, a logit's gradient is its softmax probability, less 1 at the positive.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simcse_jax.objective import tiles
from simcse_jax.objective.tiles import HIGHEST, Anchors, Candidates, Rules, ScoreTile, Statistics


def info_nce(
    rules: Rules,
    anchors: Anchors,
    candidates: Candidates,
    *,
    temperature: float | jax.Array,
    hard_negative_weight: float,
    hardness: float = 0.0,
    hardness_of: str = "all",
    hardness_normalized: bool = True,
) -> tuple[jax.Array, Statistics]:
    """Return the loss float[b] of each anchor i, and statistics.

        -log e^{s(i,i,0)} / (sum_j sum_k w_ijk e^{s(i,j,k)}), s(i,j,k) = sim(anchor i, candidate k of j) / temperature

    with w = hard_negative_weight for i's own hard negatives and 1 elsewhere. Masked candidates are not in the sum.
    temperature: a float, or a scalar array, for which there is a gradient. Every positive must be among the candidates.

    hardness: a negative's w is multiplied by e^{hardness cos(i,j,k)}, through which no gradient flows (Robinson et al.
    2021, equation 4). hardness_of: of all negatives, of those in the "batch", or of an anchor's "own" hard negatives.
    hardness_normalized: these factors are divided by their mean over the negatives that have them.
    """
    is_learned = isinstance(temperature, jax.Array)
    divisor = jnp.asarray(temperature, anchors.z.dtype)
    weighting = Weighting(hard_negative_weight, hardness, hardness_of, hardness_normalized)
    return _losses(rules, weighting, is_learned, divisor, anchors, candidates)


@dataclass(frozen=True)
class Weighting:
    """Hold how negatives are weighed; see `info_nce`."""

    hard_negative: float = 1.0
    hardness: float = 0.0
    hardness_of: str = "all"
    hardness_normalized: bool = True

    def has_hardness(self, scored: ScoreTile) -> jax.Array:
        """Return bool[a, K, c]: the negatives that are weighed by their hardness."""
        negative = scored.is_counted & ~scored.is_positive
        if self.hardness_of == "all":
            return negative
        return negative & (~scored.is_own if self.hardness_of == "batch" else scored.is_own)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _losses(
    rules: Rules,
    weighting: Weighting,
    is_learned: bool,
    temperature: jax.Array,
    anchors: Anchors,
    candidates: Candidates,
) -> tuple[jax.Array, Statistics]:
    """Compute `info_nce`; differentiable once, in both z, and in the temperature where it is learned."""
    return _forward(rules, weighting, is_learned, temperature, anchors, candidates)[0]


def _forward(
    rules: Rules,
    weighting: Weighting,
    is_learned: bool,
    temperature: jax.Array,
    anchors: Anchors,
    candidates: Candidates,
) -> tuple[tuple[jax.Array, Statistics], Any]:
    candidate_tiles = tiles.split(candidates, rules.tile)
    scales = _hardness_scales(rules, weighting, anchors, candidate_tiles)

    def of_anchors(given: tuple[Anchors, jax.Array | None]) -> RunningStatistics:
        some, scale = given

        def add(so_far: RunningStatistics, tile: Candidates) -> tuple[RunningStatistics, None]:
            return _add_tile(rules, weighting, temperature, so_far, some, scale, tile), None

        return jax.lax.scan(add, _start(some), candidate_tiles)[0]

    seen = tiles.join(jax.lax.map(of_anchors, tiles.split((anchors, scales), rules.tile)), len(anchors.z))
    log_sums = seen.peak + jnp.log(seen.sum)
    correct = (seen.closest == anchors.ids).astype(log_sums.dtype)
    losses = log_sums - seen.positive / temperature
    return (losses, seen.statistics._replace(correct=correct)), (temperature, anchors, candidates, log_sums, scales)


def _backward(
    rules: Rules, weighting: Weighting, is_learned: bool, kept: Any, slopes: tuple[jax.Array, Statistics]
) -> tuple[jax.Array, Anchors, Candidates]:
    """Return the gradients. The outer loop is over candidates, as the inner one copies what it adds to."""
    temperature, anchors, candidates, log_sums, scales = kept
    anchor_tiles = tiles.split((anchors, scales, log_sums, slopes[0]), rules.tile)

    def of_candidates(carried: Any, some_candidates: Candidates) -> tuple[Any, jax.Array]:
        to_anchors, to_temperature = carried

        def of_tile(carried: Any, tile: Any) -> tuple[Any, jax.Array]:
            to_candidates, to_temperature = carried
            (some, scale, log_sum, slope), to_some = tile
            scored = tiles.compare(rules, some, some_candidates)
            error = jnp.exp(_logits(scored, weighting, scale, temperature) - log_sum[:, None, None])
            error -= scored.is_positive
            error *= slope[:, None, None] / temperature
            if is_learned:
                to_temperature -= (error * scored.similarities).sum() / temperature
            to_candidates += jnp.einsum("akc,ad->ckd", error, some.z, precision=HIGHEST)
            to_some += jnp.einsum("akc,ckd->ad", error, some_candidates.z, precision=HIGHEST)
            return (to_candidates, to_temperature), to_some

        start = (jnp.zeros_like(some_candidates.z), to_temperature)
        (to_candidates, to_temperature), to_anchors = jax.lax.scan(of_tile, start, (anchor_tiles, to_anchors))
        return (to_anchors, to_temperature), to_candidates

    start = (jnp.zeros_like(anchor_tiles[0].z), jnp.zeros_like(temperature))
    candidate_tiles = tiles.split(candidates, rules.tile)
    (to_anchors, to_temperature), to_candidates = jax.lax.scan(of_candidates, start, candidate_tiles)
    # None: the gradient of integers.
    return (
        to_temperature,
        Anchors(tiles.join(to_anchors, len(anchors.z)), None, None),  # pyright: ignore[reportArgumentType]
        Candidates(tiles.join(to_candidates, len(candidates.z)), None, None),  # pyright: ignore[reportArgumentType]
    )


_losses.defvjp(_forward, _backward)


def _hardness_scales(
    rules: Rules, weighting: Weighting, anchors: Anchors, candidate_tiles: Candidates
) -> jax.Array | None:
    """Return float[b], what divides e^{hardness cos} of each anchor's negatives, as a logarithm; None without it."""
    if not weighting.hardness:
        return None
    if not weighting.hardness_normalized:
        return jnp.zeros_like(anchors.z[:, 0])

    def of_anchors(some: Anchors) -> jax.Array:
        def add(so_far: jax.Array, tile: Candidates) -> tuple[jax.Array, None]:
            scored = tiles.compare(rules, some, tile)
            has_hardness = weighting.has_hardness(scored)
            factors = jnp.exp(weighting.hardness * (scored.cosines - 1))  # at most 1
            return so_far + jnp.stack([jnp.where(has_hardness, x, 0).sum((1, 2)) for x in (factors, 1.0)]), None

        zero = jnp.zeros_like(some.z[:, 0])
        total, count = jax.lax.scan(add, jnp.stack([zero, zero]), candidate_tiles)[0]
        mean = jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
        return jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)) + weighting.hardness

    return tiles.join(jax.lax.map(of_anchors, tiles.split(anchors, rules.tile)), len(anchors.z))


def _logits(scored: ScoreTile, weighting: Weighting, scale: jax.Array | None, temperature: jax.Array) -> jax.Array:
    """Return the logits [a, K, c] of a tile; -inf where a candidate does not count."""
    logits = scored.similarities / temperature
    if weighting.hard_negative != 1.0:
        logits += jnp.where(scored.is_own & ~scored.is_positive, jnp.log(weighting.hard_negative), 0.0)
    if scale is not None:
        harder = weighting.hardness * scored.cosines - scale[:, None, None]
        logits += jnp.where(weighting.has_hardness(scored), harder, 0.0)
    return jnp.where(scored.is_counted, logits, -jnp.inf)


class RunningStatistics(NamedTuple):
    """Hold what anchors keep from one tile of candidates to the next, [a] each."""

    peak: jax.Array  # the largest logit so far
    sum: jax.Array  # of exp(logit - peak)
    similarity: jax.Array  # the largest so far
    closest: jax.Array  # int32: the id of its candidate
    positive: jax.Array  # similarity with the own positive
    statistics: Statistics  # so far; `correct` waits for the last tile


def _start(anchors: Anchors) -> RunningStatistics:
    zero = jnp.zeros_like(anchors.z[:, 0])
    # Not -inf: where a whole tile is masked, the difference of two would be NaN.
    lowest = jnp.full_like(zero, jnp.finfo(zero.dtype).min)
    statistics = Statistics(*[zero] * len(Statistics._fields))
    return RunningStatistics(lowest, zero, lowest, jnp.zeros_like(anchors.ids), zero, statistics)


def _add_tile(
    rules: Rules,
    weighting: Weighting,
    temperature: jax.Array,
    so_far: RunningStatistics,
    anchors: Anchors,
    scale: jax.Array | None,
    candidates: Candidates,
) -> RunningStatistics:
    """Return the running statistics with one more tile of candidates."""
    scored = tiles.compare(rules, anchors, candidates)
    logits = _logits(scored, weighting, scale, temperature)
    peak = jnp.maximum(so_far.peak, logits.max((1, 2)))
    exponentials = jnp.exp(logits - peak[:, None, None])
    similarity, closest = scored.closest(candidates)
    closest = jnp.where(
        similarity == so_far.similarity,
        jnp.minimum(closest, so_far.closest),
        jnp.where(similarity > so_far.similarity, closest, so_far.closest),
    )
    return RunningStatistics(
        peak=peak,
        sum=so_far.sum * jnp.exp(so_far.peak - peak) + exponentials.sum((1, 2)),
        similarity=jnp.maximum(so_far.similarity, similarity),
        closest=closest,
        positive=so_far.positive + jnp.where(scored.is_positive, scored.similarities, 0.0).sum((1, 2)),
        statistics=jax.tree.map(jnp.add, so_far.statistics, scored.statistics()),
    )

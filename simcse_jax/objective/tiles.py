"""The loss of each anchor against all candidates, a tile of cosines at a time.

A global batch of 65,536 has 4 billion cosines, 16 GB of them, and nothing here holds more than a tile. Going forward,
tiles of candidates pass by each tile of anchors, and an anchor carries along the largest logit so far and the sum
relative to it, which is all that a log-sum-exp needs. The way back computes each tile again: with the finished
log-sum-exp, a logit's gradient is its softmax probability, less 1 at the positive.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST  # elsewhere than on CPUs, the default rounds the factors of a product


@dataclass(frozen=True)
class Rules:
    """What makes a logit of a cosine, and the most anchors that meet the candidates of as many examples at a time."""

    temperature: float
    hard_negative_weight: float
    mask_duplicates: bool
    tile: int  # 0: everybody meets at once


class Anchors(NamedTuple):
    """Those who look for their positive: all b of a device, or a tile of them."""

    z: jax.Array  # float[b, D], unit vectors
    places: jax.Array  # int32[b]: place of the example in the global batch
    texts: jax.Array  # int32[b, 2]: numbers of the anchor's text and of its positive's


class Candidates(NamedTuple):
    """Those whom they look at: K of each of the B examples of the global batch, or of a tile of examples."""

    z: jax.Array  # float[B, K, D], unit vectors; candidate 0 is the positive
    numbers: jax.Array  # int32[B, K]: the place of the example for positives, on from B for the others; -1 = nobody
    texts: jax.Array  # int32[B, K]


class Figures(NamedTuple):
    """What each anchor saw, float[b] each; no gradient flows through them."""

    first: jax.Array  # 1 where its own positive is the closest candidate, of equals the one with the lowest number
    positive: jax.Array  # cosine with its own positive
    negatives: jax.Array  # cosines with other examples' positives, summed
    potential: jax.Array  # exp(-2 |x - y|^2) with the same, summed
    others: jax.Array  # how many these are
    masked: jax.Array  # how many candidates were left out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def losses_of(rules: Rules, anchors: Anchors, candidates: Candidates) -> tuple[jax.Array, Figures]:
    """float[b], -log of the probability that each anchor gives its own positive (see `contrastive`), and figures.

    Every positive must be among the candidates. Differentiable, once, in the z of both.
    """
    return _forward(rules, anchors, candidates)[0]


def _forward(rules: Rules, anchors: Anchors, candidates: Candidates) -> tuple[tuple[jax.Array, Figures], Any]:
    candidate_tiles = _split(candidates, rules.tile)

    def of_anchors(some: Anchors) -> _Seen:
        def look(seen: _Seen, at: Candidates) -> tuple[_Seen, None]:
            return _look(rules, seen, some, at), None

        return jax.lax.scan(look, _nothing_seen(some), candidate_tiles)[0]

    seen = _join(jax.lax.map(of_anchors, _split(anchors, rules.tile)), len(anchors.z))
    log_sums = seen.peak + jnp.log(seen.sum)
    first = (seen.closest == anchors.places).astype(log_sums.dtype)
    losses = log_sums - seen.figures.positive / rules.temperature
    return (losses, seen.figures._replace(first=first)), (anchors, candidates, log_sums)


def _backward(rules: Rules, kept: Any, slopes: tuple[jax.Array, Figures]) -> tuple[Anchors, Candidates]:
    """The gradients for both z. The outer loop is over candidates, as the inner one copies what it adds to."""
    anchors, candidates, log_sums = kept
    anchor_tiles = _split((anchors, log_sums, slopes[0]), rules.tile)

    def of_candidates(to_anchors: jax.Array, at: Candidates) -> tuple[jax.Array, jax.Array]:
        def of_block(to_candidates: jax.Array, tile: Any) -> tuple[jax.Array, jax.Array]:
            (some, log_sum, slope), to_some = tile
            block = _meet(rules, some, at)
            error = jnp.exp(block.logits - log_sum[:, None, None]) - block.is_positive
            error *= slope[:, None, None] / rules.temperature
            to_candidates += jnp.einsum("akc,ad->ckd", error, some.z, precision=HIGHEST)
            return to_candidates, to_some + jnp.einsum("akc,ckd->ad", error, at.z, precision=HIGHEST)

        to_candidates, to_anchors = jax.lax.scan(of_block, jnp.zeros_like(at.z), (anchor_tiles, to_anchors))
        return to_anchors, to_candidates

    start = jnp.zeros_like(anchor_tiles[0].z)
    to_anchors, to_candidates = jax.lax.scan(of_candidates, start, _split(candidates, rules.tile))
    # None: the gradient of integers.
    return (
        Anchors(_join(to_anchors, len(anchors.z)), None, None),  # pyright: ignore[reportArgumentType]
        Candidates(_join(to_candidates, len(candidates.z)), None, None),  # pyright: ignore[reportArgumentType]
    )


losses_of.defvjp(_forward, _backward)


class _Block(NamedTuple):
    """A tile of anchors against a tile of candidates, [a, K, c] each."""

    cosines: jax.Array
    logits: jax.Array  # -inf where a candidate is masked, or nobody
    is_positive: jax.Array
    masked: jax.Array


def _meet(rules: Rules, anchors: Anchors, candidates: Candidates) -> _Block:
    cosines = jnp.einsum("ad,ckd->akc", anchors.z, candidates.z, precision=HIGHEST)
    numbers, places = candidates.numbers.T[None], anchors.places[:, None, None]
    is_there = numbers >= 0
    is_positive = (numbers == places) & is_there
    masked = jnp.zeros(cosines.shape, bool)
    if rules.mask_duplicates:
        for text in anchors.texts.T:
            masked |= candidates.texts.T[None] == text[:, None, None]
        masked &= is_there & ~is_positive
    logits = cosines / rules.temperature
    if rules.hard_negative_weight != 1.0:
        is_own = numbers[:, :1] == places
        logits += jnp.where(is_own & ~is_positive, jnp.log(rules.hard_negative_weight), 0.0)
    return _Block(cosines, jnp.where(is_there & ~masked, logits, -jnp.inf), is_positive, masked)


class _Seen(NamedTuple):
    """What anchors carry along from one tile of candidates to the next, [a] each."""

    peak: jax.Array  # the largest logit so far
    sum: jax.Array  # of exp(logit - peak)
    cosine: jax.Array  # the largest cosine so far
    closest: jax.Array  # int32: the number of its candidate
    figures: Figures  # so far; `first` waits for the last tile


def _nothing_seen(anchors: Anchors) -> _Seen:
    zero = jnp.zeros_like(anchors.z[:, 0])
    # Not -inf: where a whole tile is masked, the difference of two would be NaN.
    lowest = jnp.full_like(zero, jnp.finfo(zero.dtype).min)
    return _Seen(lowest, zero, lowest, jnp.zeros_like(anchors.places), Figures(*[zero] * len(Figures._fields)))


def _look(rules: Rules, seen: _Seen, anchors: Anchors, candidates: Candidates) -> _Seen:
    """What the anchors have seen once they have looked at these candidates, too."""
    block = _meet(rules, anchors, candidates)
    peak = jnp.maximum(seen.peak, block.logits.max((1, 2)))
    exponentials = jnp.exp(block.logits - peak[:, None, None])

    visible = jnp.where(block.logits > -jnp.inf, block.cosines, -jnp.inf)
    cosine = jnp.maximum(seen.cosine, visible.max((1, 2)))
    nobody = jnp.iinfo(jnp.int32).max
    closest = jnp.where(visible == cosine[:, None, None], candidates.numbers.T[None], nobody).min((1, 2))
    closest = jnp.minimum(closest, jnp.where(seen.cosine == cosine, seen.closest, nobody))

    others = (visible > -jnp.inf)[:, 0] & ~block.is_positive[:, 0]
    others_cosines = block.cosines[:, 0]
    new = Figures(
        first=jnp.zeros_like(peak),
        positive=jnp.where(block.is_positive, block.cosines, 0.0).sum((1, 2)),
        negatives=jnp.where(others, others_cosines, 0.0).sum(1),
        potential=jnp.where(others, jnp.exp(4.0 * others_cosines - 4.0), 0.0).sum(1),
        others=others.sum(1).astype(peak.dtype),
        masked=block.masked.sum((1, 2)).astype(peak.dtype),
    )
    total = seen.sum * jnp.exp(seen.peak - peak) + exponentials.sum((1, 2))
    return _Seen(peak, total, cosine, closest, jax.tree.map(jnp.add, seen.figures, new))


def _split(arrays: Any, tile: int) -> Any:
    """Each array [n, ...] as [tiles, size, ...]: as few tiles of at most `tile` as there can be, all of one size.

    So an n that nothing divides costs fewer empty slots than there are tiles. They hold 0, and integers -1.
    """

    def split(x: jax.Array) -> jax.Array:
        tiles = -(-len(x) // tile) if tile else 1
        size = -(-len(x) // tiles)
        padding = [(0, tiles * size - len(x))] + [(0, 0)] * (x.ndim - 1)
        empty = 0 if jnp.issubdtype(x.dtype, jnp.floating) else -1
        return jnp.pad(x, padding, constant_values=empty).reshape(tiles, size, *x.shape[1:])

    return jax.tree.map(split, arrays)


def _join(tiles: Any, count: int) -> Any:
    """Each array [tiles, size, ...] as [count, ...], without the empty slots."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tiles)

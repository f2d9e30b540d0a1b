"""InfoNCE of each anchor against all candidates, a tile of similarities at a time.

A global batch of 65,536 has 4 billion similarities, 16 GB of them, and nothing here holds more than a tile. Going
forward, tiles of candidates pass by each tile of anchors, and an anchor carries along the largest logit so far and the
sum relative to it, which is all that a log-sum-exp needs. The way back computes each tile again: with the finished
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
    """What counts in a sum, and the most anchors that meet candidates at a time (in InfoNCE, of as many examples)."""

    hard_negative_weight: float
    mask_duplicates: bool
    tile: int  # 0: everybody meets at once
    is_cosine: bool = True  # vectors are unit vectors, and so their products cosines


class Anchors(NamedTuple):
    """Those who look for their positive: all b of a device, or a tile of them."""

    z: jax.Array  # float[b, D]
    places: jax.Array  # int32[b]: place of the example in the global batch
    texts: jax.Array  # int32[b, 2]: numbers of the anchor's text and of its positive's


class Candidates(NamedTuple):
    """Those whom they look at: K of each of the B examples of the global batch, or of a tile of examples."""

    z: jax.Array  # float[B, K, D]; candidate 0 is the positive
    numbers: jax.Array  # int32[B, K]: the place of the example for positives, on from B for the others; -1 = nobody
    texts: jax.Array  # int32[B, K]


class Figures(NamedTuple):
    """What each anchor saw, float[b] each; no gradient flows through them."""

    first: jax.Array  # 1 where its own positive is the most similar candidate, of equals the one with the lowest number
    positive: jax.Array  # cosine with its own positive
    negatives: jax.Array  # cosines with other examples' positives, summed
    potential: jax.Array  # exp(-2 |x - y|^2) with the same, summed
    others: jax.Array  # how many these are
    masked: jax.Array  # how many candidates were left out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def losses_of(
    rules: Rules, is_learned: bool, temperature: jax.Array, anchors: Anchors, candidates: Candidates
) -> tuple[jax.Array, Figures]:
    """float[b], -log of the probability that each anchor gives its own positive (see `contrastive`), and figures.

    Every positive must be among the candidates. temperature: scalar. Differentiable, once, in the z of both, and in the
    temperature where it is learned.
    """
    return _forward(rules, is_learned, temperature, anchors, candidates)[0]


def _forward(
    rules: Rules, is_learned: bool, temperature: jax.Array, anchors: Anchors, candidates: Candidates
) -> tuple[tuple[jax.Array, Figures], Any]:
    candidate_tiles = split(candidates, rules.tile)

    def of_anchors(some: Anchors) -> _Seen:
        def look(seen: _Seen, at: Candidates) -> tuple[_Seen, None]:
            return _look(rules, temperature, seen, some, at), None

        return jax.lax.scan(look, _nothing_seen(some), candidate_tiles)[0]

    seen = join(jax.lax.map(of_anchors, split(anchors, rules.tile)), len(anchors.z))
    log_sums = seen.peak + jnp.log(seen.sum)
    first = (seen.closest == anchors.places).astype(log_sums.dtype)
    losses = log_sums - seen.positive / temperature
    return (losses, seen.figures._replace(first=first)), (temperature, anchors, candidates, log_sums)


def _backward(
    rules: Rules, is_learned: bool, kept: Any, slopes: tuple[jax.Array, Figures]
) -> tuple[jax.Array, Anchors, Candidates]:
    """The gradients for both z. The outer loop is over candidates, as the inner one copies what it adds to."""
    temperature, anchors, candidates, log_sums = kept
    anchor_tiles = split((anchors, log_sums, slopes[0]), rules.tile)

    def of_candidates(carried: Any, at: Candidates) -> tuple[Any, jax.Array]:
        to_anchors, to_temperature = carried

        def of_block(carried: Any, tile: Any) -> tuple[Any, jax.Array]:
            to_candidates, to_temperature = carried
            (some, log_sum, slope), to_some = tile
            block = meet(rules, temperature, some, at)
            error = jnp.exp(block.logits - log_sum[:, None, None]) - block.is_positive
            error *= slope[:, None, None] / temperature
            if is_learned:
                to_temperature -= (error * block.similarities).sum() / temperature
            to_candidates += jnp.einsum("akc,ad->ckd", error, some.z, precision=HIGHEST)
            to_some += jnp.einsum("akc,ckd->ad", error, at.z, precision=HIGHEST)
            return (to_candidates, to_temperature), to_some

        start = (jnp.zeros_like(at.z), to_temperature)
        (to_candidates, to_temperature), to_anchors = jax.lax.scan(of_block, start, (anchor_tiles, to_anchors))
        return (to_anchors, to_temperature), to_candidates

    start = (jnp.zeros_like(anchor_tiles[0].z), jnp.zeros_like(temperature))
    (to_anchors, to_temperature), to_candidates = jax.lax.scan(of_candidates, start, split(candidates, rules.tile))
    # None: the gradient of integers.
    return (
        to_temperature,
        Anchors(join(to_anchors, len(anchors.z)), None, None),  # pyright: ignore[reportArgumentType]
        Candidates(join(to_candidates, len(candidates.z)), None, None),  # pyright: ignore[reportArgumentType]
    )


losses_of.defvjp(_forward, _backward)


class Block(NamedTuple):
    """A tile of anchors against a tile of candidates, [a, K, c] each."""

    similarities: jax.Array
    cosines: jax.Array  # no gradient flows through them
    logits: jax.Array  # -inf where a candidate is masked, or nobody
    is_positive: jax.Array
    is_there: jax.Array  # the candidate is somebody, and not masked
    masked: jax.Array


def meet(rules: Rules, temperature: jax.Array | float, anchors: Anchors, candidates: Candidates) -> Block:
    """What anchors and candidates are to each other."""
    similarities = jnp.einsum("ad,ckd->akc", anchors.z, candidates.z, precision=HIGHEST)
    cosines = jax.lax.stop_gradient(similarities)
    if not rules.is_cosine:
        lengths = _lengths(anchors.z)[:, None, None] * _lengths(candidates.z).T[None]
        cosines = cosines / jnp.maximum(lengths, 1e-24)
    numbers, places = candidates.numbers.T[None], anchors.places[:, None, None]
    is_somebody = numbers >= 0
    is_positive = (numbers == places) & is_somebody
    masked = jnp.zeros(similarities.shape, bool)
    if rules.mask_duplicates:
        for text in anchors.texts.T:
            masked |= candidates.texts.T[None] == text[:, None, None]
        masked &= is_somebody & ~is_positive
    logits = similarities / temperature
    if rules.hard_negative_weight != 1.0:
        is_own = numbers[:, :1] == places
        logits += jnp.where(is_own & ~is_positive, jnp.log(rules.hard_negative_weight), 0.0)
    is_there = is_somebody & ~masked
    return Block(similarities, cosines, jnp.where(is_there, logits, -jnp.inf), is_positive, is_there, masked)


def _lengths(z: jax.Array) -> jax.Array:
    return jnp.linalg.norm(jax.lax.stop_gradient(z), axis=-1)


def figures_of(block: Block) -> Figures:
    """What the anchors of a block see in it; `first` is 0."""
    cosines = block.cosines[:, 0]
    others = (block.is_there & ~block.is_positive)[:, 0]
    return Figures(
        first=jnp.zeros_like(cosines[:, 0]),
        positive=jnp.where(block.is_positive, block.cosines, 0.0).sum((1, 2)),
        negatives=jnp.where(others, cosines, 0.0).sum(1),
        potential=jnp.where(others, jnp.exp(4.0 * cosines - 4.0), 0.0).sum(1),
        others=others.sum(1).astype(cosines.dtype),
        masked=block.masked.sum((1, 2)).astype(cosines.dtype),
    )


class _Seen(NamedTuple):
    """What anchors carry along from one tile of candidates to the next, [a] each."""

    peak: jax.Array  # the largest logit so far
    sum: jax.Array  # of exp(logit - peak)
    similarity: jax.Array  # the largest so far
    closest: jax.Array  # int32: the number of its candidate
    positive: jax.Array  # similarity with its own positive
    figures: Figures  # so far; `first` waits for the last tile


def _nothing_seen(anchors: Anchors) -> _Seen:
    zero = jnp.zeros_like(anchors.z[:, 0])
    # Not -inf: where a whole tile is masked, the difference of two would be NaN.
    lowest = jnp.full_like(zero, jnp.finfo(zero.dtype).min)
    figures = Figures(*[zero] * len(Figures._fields))
    return _Seen(lowest, zero, lowest, jnp.zeros_like(anchors.places), zero, figures)


def _look(rules: Rules, temperature: jax.Array, seen: _Seen, anchors: Anchors, candidates: Candidates) -> _Seen:
    """What the anchors have seen once they have looked at these candidates, too."""
    block = meet(rules, temperature, anchors, candidates)
    peak = jnp.maximum(seen.peak, block.logits.max((1, 2)))
    exponentials = jnp.exp(block.logits - peak[:, None, None])
    similarity, closest = closest_of(block, candidates)
    closest = jnp.where(
        similarity == seen.similarity,
        jnp.minimum(closest, seen.closest),
        jnp.where(similarity > seen.similarity, closest, seen.closest),
    )
    return _Seen(
        peak=peak,
        sum=seen.sum * jnp.exp(seen.peak - peak) + exponentials.sum((1, 2)),
        similarity=jnp.maximum(seen.similarity, similarity),
        closest=closest,
        positive=seen.positive + jnp.where(block.is_positive, block.similarities, 0.0).sum((1, 2)),
        figures=jax.tree.map(jnp.add, seen.figures, figures_of(block)),
    )


def closest_of(block: Block, candidates: Candidates) -> tuple[jax.Array, jax.Array]:
    """(similarity, number int32) of each anchor's most similar candidate, of equals the one with the lowest number."""
    visible = jnp.where(block.is_there, block.similarities, -jnp.inf)
    similarity = visible.max((1, 2))
    nobody = jnp.iinfo(jnp.int32).max
    numbers = jnp.where(visible == similarity[:, None, None], candidates.numbers.T[None], nobody)
    return similarity, numbers.min((1, 2))


def split(arrays: Any, tile: int) -> Any:
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


def join(tiles: Any, count: int) -> Any:
    """Each array [tiles, size, ...] as [count, ...], without the empty slots."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tiles)

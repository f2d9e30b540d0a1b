"""Compute attention a block of tokens at a time, as Pallas kernels in which no [T, T] array leaves the chip.

Each kernel is the program of one (block of tokens, head, row). Scores and weights stay in registers, and the bits of
dropout are hashed where they are used, in the backward pass again. A program alone writes its entries, and sums in a
fixed order, so results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from simcse_jax.encoder import dropout as drop

QUERY, KEY, VALUE = range(3)


class Blocks(NamedTuple):
    """Hold the sizes of a kernel: rows of `tokens` tokens in blocks of `block`, heads of `width` features in `columns`.

    block and columns are powers of two, as Triton wants them; what lies beyond the row and the head is masked.
    """

    tokens: int
    width: int
    block: int
    columns: int
    factors: Any  # dtype of the factors of products

    @property
    def count(self) -> int:
        """Return the number of blocks of a row."""
        return pl.cdiv(self.tokens, self.block)


class Row(NamedTuple):
    """Hold references to one head of one row, whose T tokens are whole blocks; see `attention.AttentionMask`."""

    q: Any  # [T, columns]
    k: Any  # [T, columns]
    v: Any  # [T, columns]
    segments: Any  # int32[T]
    span: Any  # int32[2]: the first block with tokens of the program's sentences, and the one after the last
    keys: Any = None  # uint32[T]; None without dropout
    pairs: Any = None  # uint32[T]


class Tile(NamedTuple):
    """Hold where the tokens of one block are."""

    at: Any  # slice of the row
    tokens: Any  # bool[block]: which are within the row; None for all
    entries: Any  # bool[block, columns]: which are within row and head; None for all


def forward(blocks: Blocks, rate: float, row: Row, context: Any, log_totals: Any) -> None:
    """Write the context [block, columns] of the program's queries, and the log of the sum of their weights [block]."""
    queries = _tile(blocks, pl.program_id(0))
    [q] = _factors(blocks, queries, row.q)
    wide = log_totals.dtype

    def add(number: Any, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Add a block of keys; sums are relative to the largest score so far (online softmax)."""
        before, total, out = sums
        keys = _tile(blocks, number)
        k, v = _factors(blocks, keys, row.k, row.v)
        scores, kept = _scores(blocks, rate, row, queries, keys, q, k)
        largest = jnp.maximum(before, scores.max(-1))
        shrunk = jnp.exp(before - largest)
        weights = jnp.exp(scores - largest[:, None])
        out = out * shrunk[:, None] + _product(_dropped(weights, kept).astype(v.dtype), v)
        return largest, total * shrunk + weights.sum(-1), out

    lowest, nothing = jnp.finfo(wide).min, jnp.zeros((blocks.block, blocks.columns), wide)
    start = jnp.full((blocks.block,), lowest, wide), jnp.zeros((blocks.block,), wide), nothing
    largest, total, out = _over_blocks(blocks, row, add, start)
    _store(context.at[:], queries.entries, out * (1 / (total * (1 - rate)))[:, None])
    _store(log_totals.at[:], queries.tokens, largest + jnp.log(total))


def backward_of_one_block(blocks: Blocks, rate: float, row: Row, log_totals: Any, of_context: Any, of_qkv: Any) -> None:
    """Write the gradient [T, 3, columns] of q, k and v, for rows of one block.

    log_totals: [T], from `forward`. of_context: [T, columns].
    """
    tile = _tile(blocks, 0)
    q, k, v, gradient = _factors(blocks, tile, row.q, row.k, row.v, of_context)
    scores, kept = _scores(blocks, rate, row, tile, tile, q, k)
    weights = jnp.exp(scores - _load(log_totals.at[tile.at], tile.tokens)[:, None])
    of_weights = _dropped(_product(gradient, v, of_columns=True), kept) * (1 / (1 - rate))
    common = (weights * of_weights).sum(-1)
    of_scores = (weights * (of_weights - common[:, None])).astype(q.dtype)
    used = _dropped(weights, kept).astype(q.dtype)
    scale = blocks.width**-0.5
    _store_part(of_qkv, QUERY, tile, _product(of_scores, k) * scale)
    _store_part(of_qkv, KEY, tile, _product(of_scores, q, over_rows=True) * scale)
    _store_part(of_qkv, VALUE, tile, _product(used, gradient, over_rows=True) * (1 / (1 - rate)))


def backward(blocks: Blocks, rate: float, row: Row, log_totals: Any, common: Any, of_context: Any, of_qkv: Any) -> None:
    """Write the gradient [block, 3, columns] of q, k and v of the program's tokens.

    log_totals: [T], from `forward`. common: [T], the product of each token's context with its gradient. of_context:
    [T, columns].
    """
    own = _tile(blocks, pl.program_id(0))
    q, k, v, gradient = _factors(blocks, own, row.q, row.k, row.v, of_context)
    log_total, common_of_own = (_load(x.at[own.at], own.tokens) for x in (log_totals, common))
    nothing = jnp.zeros((blocks.block, blocks.columns), log_totals.dtype)
    scale, kept_scale = blocks.width**-0.5, 1 / (1 - rate)

    def add_keys(number: Any, of_q: jax.Array) -> jax.Array:
        """Add what a block of keys contributes to the gradient of the program's queries."""
        keys = _tile(blocks, number)
        other_k, other_v = _factors(blocks, keys, row.k, row.v)
        scores, kept = _scores(blocks, rate, row, own, keys, q, other_k)
        weights = jnp.exp(scores - log_total[:, None])
        of_weights = _dropped(_product(gradient, other_v, of_columns=True), kept) * kept_scale
        of_scores = weights * (of_weights - common_of_own[:, None])
        return of_q + _product(of_scores.astype(q.dtype), other_k)

    def add_queries(number: Any, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Add what a block of queries contributes to the gradients of the program's keys; all is [keys, queries]."""
        of_k, of_v = sums
        queries = _tile(blocks, number)
        other_q, other_gradient = _factors(blocks, queries, row.q, of_context)
        scores, kept = _scores(blocks, rate, row, queries, own, other_q, k, keys_first=True)
        weights = jnp.exp(scores - _load(log_totals.at[queries.at], queries.tokens)[None, :])
        of_v = of_v + _product(_dropped(weights, kept).astype(v.dtype), other_gradient)
        of_weights = _dropped(_product(v, other_gradient, of_columns=True), kept) * kept_scale
        of_scores = weights * (of_weights - _load(common.at[queries.at], queries.tokens)[None, :])
        return of_k + _product(of_scores.astype(k.dtype), other_q), of_v

    of_q = _over_blocks(blocks, row, add_keys, nothing)
    _store_part(of_qkv, QUERY, own, of_q * scale)
    of_k, of_v = _over_blocks(blocks, row, add_queries, (nothing, nothing))
    _store_part(of_qkv, KEY, own, of_k * scale)
    _store_part(of_qkv, VALUE, own, of_v * kept_scale)


def _scores(
    blocks: Blocks,
    rate: float,
    row: Row,
    queries: Tile,
    keys: Tile,
    q: jax.Array,
    k: jax.Array,
    keys_first: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Return scores of at least float32, and which weights dropout keeps: [queries, keys], or [keys, queries].

    Where the sentences differ, a score is the lowest number. Without dropout, None is kept.
    """

    def crossed(of_queries: jax.Array, of_keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        if keys_first:
            return of_queries[None, :], of_keys[:, None]
        return of_queries[:, None], of_keys[None, :]

    scores = _product(k, q, of_columns=True) if keys_first else _product(q, k, of_columns=True)
    mine, theirs = crossed(*(_load(row.segments.at[tile.at], tile.tokens, -1) for tile in (queries, keys)))
    scores = jnp.where(mine == theirs, scores * blocks.width**-0.5, jnp.finfo(scores.dtype).min)
    if row.keys is None:
        return scores, None
    of_queries = _load(row.keys.at[queries.at], queries.tokens)
    of_keys = _load(row.pairs.at[keys.at], keys.tokens)
    return scores, drop.keep(*crossed(of_queries, of_keys), rate)


def _dropped(x: jax.Array, kept: jax.Array | None) -> jax.Array:
    return x if kept is None else jnp.where(kept, x, 0)


def _product(a: jax.Array, b: jax.Array, of_columns: bool = False, over_rows: bool = False) -> jax.Array:
    """Return a b in at least float32; of_columns: a b^T; over_rows: a^T b."""
    axes = ((0 if over_rows else 1,), (1 if of_columns else 0,))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)


def _over_blocks(blocks: Blocks, row: Row, add: Callable[[Any, Any], Any], start: Any) -> Any:
    if blocks.count == 1:
        return add(0, start)
    return jax.lax.fori_loop(row.span[0], row.span[1], add, start)


def _tile(blocks: Blocks, number: Any) -> Tile:
    shape, tokens, entries = (blocks.block, blocks.columns), None, None
    if blocks.tokens % blocks.block:
        tokens = number * blocks.block + jnp.arange(blocks.block) < blocks.tokens
        entries = jnp.broadcast_to(tokens[:, None], shape)
    if blocks.width < blocks.columns:
        within = jnp.broadcast_to((jnp.arange(blocks.columns) < blocks.width)[None, :], shape)
        entries = within if entries is None else entries & within
    return Tile(pl.ds(number * blocks.block, blocks.block), tokens, entries)


def _factors(blocks: Blocks, tile: Tile, *arrays: Any) -> list[jax.Array]:
    """Return the block of each array [T, columns], as factors of products."""
    return [_load(x.at[tile.at], tile.entries).astype(blocks.factors) for x in arrays]


def _load(view: Any, within: Any, other: int = 0) -> jax.Array:
    return triton.load(view, mask=within, other=None if within is None else other)


def _store(view: Any, within: Any, values: jax.Array) -> None:
    triton.store(view, values.astype(view.dtype), mask=within)


def _store_part(of_qkv: Any, part: int, tile: Tile, values: jax.Array) -> None:
    """Store values [block, columns] as one of the three parts of [block, 3, columns]."""
    within = None if tile.entries is None else tile.entries[:, None, :]
    _store(of_qkv.at[:, pl.ds(part, 1)], within, values[:, None, :])

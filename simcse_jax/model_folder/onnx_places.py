"""Add to an ONNX graph what attention knows of the tokens' places: the mask, distances and rotary positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simcse_jax.encoder import disentangled, rotary
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.relative import buckets

if TYPE_CHECKING:
    from simcse_jax.model_folder.onnx_graph import Graph


class Places(NamedTuple):
    """Hold the names of what attention knows of the tokens' places; "" for what the architecture does not have."""

    seen: str  # bool[batch, 1, 1, tokens]: what may be attended to
    near: str  # bool[batch, 1, tokens, tokens]: the same in local layers
    bias: str  # float[batch, H, tokens, tokens], added to the scores
    vectors: str  # float[rows, D], those of distances in disentangled attention
    rows: str  # int64[batch, H, tokens, tokens], which of them is that of a query and a key
    turns: tuple[str, str]  # cos and sin, float[batch, 1, tokens, D / 2], of rotary positions
    local_turns: tuple[str, str]  # the same in local layers


def make_places(graph: Graph, params: Mapping[str, Any], architecture: Architecture, before: str) -> Places:
    """Return what attention knows of places; before: int64[batch, tokens], each token's place in its sentence."""
    seen = graph.op("Unsqueeze", graph.cast("attention_mask", "BOOL"), graph.integers(1, 2))
    near = bias = vectors = rows = ""
    if architecture.local_layers or architecture.relative_buckets or architecture.disentangled_buckets:
        keys, queries = (graph.op("Unsqueeze", before, graph.integers(axis)) for axis in (1, 2))
        distance = graph.op("Sub", keys, queries)  # [batch, queries, keys]
        if architecture.local_layers:
            is_near = graph.op("LessOrEqual", graph.op("Abs", distance), graph.integers(architecture.local_window))
            near = graph.op("And", seen, graph.op("Unsqueeze", is_near, graph.integers(1)))
        if architecture.relative_buckets:
            known = buckets(_all_distances(architecture), architecture.relative_buckets)
            table = graph.weight("relative", np.asarray(params["relative"])[known])
            bias = graph.op("Transpose", _of_pairs(graph, table, architecture, distance), perm=(0, 3, 1, 2))
        if architecture.disentangled_buckets:
            vectors, rows = _disentangled(graph, params, architecture, distance)
    turns = _turns(graph, architecture, before, architecture.rope_theta)
    local_turns = _turns(graph, architecture, before, architecture.local_rope_theta)
    return Places(seen, near, bias, vectors, rows, turns, local_turns)


def _all_distances(of: Architecture) -> np.ndarray:
    """Return int64[2 * longest - 1]: all distances of a key from a query."""
    return np.arange(1 - of.max_length, of.max_length)


def _of_pairs(graph: Graph, table: str, of: Architecture, distance: str) -> str:
    """Return [batch, queries, keys, ...]: the row for each distance of a table for `_all_distances`."""
    return graph.op("Gather", table, graph.op("Add", distance, graph.integers(of.max_length - 1)))


def _disentangled(graph: Graph, params: Mapping[str, Any], of: Architecture, distance: str) -> tuple[str, str]:
    """Return `vectors` and `rows` of Places; distance: int64[batch, queries, keys], of the key from the query."""
    table = graph.weight("relative", params["relative"])
    vectors = graph.norm(table, "relative_norm", params["relative_norm"], of.layer_norm_eps)
    known = disentangled.table_rows(-_all_distances(of), of.disentangled_buckets, of.max_position_embeddings)
    graph.weights["relative_rows"] = known.astype(np.int64)
    rows = graph.op("Unsqueeze", _of_pairs(graph, "relative_rows", of, distance), graph.integers(1))
    return vectors, graph.op("Expand", rows, graph.integers(1, of.num_attention_heads, 1, 1))


def scores(graph: Graph, query: str, key: str, of: Architecture, at: Places, dense: Callable[[str, str], str]) -> str:
    """Return [batch, H, tokens, tokens]: the scores of attention before the mask.

    query: [batch, H, tokens, D]. key: [batch, H, D, tokens]. dense: maps [..., D] by the layer's product for "query" or
    "key".
    """
    heads, size = of.num_attention_heads, of.head_size
    scale = graph.number((size * (disentangled.SUMMED if at.vectors else 1)) ** -0.5)
    query = graph.op("Mul", query, scale)
    found = graph.op("MatMul", query, key)
    if at.bias:
        found = graph.op("Add", found, at.bias)
    if at.vectors:  # see `encoder.disentangled`
        by_head = graph.integers(0, heads, size)
        of_keys = graph.op("Transpose", graph.op("Reshape", dense(at.vectors, "key"), by_head), perm=(1, 2, 0))
        of_queries = graph.op("Transpose", graph.op("Reshape", dense(at.vectors, "query"), by_head), perm=(1, 0, 2))
        of_queries = graph.op("Mul", of_queries, scale)
        for products, axis in ((graph.op("MatMul", query, of_keys), 3), (graph.op("MatMul", of_queries, key), 2)):
            found = graph.op("Add", found, graph.op("GatherElements", products, at.rows, axis=axis))
    return found


def _turns(graph: Graph, architecture: Architecture, before: str, base: float) -> tuple[str, str]:
    """Return cosine and sine of the angles of rotary positions with this base; nothing for base 0."""
    if not base:
        return "", ""
    places = graph.op("Unsqueeze", graph.cast(before, "FLOAT"), graph.integers(1, 3))
    angles = graph.op("Mul", places, graph.weight(f"rotary_{base!r}", rotary.rates(architecture, base)))
    return graph.op("Cos", angles), graph.op("Sin", angles)


def turned(graph: Graph, x: str, turns: tuple[str, str]) -> str:
    """Return x [batch, H, tokens, D] with feature i turned together with feature i + D / 2; see `encoder.rotary`."""
    first, second = graph.split(x)
    cos, sin = turns
    parts = (
        graph.op("Sub", graph.op("Mul", first, cos), graph.op("Mul", second, sin)),
        graph.op("Add", graph.op("Mul", second, cos), graph.op("Mul", first, sin)),
    )
    return graph.op("Concat", *parts, axis=-1)

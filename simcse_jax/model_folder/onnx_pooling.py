"""Add to an ONNX graph what follows the encoder: the pooler, the steps after it, and scaling to length 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simcse_jax.encoder.pooling import AVERAGED_LAYERS, Part, parts_of
from simcse_jax.model_folder.after_pooling import LAYER_NORM_EPSILON, Cut, Dense, LayerNorm, Step
from simcse_jax.model_folder.torch_activations import ACTIVATIONS
from simcse_jax.system.vectors import SHORTEST

if TYPE_CHECKING:
    from simcse_jax.model_folder.onnx_graph import Graph


def pooled(graph: Graph, params: Mapping[str, Any], states: list[str], pooler: str, mask: str, order: str) -> str:
    """Return the name of [batch, D]: one embedding for each sentence, not yet normalised.

    states: [batch, tokens, D] of the embedding layer and each layer. mask: float32[batch, tokens]. order:
    int64[batch, tokens], 1, 2, 3 ... at the tokens of a sentence.
    """
    vectors = [_part(graph, states, part, mask, order) for part in parts_of(pooler)]
    if len(vectors) > 1:
        return graph.op("Concat", *vectors, axis=-1)
    if pooler == "cls":
        return graph.op("Tanh", graph.dense(vectors[0], "head", params["head"], len(params["head"]["bias"])))
    return vectors[0]


def _part(graph: Graph, states: list[str], part: Part, mask: str, order: str) -> str:
    averaged = AVERAGED_LAYERS.get(part.name, ())
    hidden = states[averaged[0]] if averaged else states[-1]
    if part.weights:
        scaled = [graph.op("Mul", x, graph.number(w)) for x, w in zip(states, part.weights, strict=True) if w]
        hidden = graph.op("Sum", *scaled)
    elif len(averaged) > 1:
        hidden = graph.op("Mean", *(states[layer] for layer in averaged))
    if part.name == "max":
        seen = graph.op("Unsqueeze", graph.cast(mask, "BOOL"), graph.integers(2))
        lowest = graph.number(float(np.finfo(np.float32).min))
        return graph.op("ReduceMax", graph.op("Where", seen, hidden, lowest), axes=[1], keepdims=0)

    count = graph.op("ReduceSum", mask, graph.integers(1), keepdims=1)
    weights = mask
    if part.reads_first_tokens:
        # Not place 0: where padding stands before the tokens, the first token is elsewhere.
        is_first = graph.cast(graph.op("Equal", order, graph.integers(1)), "FLOAT")
        weights = graph.op("Mul", is_first, mask)
    elif part.name == "last_token":
        is_last = graph.cast(graph.op("Equal", graph.cast(order, "FLOAT"), count), "FLOAT")
        weights = graph.op("Mul", is_last, mask)
    elif part.name == "weighted_mean":
        weights = graph.op("Mul", graph.cast(order, "FLOAT"), mask)
    # One product [batch, 1, tokens] x [batch, tokens, D].
    total = graph.op("MatMul", graph.op("Unsqueeze", weights, graph.integers(1)), hidden)
    total = graph.op("Squeeze", total, graph.integers(1))
    if weights != mask:
        count = graph.op("ReduceSum", weights, graph.integers(1), keepdims=1)
    if part.name == "mean_sqrt_len":
        count = graph.op("Sqrt", count)
    return graph.op("Div", total, graph.op("Max", count, graph.number(1.0)))


def add_steps(graph: Graph, x: str, steps: Sequence[Step]) -> str:
    """Return the name of the vectors [batch, O] after these steps, of x [batch, I]."""
    for place, step in enumerate(steps):
        name = f"step.{place}"
        match step:
            case Dense():
                x = _dense(graph, x, name, step)
            case LayerNorm():
                x = graph.norm(x, name, {"scale": step.scale, "bias": step.bias}, LAYER_NORM_EPSILON)
            case Cut():
                x = graph.op("Slice", x, graph.integers(0), graph.integers(step.features), graph.integers(1))
            case _:
                x = normalized(graph, x)
    return x


def _dense(graph: Graph, x: str, name: str, step: Dense) -> str:
    out = graph.op("MatMul", x, graph.weight(f"{name}.weight", step.kernel))
    if step.bias is not None:
        out = graph.op("Add", out, graph.weight(f"{name}.bias", step.bias))
    out = ACTIVATIONS[step.activation].nodes(graph, out)
    if step.residual is None:
        return out
    return graph.op("Add", out, graph.op("MatMul", x, graph.weight(f"{name}.residual", step.residual)))


def normalized(graph: Graph, x: str, name: str = "") -> str:
    """Return the name of x [batch, D] divided by its norm, which is taken as at least 1e-12."""
    length = graph.op("ReduceL2", x, axes=[-1], keepdims=1)
    return graph.op("Div", x, graph.op("Max", length, graph.number(SHORTEST)), name=name)

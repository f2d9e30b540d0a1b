"""Build the ONNX graph of an encoder: token ids in, pooled and normalised sentence embeddings out.

It is written node by node from the architecture and the parameters, without PyTorch. The nodes are those that PyTorch's
exporters write for BERT, so ONNX Runtime finds the patterns that it fuses (erf-GELU, skip and norm).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from simcse_jax import __version__
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.pooling import width_of
from simcse_jax.model_folder.after_pooling import Step, as_pooled, width_after
from simcse_jax.model_folder.onnx_places import Places, make_places, scores, turned
from simcse_jax.model_folder.onnx_pooling import add_steps, normalized, pooled

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # that of OPSET's release: newer numbers are refused by runtimes that know all the operators
INPUTS = ("input_ids", "attention_mask")
SENTENCES, TOKENS = "sentence_embedding", "token_embeddings"


class Graph:
    """Collect nodes and initialisers; every value has its own name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its result."""
        from onnx import helper

        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def split(self, x: str) -> tuple[str, str]:
        """Return the halves of x along its last axis."""
        from onnx import helper

        names = tuple(f"Split_{len(self.nodes)}_{half}" for half in (0, 1))
        self.nodes.append(helper.make_node("Split", [x], list(names), name=names[0], axis=-1))
        return names[0], names[1]

    def cast(self, x: str, kind: str) -> str:
        """Cast x to ONNX's type FLOAT or BOOL."""
        from onnx import TensorProto

        return self.op("Cast", x, to=getattr(TensorProto, kind))

    def weight(self, name: str, array: Any) -> str:
        """Add a float32 initialiser, and return its name."""
        self.weights[name] = np.array(array, np.float32, order="C")
        return name

    def number(self, value: float) -> str:
        """Return the name of a float32 scalar; equal ones share one."""
        return self.weight(f"number_{value!r}", value)

    def integers(self, *values: int) -> str:
        """Return the name of an int64[n]; equal ones share one."""
        name = "integers_" + "_".join(map(str, values))
        self.weights[name] = np.array(values, np.int64)
        return name

    def dense(self, x: str, name: str, layer: Mapping[str, Any], outputs: int) -> str:
        """Map x [..., I] to [..., O] with a kernel of I * O entries and, if there is one, a bias of O entries."""
        product = self.op("MatMul", x, self.weight(f"{name}.weight", np.reshape(layer["kernel"], (-1, outputs))))
        if "bias" not in layer:
            return product
        return self.op("Add", product, self.weight(f"{name}.bias", np.reshape(layer["bias"], -1)))

    def norm(self, x: str, name: str, params: Mapping[str, Any], epsilon: float) -> str:
        parts = [self.weight(f"{name}.{part}", params[part]) for part in ("scale", "bias") if part in params]
        return self.op("LayerNormalization", x, *parts, axis=-1, epsilon=epsilon)


def encoder_graph(
    params: Mapping[str, Any], architecture: Architecture, pooler: str, steps: Sequence[Step] = ()
) -> onnx.ModelProto:
    """Return the ONNX model of an encoder with its pooler; its embeddings have length 1.

    params: the encoder's, as `load_params` gives them; "cls" needs their head. steps: what follows the pooler. Inputs:
    input_ids and attention_mask, int64[batch, tokens], both axes dynamic, padded on either side. Token types are not
    an input: all tokens have the first type, and ONNX Runtime warns of an optional input at every load.
    Outputs: sentence_embedding float32[batch, O] and token_embeddings float32[batch, tokens, D] (last layer).
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = Graph()
    mask = graph.cast("attention_mask", "FLOAT")
    order = graph.op("CumSum", "attention_mask", graph.integers(1))  # 1, 2, 3 ... at the tokens of a sentence
    states = _hidden_states(graph, params, architecture, order)
    used = sum(array.size for name, array in graph.weights.items() if name.startswith("layer."))
    stored = sum(array.size for array in jax.tree.leaves(params["layers"]))
    if architecture.pre_norm:  # the first layer has no norm before attention
        stored -= sum(array[0].size for array in params["layers"]["attention"]["norm"].values())
    if used != stored:
        raise ValueError("encoder_graph: the layers have parameters that this graph does not use.")
    graph.op("Identity", states[-1], name=TOKENS)
    vectors = add_steps(graph, pooled(graph, params, states, pooler, mask, order), as_pooled(steps))
    normalized(graph, vectors, name=SENTENCES)
    width = width_after(steps, width_of(pooler, architecture.hidden_size))

    places = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, places) for name in INPUTS]
    weights = [numpy_helper.from_array(array, name) for name, array in graph.weights.items()]
    outputs = [
        helper.make_tensor_value_info(SENTENCES, TensorProto.FLOAT, ["batch", width]),
        helper.make_tensor_value_info(TOKENS, TensorProto.FLOAT, [*places, architecture.hidden_size]),
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "sentence_encoder", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="simcse_jax",
        producer_version=__version__,
    )
    helper.set_model_props(model, {"pooler": pooler, "max_length": str(architecture.max_length), "normalized": "true"})
    checker.check_model(model)
    return model


def _hidden_states(graph: Graph, params: Mapping[str, Any], architecture: Architecture, order: str) -> list[str]:
    """Return the names of [batch, tokens, D]: the embedding layer's output and each layer's."""
    tables, epsilon = params["embeddings"], architecture.layer_norm_eps
    # Padding before or between tokens gets the position of a neighbour: it is masked, and that row always exists.
    before = graph.op("Max", graph.op("Sub", order, graph.integers(1)), graph.integers(0))
    x = graph.op("Gather", graph.weight("embeddings.word", tables["word"]), "input_ids")
    if "position" in tables:
        places = graph.op("Add", before, graph.integers(architecture.position_offset))
        x = graph.op("Add", x, graph.op("Gather", graph.weight("embeddings.position", tables["position"]), places))
    if "token_type" in tables:
        x = graph.op("Add", x, graph.weight("embeddings.token_type", tables["token_type"][0]))
    x = graph.norm(x, "embeddings.norm", tables["norm"], epsilon)
    if "projection" in params:
        x = graph.dense(x, "projection", params["projection"], architecture.hidden_size)
    states = [x]

    at = make_places(graph, params, architecture, before)
    for number in range(architecture.num_hidden_layers):
        own = 0 if architecture.shared_layers else number
        layer = jax.tree.map(operator.itemgetter(own), params["layers"])
        states.append(_layer_output(graph, states[-1], own, layer, architecture, number, at))
    if "final_norm" in params:
        states[-1] = graph.norm(states[-1], "final_norm", params["final_norm"], epsilon)
    return states


def _layer_output(
    graph: Graph,
    x: str,
    own: int,
    params: Mapping[str, Any],
    architecture: Architecture,
    number: int,
    at: Places,
) -> str:
    """Apply layer `number`, from 0, whose parameters are those of layer `own`, to x [batch, tokens, D]."""
    of, name, width = architecture, f"layer.{own}", architecture.hidden_size
    attention, ffn = params["attention"], params["ffn"]

    def norm(x: str, part: str) -> str:
        return graph.norm(x, f"{name}.{part}.norm", params[part]["norm"], of.layer_norm_eps)

    normal = norm(x, "attention") if of.pre_norm and number else x
    mixed = _mixed(graph, normal, name, attention, of, at, number + 1 in of.local_layers)
    x = graph.op("Add", graph.dense(mixed, f"{name}.attention.out", attention["out"], width), x)
    x = x if of.pre_norm else norm(x, "attention")

    normal = norm(x, "ffn") if of.pre_norm else x
    if of.gated:
        parts = [{part: np.take(a, n, a.ndim - 2) for part, a in ffn["up"].items()} for n in (0, 1)]
        activated, factor = (
            graph.dense(normal, f"{name}.ffn.{called}", part, of.intermediate_size)
            for called, part in zip(("gate", "up"), parts, strict=True)
        )
        up = graph.op("Mul", _activated(graph, activated, of.hidden_act), factor)
    else:
        up = _activated(graph, graph.dense(normal, f"{name}.ffn.up", ffn["up"], of.intermediate_size), of.hidden_act)
    x = graph.op("Add", graph.dense(up, f"{name}.ffn.down", ffn["down"], width), x)
    return x if of.pre_norm else norm(x, "ffn")


def _mixed(
    graph: Graph, x: str, name: str, attention: Mapping[str, Any], of: Architecture, at: Places, is_local: bool
) -> str:
    """Return the context of x [batch, tokens, D]: the values of all heads, one after another."""
    split = graph.integers(0, 0, of.num_attention_heads, of.head_size)  # 0 keeps an axis
    turns = at.local_turns if is_local else at.turns
    # Keys are laid out for the product with queries.
    axes = {"query": (0, 2, 1, 3), "key": (0, 2, 3, 1), "value": (0, 2, 1, 3)}

    def dense(x: str, part: str) -> str:
        place = list(axes).index(part)
        own = {kind: np.take(array, place, -3) for kind, array in attention["qkv"].items()}  # [..., 3, H, D / H]
        return graph.dense(x, f"{name}.attention.{part}", own, of.hidden_size)

    parts = []
    for part, order in axes.items():
        made = graph.op("Reshape", dense(x, part), split)
        if turns[0] and part != "value":
            made = turned(graph, graph.op("Transpose", made, perm=(0, 2, 1, 3)), turns)
            parts.append(graph.op("Transpose", made, perm=(0, 1, 3, 2)) if part == "key" else made)
        else:
            parts.append(graph.op("Transpose", made, perm=order))
    query, key, value = parts
    found = scores(graph, query, key, of, at, dense)
    # The lowest number, not minus infinity: a sentence without tokens would otherwise give NaN.
    lowest = graph.number(float(np.finfo(np.float32).min))
    masked = graph.op("Where", at.near if is_local else at.seen, found, lowest)
    mixed = graph.op("MatMul", graph.op("Softmax", masked, axis=-1), value)
    return graph.op("Reshape", graph.op("Transpose", mixed, perm=(0, 2, 1, 3)), graph.integers(0, 0, of.hidden_size))


def _activated(graph: Graph, x: str, activation: str) -> str:
    """Apply an activation of `encoder.activations.ACTIVATIONS`."""
    if activation in ("relu", "tanh"):
        return graph.op({"relu": "Relu", "tanh": "Tanh"}[activation], x)
    if activation in ("silu", "swish"):
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    half, one = graph.number(0.5), graph.number(1.0)
    if activation == "gelu":
        inner = graph.op("Erf", graph.op("Div", x, graph.number(2**0.5)))
    elif activation in ("gelu_new", "gelu_pytorch_tanh"):
        cube = graph.op("Mul", graph.op("Pow", x, graph.number(3.0)), graph.number(0.044715))
        inner = graph.op("Tanh", graph.op("Mul", graph.op("Add", x, cube), graph.number((2 / np.pi) ** 0.5)))
    else:
        raise ValueError(f"encoder_graph: no ONNX nodes for the activation {activation!r}.")
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", inner, one)), half)

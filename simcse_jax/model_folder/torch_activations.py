"""Define the activations of Dense modules twice: in NumPy, and as nodes of an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from simcse_jax.model_folder.onnx_graph import Graph

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_RRELU_SLOPE = (1 / 8 + 1 / 3) / 2


class Activation(NamedTuple):
    """Hold a function of arrays, and one that adds its nodes to a graph and returns the name of the result."""

    apply: Callable[[np.ndarray], np.ndarray]
    nodes: Callable[[Graph, str], str]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _gelu_nodes(graph: Graph, x: str) -> str:
    inner = graph.op("Erf", graph.op("Div", x, graph.number(2**0.5)))
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", inner, graph.number(1.0))), graph.number(0.5))


def _elu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.expm1(np.minimum(x, 0))


def _selu(x: np.ndarray) -> np.ndarray:
    return _SELU_SCALE * (np.maximum(x, 0) + _SELU_ALPHA * np.expm1(np.minimum(x, 0)))


def _node(kind: str, **attributes: Any) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.op(kind, x, **attributes)


def _times(nodes: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.op("Mul", x, nodes(graph, x))


def _clip(low: float, high: float) -> Activation:
    return Activation(
        lambda x: np.clip(x, low, high), lambda graph, x: graph.op("Clip", x, graph.number(low), graph.number(high))
    )


def _leaky(slope: float) -> Activation:
    return Activation(lambda x: np.where(x < 0, slope * x, x), _node("LeakyRelu", alpha=slope))


_hard_sigmoid = Activation(lambda x: np.clip(x / 6 + 0.5, 0, 1), _node("HardSigmoid", alpha=1 / 6, beta=0.5))

# By the names of torch.nn's classes, as these are without arguments.
ACTIVATIONS: dict[str, Activation] = {
    "Identity": Activation(lambda x: x, lambda graph, x: x),
    "Tanh": Activation(np.tanh, _node("Tanh")),
    "ReLU": Activation(lambda x: np.maximum(x, 0), _node("Relu")),
    "GELU": Activation(_gelu, _gelu_nodes),
    "SiLU": Activation(lambda x: x * _sigmoid(x), _times(_node("Sigmoid"))),
    "Sigmoid": Activation(_sigmoid, _node("Sigmoid")),
    "LeakyReLU": _leaky(0.01),
    "RReLU": _leaky(_RRELU_SLOPE),
    "ELU": Activation(_elu, _node("Elu", alpha=1.0)),
    "CELU": Activation(_elu, _node("Elu", alpha=1.0)),
    "SELU": Activation(_selu, _node("Selu", alpha=_SELU_ALPHA, gamma=_SELU_SCALE)),
    "Softplus": Activation(_softplus, _node("Softplus")),
    "LogSigmoid": Activation(
        lambda x: -_softplus(-x), lambda graph, x: graph.op("Neg", graph.op("Softplus", graph.op("Neg", x)))
    ),
    "Softsign": Activation(lambda x: x / (1 + np.abs(x)), _node("Softsign")),
    "Mish": Activation(
        lambda x: x * np.tanh(_softplus(x)), _times(lambda graph, x: graph.op("Tanh", graph.op("Softplus", x)))
    ),
    "ReLU6": _clip(0.0, 6.0),
    "Hardtanh": _clip(-1.0, 1.0),
    "Hardsigmoid": _hard_sigmoid,
    "Hardswish": Activation(lambda x: x * _hard_sigmoid.apply(x), _times(_hard_sigmoid.nodes)),
    "Tanhshrink": Activation(lambda x: x - np.tanh(x), lambda graph, x: graph.op("Sub", x, graph.op("Tanh", x))),
    "Softshrink": Activation(
        lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0), _node("Shrink", lambd=0.5, bias=0.5)
    ),
    "Hardshrink": Activation(lambda x: np.where(np.abs(x) > 0.5, x, 0), _node("Shrink", lambd=0.5, bias=0.0)),
}

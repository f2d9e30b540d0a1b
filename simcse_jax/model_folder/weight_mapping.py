"""Name an encoder's parameters as a Hugging Face folder does, and shape them as it does.

Hugging Face stores one [out, in] matrix per projection and layer; we store [in, out] kernels, stacked over layers, with
query, key and value in one. The names of the weights are in `encoder/families/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.family import Tensors, WeightNames
from simcse_jax.encoder.families.table import FAMILIES


def to_hugging_face(params: Mapping[str, Any], architecture: Architecture) -> Tensors:
    """Return the parameters under the names of the family's bare encoder in transformers, contiguous float32.

    With a head of masked language modelling, the names are those of the class with that head, where the encoder's have
    a prefix. Also maps gradients, being linear.
    """
    names, arrays = FAMILIES[architecture.family].names, jax.tree.map(np.asarray, params)
    tensors = dict(_tensors(arrays, architecture, names))
    for table in names.tables.keys() - params["embeddings"].keys():  # without token types: one type, see `bert.write`
        tensors[f"{names.tables[table]}.weight"] = np.zeros((1, architecture.table_size))
    if "mlm" in params:
        tensors = {names.prefix + name: tensor for name, tensor in tensors.items()}
    tensors |= dict(_mlm_tensors(arrays, names))
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def zero_head(params: Mapping[str, Any], architecture: Architecture) -> Tensors:
    """Return zeros for the head on [CLS] of transformers' class, under its names; none where params have the head.

    Without them transformers draws that head at random, and reports weights as missing. `load_params` takes a head of
    zeros for none.
    """
    names = FAMILIES[architecture.family].names
    if "head" in params or not names.head:
        return {}
    inputs, outputs = architecture.head_product
    head = {"kernel": np.zeros(inputs + outputs, np.float32), "bias": np.zeros(outputs, np.float32)}
    prefix = names.prefix if "mlm" in params else ""
    return {prefix + name: np.ascontiguousarray(tensor) for name, tensor in _dense(names.head, head)}


def named_tensors(
    params: Mapping[str, Any], architecture: Architecture, names: WeightNames
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, view) of each tensor of NumPy parameters, with those of a head of masked language modelling last.

    The views are written to where a folder is read. A head on [CLS] that the family's models in transformers do not
    have is left out.
    """
    yield from _tensors(params, architecture, names)
    yield from _mlm_tensors(params, names)


def _tensors(
    params: Mapping[str, Any], architecture: Architecture, names: WeightNames
) -> Iterator[tuple[str, np.ndarray]]:
    for table, name in names.tables.items():
        if table in params["embeddings"]:
            yield f"{name}.weight", params["embeddings"][table]
    yield from _norm(names.embedding_norm, params["embeddings"]["norm"])
    if "projection" in params:
        yield from _dense(names.projection, params["projection"])
    if "relative" in params:
        yield f"{names.relative}.weight", params["relative"]
    if "relative_norm" in params:
        yield from _norm(names.relative_norm, params["relative_norm"])
    for number in range(architecture.stored_layers):
        start = names.layer.format(number)
        for place, called in names.layer_parts.items():
            if architecture.pre_norm and place == "attention/norm" and number == 0:
                continue  # the embeddings are normalised already
            block, part = place.split("/")
            layer = {name: array[number] for name, array in params["layers"][block][part].items()}
            shape = architecture.layer_products.get(place)
            if shape is None:
                assert isinstance(called, str)
                yield from _norm(start + called, layer)
                continue
            for name, one in _parts(called, layer, len(shape.inputs)):
                yield from _dense(start + name, one, len(shape.inputs))
    if "final_norm" in params:
        yield from _norm(names.final_norm, params["final_norm"])
    if "head" in params and names.head:
        yield from _dense(names.head, params["head"])


def _parts(
    called: str | tuple[str, ...], layer: Mapping[str, np.ndarray], inputs: int
) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Yield (name, dense layer) of each part of a layer: the first axis of its outputs says which, if it has names."""
    if isinstance(called, str):
        yield called, layer
        return
    axes = {"kernel": inputs, "bias": 0}
    split = {name: np.moveaxis(array, axes[name], 0) for name, array in layer.items()}
    for n, name in enumerate(called):
        yield name, {part: array[n] for part, array in split.items()}


def _mlm_tensors(params: Mapping[str, Any], names: WeightNames) -> Iterator[tuple[str, np.ndarray]]:
    if "mlm" in params:
        yield from _dense(names.mlm_dense, params["mlm"]["dense"])
        yield from _norm(names.mlm_norm, params["mlm"]["norm"])
        yield f"{names.mlm_output}.bias", params["mlm"]["bias"]


def _dense(name: str, layer: Mapping[str, np.ndarray], inputs: int = 1) -> Iterator[tuple[str, np.ndarray]]:
    """Yield kernel and bias; inputs: the number of the kernel's input axes."""
    yield f"{name}.weight", layer["kernel"].reshape(math.prod(layer["kernel"].shape[:inputs]), -1).T
    if "bias" in layer:
        yield f"{name}.bias", layer["bias"].reshape(-1)


def _norm(name: str, layer: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{name}.weight", layer["scale"]
    if "bias" in layer:
        yield f"{name}.bias", layer["bias"]

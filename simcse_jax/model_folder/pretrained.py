"""Convert between the weights of a Hugging Face folder and the encoder's parameters.

Hugging Face stores one [out, in] matrix per projection and layer; we store [in, out] kernels, stacked over layers, with
query, key and value in one. The names of the weights are in `encoder/families/`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from simcse_jax.encoder.architecture import Architecture, DenseShape
from simcse_jax.encoder.families.family import WeightNames
from simcse_jax.encoder.families.table import FAMILIES
from simcse_jax.model_folder.weight_files import read_weights
from simcse_jax.system.errors import UserError

Params = dict[str, Any]
# SimCSE's training code calls the head "mlp"; its published folders, as we do, by the family's name.
_SIMCSE_HEAD = "mlp.dense"
_SHOWN = 8


def _all_names() -> list[WeightNames]:
    return [family.names for family in FAMILIES.values()]


class _Weights:
    """Look up weights by their modern names; note which are missing, unused or of another shape."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        stored = read_weights(folder)
        self.left = {_modern(name): array for name, array in stored.items()}
        if len(self.left) != len(stored):
            twice = [name for name, count in Counter(map(_modern, stored)).items() if count > 1]
            raise UserError(f"The weights in {folder} hold {_listed(twice)} twice, with a prefix and without.")
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return float32 of that shape; zeros if the folder lacks it, which `check` then reports."""
        array = self.left.pop(name, None)
        if array is not None and array.shape == shape:
            return array
        if array is None:
            self.missing.append(name)
        else:
            self.misshapen.append(f"{name} is {list(array.shape)}, {list(shape)} expected")
        return np.zeros(shape, np.float32)

    def dense(self, name: str, shape: DenseShape) -> Params:
        inputs, outputs = shape.sizes
        kernel = np.ascontiguousarray(self.take(f"{name}.weight", (outputs, inputs)).T)
        bias = self.take(f"{name}.bias", (outputs,))
        return {"kernel": kernel.reshape(*shape.inputs, *shape.outputs), "bias": bias.reshape(shape.outputs)}

    def dense_parts(self, names: tuple[str, ...], shape: DenseShape) -> Params:
        """Return one dense layer made of several: the first axis of its outputs says which."""
        part = DenseShape(shape.inputs, shape.outputs[1:])
        parts = [self.dense(name, part) for name in names]
        kernel = np.stack([part["kernel"] for part in parts], axis=len(shape.inputs))
        return {"kernel": kernel, "bias": np.stack([part["bias"] for part in parts])}

    def norm(self, name: str, width: int) -> Params:
        return {"scale": self.take(f"{name}.weight", (width,)), "bias": self.take(f"{name}.bias", (width,))}

    def check(self, architecture: Architecture) -> None:
        """Raise UserError, naming every weight that does not fit config.json, if there is one."""
        # Heads of other tasks may be left over; anything else that is left over means that this is another model.
        heads = (*(start for names in _all_names() for start in names.task_heads), "mlp.")
        left_over = [name for name in self.left if not name.startswith(heads)]
        problems = {"missing": self.missing, "left over": left_over, "wrong shape": self.misshapen}
        lines = [f"  {what} ({len(names)}): {_listed(names)}" for what, names in problems.items() if names]
        if lines:
            raise UserError(
                f"The weights in {self.folder} do not fit its config.json ({architecture.family}, "
                f"{architecture.num_hidden_layers} layers, width {architecture.hidden_size}, "
                f"{architecture.vocab_size} tokens):\n"
                + "\n".join(lines)
                + "\nTake config.json and the weights from the same model, of the BERT or RoBERTa family."
            )


def load_params(
    folder: str | Path, architecture: Architecture, head: Literal["load", "fresh", "none"], mlm_head: bool = False
) -> Params:
    """Return an encoder's parameters from a Hugging Face folder: nested dicts of float32 arrays, layers stacked.

    head: "load" also takes the trained head on [CLS], and raises UserError if there is none; with "fresh" (the caller
    initialises one) and "none" the result has no head. mlm_head: also take the head of masked language modelling, as
    "mlm": dense, norm, bias float32[V]; UserError without one, or where its decoder is not the word embeddings. Other
    heads are skipped; any other weight that is missing, left over or of another shape is a UserError that names it.
    """
    weights, names = _Weights(folder), FAMILIES[architecture.family].names
    width = architecture.hidden_size
    tables = {
        table: weights.take(f"{names.tables[table]}.weight", (rows, width))
        for table, rows in architecture.tables.items()
    }
    for table in names.tables.keys() - tables.keys():
        weights.left.pop(f"{names.tables[table]}.weight", None)  # an empty table
    layers = [_load_layer(weights, architecture, number) for number in range(architecture.num_hidden_layers)]
    params: Params = {
        "embeddings": {**tables, "norm": weights.norm(names.embedding_norm, width)},
        "layers": jax.tree.map(lambda *arrays: np.stack(arrays), *layers),
    }
    if head == "load":
        found = [name for name in (names.head, _SIMCSE_HEAD) if f"{name}.weight" in weights.left]
        if not found:
            raise UserError(
                f"{folder} has no trained head ({names.head}.weight), which the pooler 'cls' needs.\n"
                "Use another pooler (cls_before_pooler or avg), or a folder with a head: those of SimCSE have one."
            )
        params["head"] = weights.dense(found[0], architecture.head_product)
    if mlm_head:
        params["mlm"] = _load_mlm_head(weights, architecture, tables["word"])
    weights.check(architecture)
    return params


def _load_layer(weights: _Weights, architecture: Architecture, number: int) -> Params:
    params: Params = {}
    for block, part, shape, names in _layer_parts(architecture, number):
        if shape is None:
            found = weights.norm(names[0], architecture.hidden_size)
        elif len(names) == 1:
            found = weights.dense(names[0], shape)
        else:
            found = weights.dense_parts(names, shape)
        params.setdefault(block, {})[part] = found
    return params


def _layer_parts(
    architecture: Architecture, number: int
) -> Iterator[tuple[str, str, DenseShape | None, tuple[str, ...]]]:
    """Yield (block, part, shape of a dense layer or None for a norm, names of its weights) of one layer."""
    names, shapes = FAMILIES[architecture.family].names, architecture.layer_products
    for place, called in names.layer_parts.items():
        block, part = place.split("/")
        each = (called,) if isinstance(called, str) else called
        yield block, part, shapes.get(place), tuple(names.layer.format(number) + name for name in each)


def _load_mlm_head(weights: _Weights, architecture: Architecture, words: np.ndarray) -> Params:
    found = [names for names in _all_names() if f"{names.mlm_dense}.weight" in weights.left]
    if not found:
        wanted = " or ".join(dict.fromkeys(names.mlm_dense for names in _all_names()))
        raise UserError(
            f"{weights.folder} has no head for masked language modelling ({wanted}).\n"
            "Published BERT and RoBERTa models have one (BertForMaskedLM, RobertaForMaskedLM); SimCSE models do not."
        )
    names = found[0]
    decoder = weights.left.get(f"{names.mlm_output}.decoder.weight")
    if decoder is not None and not np.array_equal(decoder, words):
        raise UserError(
            f"{weights.folder}: {names.mlm_output}.decoder.weight differs from {names.tables['word']}.weight; only "
            "a decoder tied to the word embeddings is supported.\n"
            "Use a model with tie_word_embeddings = true, as BERT and RoBERTa have it."
        )
    bias = f"{names.mlm_output}.bias"
    if bias not in weights.left:  # the two are one tensor, and a file may keep either name
        bias = f"{names.mlm_output}.decoder.bias"
    return {
        "dense": weights.dense(names.mlm_dense, architecture.head_product),
        "norm": weights.norm(names.mlm_norm, architecture.hidden_size),
        "bias": weights.take(bias, (architecture.vocab_size,)),
    }


def to_hugging_face(params: Mapping[str, Any], architecture: Architecture) -> dict[str, np.ndarray]:
    """Return the parameters under the names of the family's bare encoder in transformers, contiguous float32.

    With a head of masked language modelling, the names are those of the class with that head, where the encoder's have
    a prefix. Also maps gradients, being linear.
    """
    names = FAMILIES[architecture.family].names
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, array: Any) -> None:
        tensors[name] = np.ascontiguousarray(np.asarray(array), dtype=np.float32)

    def dense(name: str, layer: Mapping[str, Any], shape: DenseShape) -> None:
        put(f"{name}.weight", np.reshape(layer["kernel"], shape.sizes).T)
        put(f"{name}.bias", np.reshape(layer["bias"], -1))

    def norm(name: str, layer: Mapping[str, Any]) -> None:
        put(f"{name}.weight", layer["scale"])
        put(f"{name}.bias", layer["bias"])

    for table, name in names.tables.items():  # without token types: one type, see `bert.write`
        put(f"{name}.weight", params["embeddings"].get(table, np.zeros((1, architecture.hidden_size))))
    norm(names.embedding_norm, params["embeddings"]["norm"])
    stacked = jax.tree.map(np.asarray, params["layers"])
    for number in range(architecture.num_hidden_layers):
        layer = jax.tree.map(functools.partial(_at, number), stacked)
        for block, part, shape, parts in _layer_parts(architecture, number):
            of_part = layer[block][part]
            if shape is None:
                norm(parts[0], of_part)
            elif len(parts) == 1:
                dense(parts[0], of_part, shape)
            else:
                one = DenseShape(shape.inputs, shape.outputs[1:])
                for index, name in enumerate(parts):
                    kernel = np.take(of_part["kernel"], index, axis=len(shape.inputs))
                    dense(name, {"kernel": kernel, "bias": of_part["bias"][index]}, one)
    if "head" in params:
        dense(names.head, params["head"], architecture.head_product)
    if "mlm" in params:
        tensors = {names.prefix + name: tensor for name, tensor in tensors.items()}
        dense(names.mlm_dense, params["mlm"]["dense"], architecture.head_product)
        norm(names.mlm_norm, params["mlm"]["norm"])
        put(f"{names.mlm_output}.bias", params["mlm"]["bias"])
    return tensors


def _at(number: int, array: np.ndarray) -> np.ndarray:
    return array[number]


def _modern(name: str) -> str:
    """Return the name without its model's prefix, and with LayerNorm's weights as transformers names them now."""
    for names in _all_names():
        name = name.removeprefix(names.prefix)
    if "LayerNorm." in name:  # gamma and beta: until 2019
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Convert between the weights of a Hugging Face folder and the encoder's parameters.

Hugging Face stores one [out, in] matrix per projection and layer; we store [in, out] kernels, stacked over layers, with
query, key and value in one. The names of the weights are in `encoder/families/`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from simcse_jax.encoder.architecture import Architecture, DenseShape
from simcse_jax.encoder.families.bert import BERT
from simcse_jax.encoder.families.family import Family, Tensors, WeightNames
from simcse_jax.encoder.families.roberta import ROBERTA
from simcse_jax.encoder.families.table import FAMILIES
from simcse_jax.model_folder.after_pooling import Dense
from simcse_jax.model_folder.module_list import list_modules
from simcse_jax.model_folder.pooling_module import read_pooling
from simcse_jax.model_folder.weight_files import read_weights
from simcse_jax.system.errors import UserError

Params = dict[str, Any]
# SimCSE's training code calls the head "mlp"; its published folders, as we do, by the family's name.
_SIMCSE_HEAD = "mlp.dense"
_SHOWN = 8


def load_params(
    folder: str | Path, architecture: Architecture, head: Literal["load", "fresh", "none"], mlm_head: bool = False
) -> Params:
    """Return an encoder's parameters from a Hugging Face folder: nested dicts of float32 arrays, layers stacked.

    head: "load" also takes the trained head on [CLS], and raises UserError if there is none; with "fresh" (the caller
    initialises one) and "none" the result has no head. mlm_head: also take the head of masked language modelling, as
    "mlm": dense, norm, bias float32[V]; UserError without one, or where its decoder is not the word embeddings. Other
    heads are skipped; any other weight that is missing, left over or of another shape is a UserError that names it.
    """
    names, stored = FAMILIES[architecture.family].names, _stored(folder, FAMILIES[architecture.family])
    if head == "load":
        names = _with_head(names, stored, folder, architecture.hidden_size)
    if mlm_head:
        names = _with_mlm_head(names, stored, folder)

    def made(leaf: Callable[[tuple[int, ...]], np.ndarray]) -> tuple[Params, list[tuple[str, np.ndarray]]]:
        params = _tree(architecture, names, head == "load", mlm_head, leaf)
        return params, [*_tensors(params, architecture, names), *_mlm_tensors(params, names)]

    # First of arrays that take no memory: config.json may state any size.
    _, expected = made(lambda shape: np.broadcast_to(np.float32(0), shape))
    _check({name: tensor.shape for name, tensor in expected}, stored, folder, architecture)
    # Ones: the first of pre-norm layers has no norm, and no weights for its place.
    params, places = made(lambda shape: np.ones(shape, np.float32))
    for name, place in places:
        place[...] = stored[name]
    require_finite(params, folder)
    return params


def require_finite(params: Params, folder: str | Path) -> None:
    """Raise UserError if a parameter holds NaN or infinity: every embedding would."""
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(array).all():
            raise UserError(
                f"{folder}: the weights {jax.tree_util.keystr(path, simple=True, separator='/')} hold NaN or infinity, "
                "so the training that made them has failed.\nTake an earlier checkpoint, or train again with a lower "
                "learning rate."
            )


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
    head = {part: np.zeros(size, np.float32) for part, size in _head_sizes(architecture).items()}
    prefix = names.prefix if "mlm" in params else ""
    return {prefix + name: np.ascontiguousarray(tensor) for name, tensor in _dense(names.head, head)}


def _head_sizes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    inputs, outputs = architecture.head_product
    return {"kernel": inputs + outputs, "bias": outputs}


def _tree(
    architecture: Architecture,
    names: WeightNames,
    has_head: bool,
    has_mlm_head: bool,
    leaf: Callable[[tuple[int, ...]], Any],
) -> Params:
    """Return the tree of the parameters, made of leaf(shape)."""
    of, width, layers = architecture, (architecture.hidden_size,), (architecture.stored_layers,)

    def norm(shape: tuple[int, ...]) -> Params:
        return {part: leaf(shape) for part in ("scale", *(["bias"] if of.has_bias("norm") else []))}

    def dense(shape: DenseShape, stack: tuple[int, ...] = (), has_bias: bool = True) -> Params:
        bias = {"bias": leaf(stack + shape.outputs)} if has_bias else {}
        return {"kernel": leaf(stack + shape.inputs + shape.outputs)} | bias

    tables = {table: leaf((rows, of.table_size)) for table, rows in of.tables.items()}
    params: Params = {"embeddings": {**tables, "norm": norm((of.table_size,))}, "layers": {}}
    if of.projection:
        params["projection"] = dense(of.projection)
    if of.relative_buckets:
        params["relative"] = leaf((of.relative_buckets, of.num_attention_heads))
    if of.disentangled_buckets:
        params["relative"] = leaf((2 * of.disentangled_buckets, of.hidden_size))
        params["relative_norm"] = norm(width)
    for place in names.layer_parts:
        block, part = place.split("/")
        shape = of.layer_products.get(place)
        made = dense(shape, layers, of.has_bias(place)) if shape else norm(layers + width)
        params["layers"].setdefault(block, {})[part] = made
    if of.pre_norm:
        params["final_norm"] = norm(width)
    if has_head:
        params["head"] = dense(of.head_product)
    if has_mlm_head:
        transform = dense(of.mlm_product, has_bias=of.has_bias("mlm/dense"))
        params["mlm"] = {"dense": transform, "norm": norm((of.table_size,)), "bias": leaf((of.vocab_size,))}
    return params


def _tensors(
    params: Mapping[str, Any], architecture: Architecture, names: WeightNames
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a Hugging Face folder, (name, view of NumPy parameters), without those of an MLM head.

    A head on [CLS] that the family's models in transformers do not have is left out.
    """
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


def _all_names() -> list[WeightNames]:
    return [family.names for family in FAMILIES.values()]


def _stored(folder: str | Path, family: Family) -> Tensors:
    """Return a folder's weights by today's names in transformers, without a model's prefix and without empty tables."""
    found = family.rename(read_weights(folder))
    twice = [name for name, count in Counter(map(_without_prefix, found)).items() if count > 1]
    if twice:
        raise UserError(f"The weights in {folder} hold {_listed(twice)} twice, with a prefix and without.")
    return {_without_prefix(name): array for name, array in found.items() if array.size}


def _without_prefix(name: str) -> str:
    for names in _all_names():
        name = name.removeprefix(names.prefix)
    if "LayerNorm." in name:  # gamma and beta: until 2019
        name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return name


def _with_head(names: WeightNames, stored: Tensors, folder: str | Path, width: int) -> WeightNames:
    """Return the names with those that the head on [CLS] has in this folder; UserError without a head."""
    if not names.head:  # no model of the family in transformers has one: an exported one is in the Dense module
        stored.update(_dense_head(Path(folder), width))
    for name in filter(None, (names.head, _SIMCSE_HEAD)):
        if np.any(stored.get(f"{name}.weight", 0)):
            return dataclasses.replace(names, head=name)
    raise UserError(
        f"{folder} has no trained head ({names.head or _SIMCSE_HEAD}.weight), which the pooler 'cls' needs.\n"
        "Use another pooler (cls_before_pooler or avg), or a folder with a head: those of SimCSE have one."
    )


def _dense_head(folder: Path, width: int) -> Tensors:
    """Return the head on [CLS] that modules.json has as a Dense with tanh after Pooling; {} for other modules."""
    modules = list_modules(folder)
    if [module.kind for module in modules[:3]] != ["Transformer", "Pooling", "Dense"]:
        return {}
    if read_pooling(modules[1:2], folder) != "cls_before_pooler":
        return {}
    step = Dense.read(modules[2], width)
    if step.activation != "Tanh" or step.bias is None or step.residual is not None or len(step.bias) != width:
        return {}
    return {f"{_SIMCSE_HEAD}.weight": step.kernel.T, f"{_SIMCSE_HEAD}.bias": step.bias}


def _with_mlm_head(names: WeightNames, stored: Tensors, folder: str | Path) -> WeightNames:
    """Return the names with those that the head of masked language modelling has; UserError without a usable one."""
    # RoBERTa's head on a BERT, or the other way round, is the same head.
    candidates = (names, *_all_names())
    found = next((other for other in candidates if f"{other.mlm_dense}.weight" in stored), None)
    if found is None:
        raise UserError(
            f"{folder} has no head for masked language modelling ({names.mlm_dense}).\n"
            "Most published encoders have one (the class ...ForMaskedLM); those of SimCSE and ELECTRA's discriminators "
            "do not."
        )
    output, words = found.mlm_output, f"{names.tables['word']}.weight"
    decoder = stored.get(f"{found.mlm_decoder}.weight")
    if decoder is not None and not np.array_equal(decoder, stored.get(words, decoder)):
        raise UserError(
            f"{folder}: {found.mlm_decoder}.weight differs from {words}; only a decoder tied to the word embeddings is "
            "supported.\nUse a model with tie_word_embeddings = true, as BERT and RoBERTa have it."
        )
    bias, of_decoder = f"{output}.bias", f"{found.mlm_decoder}.bias"
    if bias not in stored and of_decoder in stored:  # one tensor, under either name
        stored[bias] = stored[of_decoder]
    return dataclasses.replace(names, mlm_dense=found.mlm_dense, mlm_norm=found.mlm_norm, mlm_output=output)


def _check(
    expected: Mapping[str, tuple[int, ...]], stored: Tensors, folder: str | Path, architecture: Architecture
) -> None:
    """Raise UserError, naming every weight that does not fit config.json, if there is one."""
    # Heads of other tasks may be left over; anything else that is left over means that this is another model.
    families = (FAMILIES[architecture.family], BERT, ROBERTA)
    heads = (*(start for family in families for start in family.names.task_heads), "mlp.")
    problems = {
        "missing": [name for name in expected if name not in stored],
        "left over": [name for name in stored if name not in expected and not name.startswith(heads)],
        "wrong shape": [
            f"{name} is {list(stored[name].shape)}, {list(shape)} expected"
            for name, shape in expected.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    lines = [f"  {what} ({len(names)}): {_listed(names)}" for what, names in problems.items() if names]
    if lines:
        raise UserError(
            f"The weights in {folder} do not fit its config.json ({architecture.family}, "
            f"{architecture.num_hidden_layers} layers, width {architecture.hidden_size}, "
            f"{architecture.vocab_size} tokens):\n"
            + "\n".join(lines)
            + "\nTake config.json and the weights from the same model."
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Read an encoder's parameters from a Hugging Face folder, and say what in it does not fit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.bert import BERT
from simcse_jax.encoder.families.family import Family, Tensors, WeightNames
from simcse_jax.encoder.families.roberta import ROBERTA
from simcse_jax.encoder.families.table import FAMILIES
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.after_pooling import Dense
from simcse_jax.model_folder.module_list import list_modules
from simcse_jax.model_folder.pooling_module import read_pooling
from simcse_jax.model_folder.weight_files import read_weights
from simcse_jax.model_folder.weight_mapping import named_tensors
from simcse_jax.system.errors import UserError

Params = dict[str, Any]
# SimCSE's training code calls the head "mlp"; its published folders, as we do, by the family's name.
_SIMCSE_HEAD = "mlp.dense"
_SHOWN = 8


def load_params(
    folder: str | Path,
    architecture: Architecture,
    head: Literal["load", "fresh", "none"],
    mlm_head: bool = False,
    layers: Sequence[int] = (),
    modules: Path | None = None,
) -> Params:
    """Return an encoder's parameters from a Hugging Face folder: nested dicts of float32 arrays, layers stacked.

    head: "load" also takes the trained head on [CLS], and raises UserError if there is none; with "fresh" (the caller
    initialises one) and "none" the result has no head. mlm_head: also take the head of masked language modelling, as
    "mlm": dense, norm, bias float32[V]; UserError without one, or where its decoder is not the word embeddings. Other
    heads are skipped; any other weight that is missing, left over or of another shape is a UserError that names it.
    layers: those to return, by number from 0; () = all. architecture: of all of them, as in the folder. modules: the
    folder whose encoder this is; of an adapter it is another one, and has the head that belongs to the adapter.
    """
    names, stored = FAMILIES[architecture.family].names, _stored(folder, FAMILIES[architecture.family])
    if head == "load":
        if modules and not Path(folder).is_relative_to(modules):
            stored |= _head_of_adapter(modules, Path(folder), names.head or _SIMCSE_HEAD, architecture.hidden_size)
        names = _with_head(names, stored, folder, architecture.hidden_size)
    if mlm_head:
        names = _with_mlm_head(names, stored, folder)

    shapes = parameter_shapes(Encoder(architecture, has_head=head == "load", has_mlm_head=mlm_head))

    def made(leaf: Callable[[tuple[int, ...]], np.ndarray]) -> tuple[Params, list[tuple[str, np.ndarray]]]:
        params = jax.tree.map(lambda x: leaf(x.shape), shapes)
        return params, list(named_tensors(params, architecture, names))

    # First of arrays that take no memory: config.json may state any size.
    _, expected = made(lambda shape: np.broadcast_to(np.float32(0), shape))
    _check({name: tensor.shape for name, tensor in expected}, stored, folder, architecture)
    # Ones: the first of pre-norm layers has no norm, and no weights for its place.
    params, places = made(lambda shape: np.ones(shape, np.float32))
    for name, place in places:
        place[...] = stored[name]
    require_finite(params, folder)
    if layers:
        params["layers"] = jax.tree.map(lambda x: x[list(layers)], params["layers"])
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
        stored.update(_dense_head(Path(folder), Path(folder), width))
    for name in filter(None, (names.head, _SIMCSE_HEAD)):
        if np.any(stored.get(f"{name}.weight", 0)):
            return dataclasses.replace(names, head=name)
    raise UserError(
        f"{folder} has no trained head ({names.head or _SIMCSE_HEAD}.weight), which the pooler 'cls' needs.\n"
        "Use another pooler (cls_before_pooler or avg), or a folder with a head: those of SimCSE have one."
    )


def _head_of_adapter(modules: Path, inner: Path, name: str, width: int) -> Tensors:
    """Return the head in an adapter's folder, if it has one, which takes the place of the adapted model's."""
    head = _dense_head(modules, inner, width)
    return {stored.replace(_SIMCSE_HEAD, name): tensor for stored, tensor in head.items()}


def _dense_head(folder: Path, inner: Path, width: int) -> Tensors:
    """Return the head on [CLS] that modules.json has as a Dense with tanh after Pooling; {} for other modules.

    inner: the folder of the encoder.
    """
    modules = list_modules(folder)
    if [module.kind for module in modules[:3]] != ["Transformer", "Pooling", "Dense"]:
        return {}
    if read_pooling(modules[1:2], inner) != "cls_before_pooler":
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

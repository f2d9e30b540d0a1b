"""Read and write how a folder pools: sentence-transformers' Pooling, and WeightedLayerPooling before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.data.tokenizer import transformer_settings
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.family import Tensors
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.pooling import AVERAGED_LAYERS, parts_of
from simcse_jax.model_folder.after_pooling import require_finite
from simcse_jax.model_folder.module_list import Module
from simcse_jax.model_folder.weight_files import read_weights
from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json

# Our poolers by the modes of release 5 and later, in the order in which one key for each mode concatenates.
_MODES = {
    "cls": "cls_before_pooler",
    "max": "max",
    "mean": "avg",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
# The one key for each mode of releases before 5.
_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_WIDTHS = ("word_embedding_dimension", "embedding_dimension")
_SETTINGS = ("pooling_mode", "include_prompt", *_WIDTHS, *_KEYS.values())
# Modes whose vector of averaged layers is the average of the layers' vectors.
_LINEAR = ("avg", "mean_sqrt_len")


def read_pooling(modules: Sequence[Module], inner: Path) -> str:
    """Return the pooler of a Pooling module, the last of these, and of the one before it that weighs layers.

    inner: the encoder's folder.
    """
    *before, pooling = modules
    settings = pooling.settings(_SETTINGS)
    architecture = read_architecture(inner)
    _require_width(pooling, settings, architecture.hidden_size)
    names = [_MODES[mode] for mode in _modes(pooling, settings)]
    weights = _layer_weights(before[0], inner, architecture) if before else ()
    if not weights:
        return "+".join(names)
    last_only = tuple(np.eye(len(weights))[-1])
    if weights == last_only:
        return "+".join(names)
    if not set(names) <= set(_LINEAR):
        raise UserError(
            f"{before[0].file}: layers are weighed before {pooling.file} pools by {' and '.join(names)}, which is not "
            "supported: only means are.\nUse the model with sentence-transformers."
        )
    return "+".join(_weighed(name, weights) for name in names)


def _modes(module: Module, settings: dict[str, Any]) -> list[str]:
    """Return the modes that a Pooling module concatenates, in order; as in release 6, the new key counts first."""
    mode = settings.get("pooling_mode")
    if mode is None:
        of_keys = {name: settings[key] for name, key in _KEYS.items() if key in settings}
        modes = [name for name, value in of_keys.items() if value] if of_keys else ["mean"]
    else:
        modes = [mode] if isinstance(mode, str) else mode
    if not isinstance(modes, list) or not modes or not all(mode in _MODES for mode in map(str, modes)):
        raise UserError(
            f"{module.file} pools by {modes or 'nothing'}.\nKnown values of pooling_mode: {', '.join(_MODES)}, or a "
            "list of them."
        )
    return modes


def _weighed(name: str, weights: tuple[float, ...]) -> str:
    for known, layers in AVERAGED_LAYERS.items():
        mean = np.zeros(len(weights))
        for layer in layers:
            mean[layer] += 1 / len(layers)
        if name == "avg" and np.array_equal(weights, mean):
            return known
    return f"{name}@{','.join(f'{weight:.9g}' for weight in weights)}"


def _require_width(module: Module, settings: dict[str, Any], width: int) -> None:
    """Raise UserError for a module made for hidden states of another width."""
    for key in _WIDTHS:
        if settings.get(key) not in (None, width):
            raise UserError(
                f"{module.file}: {key} = {settings[key]!r:.80}, but the encoder has width {width}.\nCopy the folder "
                f"again from the model's source, or if the encoder is the right one, set it to {width}."
            )


def _layer_weights(module: Module, inner: Path, architecture: Architecture) -> tuple[float, ...]:
    """Return the weight of each hidden state, the embedding layer first; their sum is 1."""
    settings = module.settings((*_WIDTHS, "layer_start", "num_hidden_layers"))
    _require_width(module, settings, architecture.hidden_size)
    start, states = settings.get("layer_start", 4), architecture.num_hidden_layers + 1
    tensors = read_weights(module.folder)
    require_finite(module.folder, tensors)
    found = tensors.get("layer_weights", np.zeros(0)).astype(np.float64)
    if type(start) is not int or start < 0 or found.shape != (states - start,) or not found.sum():
        raise UserError(
            f"{module.file}: layer_start = {start!r} and {list(found.shape)} layer_weights of sum {found.sum():g} do "
            f"not fit an encoder with {states} hidden states.\nCopy the folder again from the model's source."
        )
    path, transformer = transformer_settings(inner)
    options = (transformer.get(key) for key in ("config_args", "config_kwargs", "model_args", "model_kwargs"))
    given = [read_json(inner / "config.json"), *(option for option in options if isinstance(option, dict))]
    if not any(each.get("output_hidden_states") for each in given):
        raise UserError(
            f"{module.file} weighs layers, but {path} does not set output_hidden_states, without which "
            f'sentence-transformers ignores the weights.\nAdd "config_args": {{"output_hidden_states": true}} there, '
            "or remove the module from modules.json, in a copy of the folder."
        )
    return (0.0,) * start + tuple((found / found.sum()).tolist())


def layer_weights(pooler: str, layers: int) -> tuple[float, ...]:
    """Return the weights of all hidden states that the parts of a pooler share; () if they read the last one only.

    layers: of the encoder. UserError if the parts weigh differently, which no folder can state.
    """
    found = set()
    for part in parts_of(pooler):
        weights = np.array(part.weights) if part.weights else np.zeros(layers + 1)
        for layer in () if part.weights else AVERAGED_LAYERS.get(part.name, (-1,)):
            weights[layer] += 1  # in a model of one layer, first and last are the same
        found.add(tuple(weights.tolist()))
    if len(found) > 1:
        raise UserError(
            f"The pooler {pooler} joins means of different layers, which no folder of sentence-transformers can state."
            "\nTake another pooler."
        )
    return found.pop() if any(part.reads_layers for part in parts_of(pooler)) else ()


def same_pooling(one: str, other: str, layers: int) -> bool:
    """Return whether two poolers, neither with a head, give the same vectors of an encoder with so many layers."""

    def meaning(pooler: str) -> tuple[Any, ...]:
        last = np.eye(layers + 1)[-1]
        weights = np.array(layer_weights(pooler, layers) or last)
        return _modes_of(pooler), tuple(np.round(weights / weights.sum(), 6))

    return meaning(one) == meaning(other)


def _modes_of(pooler: str) -> list[str]:
    """Return the modes of a Pooling module that a pooler's parts are; "cls" too, whose head is another module."""
    modes = {name: mode for mode, name in _MODES.items()} | {"cls": "cls"} | dict.fromkeys(AVERAGED_LAYERS, "mean")
    return [modes[part.name] for part in parts_of(pooler)]


def written_pooling(pooler: str, width: int, include_prompt: bool) -> dict[str, Any]:
    """Return the settings of a Pooling module, which releases of sentence-transformers from 2 on read if they can.

    width: of the hidden states.
    """
    modes = _modes_of(pooler)
    settings: dict[str, Any] = {"word_embedding_dimension": width}
    if modes == [mode for mode in _MODES if mode in modes]:
        settings |= {_KEYS[mode]: mode in modes for mode in _OLD_ORDER}
    else:  # an order that only the list of release 5 can state
        settings["pooling_mode"] = modes
    return settings if include_prompt else settings | {"include_prompt": False}


# In which exports have always written them.
_OLD_ORDER = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def written_layers(weights: Sequence[float], width: int) -> tuple[dict[str, Any], Tensors]:
    """Return settings and weights of a WeightedLayerPooling with these weights of all hidden states.

    It weighs all hidden states from `layer_start` on, so those that we do not read get weight 0.
    """
    start = int(np.flatnonzero(weights)[0])
    settings = {"word_embedding_dimension": width, "layer_start": start, "num_hidden_layers": len(weights) - 1}
    return settings, {"layer_weights": np.asarray(weights[start:], np.float32)}

"""Our poolers <-> the module files that make a folder a sentence-transformers model.

Module names and keys are those of sentence-transformers 2 and 3; later releases read them too.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.pooling import AVERAGED_LAYERS, POOLERS
from simcse_jax.system.errors import UserError

OURS = "simcse_jax.json"
_TYPES = "sentence_transformers.models."
# What SimCSE's own tool goes by: its published folders say nothing else of how they pool.
_PUBLISHED = re.compile(r"(?<![a-z])(?P<un>un)?sup[-_]simcse", re.IGNORECASE)
_POOLING_KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")

# The files of one module: JSON objects by file name, and the tensors of model.safetensors ({} = no such file).
Module = tuple[str, dict[str, Any], dict[str, np.ndarray]]


def transformer_settings(pooler: str, config: Architecture) -> dict[str, Any]:
    """The content of sentence_bert_config.json; the length limit is the model's, not that of the training."""
    settings: dict[str, Any] = {"max_seq_length": config.max_length, "do_lower_case": False}
    if len(AVERAGED_LAYERS.get(pooler, ())) > 1:
        settings["config_args"] = {"output_hidden_states": True}  # WeightedLayerPooling reads them
    return settings


def pooling_modules(pooler: str, config: Architecture, head: Mapping[str, Any] | None) -> list[Module]:
    """What follows the Transformer module: (type, config.json, tensors) of each.

    head: the parameters of the head, which "cls" needs.
    """
    width = config.hidden_size
    averaged = AVERAGED_LAYERS.get(pooler, ())
    chosen = "mean_tokens" if averaged else "cls_token"
    pooling: dict[str, Any] = {"word_embedding_dimension": width}
    pooling |= {f"pooling_mode_{key}": key == chosen for key in _POOLING_KEYS}
    modules: list[Module] = [("Pooling", pooling, {})]
    if len(averaged) > 1:
        modules.insert(0, _layer_average(averaged, config))
    if pooler == "cls":
        dense = {"in_features": width, "out_features": width, "bias": True}
        tanh = {"activation_function": "torch.nn.modules.activation.Tanh"}
        assert head is not None
        kernel, bias = (np.asarray(head[part], np.float32) for part in ("kernel", "bias"))
        weights = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
        modules.append(("Dense", dense | tanh, weights))
    return modules


def _layer_average(averaged: tuple[int, ...], config: Architecture) -> Module:
    """WeightedLayerPooling that averages these hidden states: 0 is the embedding layer, -1 the last.

    It weighs all hidden states from `layer_start` on, so those that we do not average get weight 0.
    """
    weights = np.zeros(config.num_hidden_layers + 1, np.float32)
    for layer in averaged:  # in a model of one layer, first and last are the same
        weights[layer] += 1
    start = int(np.flatnonzero(weights)[0])
    settings = {
        "word_embedding_dimension": config.hidden_size,
        "layer_start": start,
        "num_hidden_layers": config.num_hidden_layers,
    }
    return "WeightedLayerPooling", settings, {"layer_weights": weights[start:]}


def modules_json(modules: list[Module]) -> list[dict[str, Any]]:
    """The content of modules.json: the Transformer in the folder itself, then the others in theirs."""
    kinds = [("Transformer", ""), *((kind, module_folder(place, kind)) for place, (kind, _, _) in enumerate(modules))]
    return [
        {"idx": place, "name": str(place), "path": path, "type": _TYPES + kind}
        for place, (kind, path) in enumerate(kinds)
    ]


def module_folder(place: int, kind: str) -> str:
    """The folder of the module at that place of `pooling_modules`: 1_Pooling, 2_Dense."""
    return f"{place + 1}_{kind}"


def read_pooler(folder: str | Path) -> str:
    """The pooler that a model folder says it was made for: our own file first, then sentence-transformers' modules.

    Where neither is there, the name of the folder or of its Hub repository: unsup-simcse is cls_before_pooler,
    sup-simcse is cls, as the authors use the models that they published. UserError when the name says nothing either,
    or when the modules do more than one of our poolers does.
    """
    folder = Path(folder)
    ways_out = (
        f"Name the pooler: {', '.join(POOLERS)}.\nSupervised SimCSE models want cls (the first token through the "
        "trained head), unsupervised ones cls_before_pooler (the first token itself), most others avg."
    )
    if (folder / OURS).is_file():
        pooler = _read(folder / OURS).get("pooler")
        if pooler in POOLERS:
            return pooler
        raise UserError(f"{folder / OURS}: pooler = {pooler!r} is none of ours.\n{ways_out}")
    if not (folder / "modules.json").is_file():
        name = _PUBLISHED.search(_model_name(folder))
        if name:
            return "cls_before_pooler" if name["un"] else "cls"
        raise UserError(f"{folder} does not say how it makes a sentence's vector (no modules.json).\n{ways_out}")
    modules = _read(folder / "modules.json")
    kinds = [(str(module.get("type", "")).split(".")[-1], str(module.get("path", ""))) for module in modules]
    # Normalize changes no cosine.
    extra = [kind for kind, _ in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    pooling = [path for kind, path in kinds if kind == "Pooling"]
    if extra or len(pooling) != 1:
        raise UserError(f"{folder}/modules.json asks for {', '.join(kind for kind, _ in kinds)}.\n{ways_out}")
    settings = _read(folder / pooling[0] / "config.json")
    mode = settings.get("pooling_mode")  # one key since release 5, one for each mode before
    modes = {mode} if isinstance(mode, str) else set(mode or ())
    modes |= {key.split("_")[0] for key in _POOLING_KEYS if settings.get(f"pooling_mode_{key}") is True}
    poolers = {"cls": "cls_before_pooler", "mean": "avg"}
    if len(modes) != 1 or not modes <= poolers.keys():
        raise UserError(f"{folder / pooling[0]} pools by {', '.join(sorted(modes)) or 'nothing'}.\n{ways_out}")
    return poolers[modes.pop()]


def _model_name(folder: Path) -> str:
    """The folder's own name; of a snapshot in the Hub's cache, that of the repository."""
    folder = folder.absolute()  # not resolved: a link may be what carries the name
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def normalizes(folder: str | Path) -> bool:
    """Whether a model folder's modules end in vectors of length 1. No cosine sees it, but classifiers do."""
    path = Path(folder) / "modules.json"
    modules = _read(path) if path.is_file() else []
    return any(str(module.get("type", "")).endswith("Normalize") for module in modules if isinstance(module, dict))


def _read(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}\nCopy it again from the model's source.") from error
    if isinstance(content, dict) or (isinstance(content, list) and all(isinstance(entry, dict) for entry in content)):
        return content
    raise UserError(f"{path} does not hold what it should.\nCopy it again from the model's source.")

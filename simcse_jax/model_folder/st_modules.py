"""Convert between our poolers and the module files that make a folder a sentence-transformers model.

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
# SimCSE's published folders say how they pool by their name alone.
_PUBLISHED = re.compile(r"(?<![a-z])(?P<un>un)?sup[-_]simcse", re.IGNORECASE)
_POOLING_KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")

# One module: type, config.json, and the tensors of model.safetensors ({} = no such file).
Module = tuple[str, dict[str, Any], dict[str, np.ndarray]]


def transformer_settings(pooler: str, architecture: Architecture) -> dict[str, Any]:
    """Return the content of sentence_bert_config.json; the length limit is the model's, not that of the training."""
    settings: dict[str, Any] = {"max_seq_length": architecture.max_length, "do_lower_case": False}
    if len(AVERAGED_LAYERS.get(pooler, ())) > 1:
        settings["config_args"] = {"output_hidden_states": True}  # WeightedLayerPooling reads them
    return settings


def pooling_modules(pooler: str, architecture: Architecture, head: Mapping[str, Any] | None) -> list[Module]:
    """Return the modules after the Transformer: (type, config.json, tensors) of each.

    head: the parameters of the head, which "cls" needs.
    """
    width = architecture.hidden_size
    averaged = AVERAGED_LAYERS.get(pooler, ())
    chosen = "mean_tokens" if averaged else "cls_token"
    pooling: dict[str, Any] = {"word_embedding_dimension": width}
    pooling |= {f"pooling_mode_{key}": key == chosen for key in _POOLING_KEYS}
    modules: list[Module] = [("Pooling", pooling, {})]
    if len(averaged) > 1:
        modules.insert(0, _layer_average(averaged, architecture))
    if pooler == "cls":
        dense = {"in_features": width, "out_features": width, "bias": True}
        tanh = {"activation_function": "torch.nn.modules.activation.Tanh"}
        assert head is not None
        kernel, bias = (np.asarray(head[part], np.float32) for part in ("kernel", "bias"))
        weights = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
        modules.append(("Dense", dense | tanh, weights))
    return modules


def _layer_average(averaged: tuple[int, ...], architecture: Architecture) -> Module:
    """Return a WeightedLayerPooling that averages these hidden states: 0 is the embedding layer, -1 the last.

    It weighs all hidden states from `layer_start` on, so those that we do not average get weight 0.
    """
    weights = np.zeros(architecture.num_hidden_layers + 1, np.float32)
    for layer in averaged:  # in a model of one layer, first and last are the same
        weights[layer] += 1
    start = int(np.flatnonzero(weights)[0])
    settings = {
        "word_embedding_dimension": architecture.hidden_size,
        "layer_start": start,
        "num_hidden_layers": architecture.num_hidden_layers,
    }
    return "WeightedLayerPooling", settings, {"layer_weights": weights[start:]}


def modules_json(modules: list[Module]) -> list[dict[str, Any]]:
    """Return the content of modules.json: the Transformer in the folder itself, then the others in theirs."""
    kinds = [("Transformer", ""), *((kind, module_folder(place, kind)) for place, (kind, _, _) in enumerate(modules))]
    return [
        {"idx": place, "name": str(place), "path": path, "type": _TYPES + kind}
        for place, (kind, path) in enumerate(kinds)
    ]


def module_folder(place: int, kind: str) -> str:
    """Return the folder of the module at an index of `pooling_modules`: 1_Pooling, 2_Dense."""
    return f"{place + 1}_{kind}"


def read_pooler(folder: str | Path) -> str:
    """Return the pooler that a model folder was made for, from our own file or sentence-transformers' modules.

    Without either, the name of the folder or of its Hub repository decides: unsup-simcse is cls_before_pooler and
    sup-simcse is cls, as the authors use the models that they published. Raises UserError if the name says nothing, or
    if the modules do more than one of our poolers does.
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
        raise UserError(f"{folder / OURS}: pooler = {pooler!r} is unknown.\n{ways_out}")
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
    """Return the folder's name; for a snapshot in the Hub's cache, the repository's."""
    folder = folder.absolute()  # not resolved: a link may be what carries the name
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def normalizes(folder: str | Path) -> bool:
    """Say whether a model folder's modules normalise embeddings. That changes no cosine, but classifiers see it."""
    path = Path(folder) / "modules.json"
    modules = _read(path) if path.is_file() else []
    return any(str(module.get("type", "")).endswith("Normalize") for module in modules if isinstance(module, dict))


def _read(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}\nCopy it again from the model's source.") from error
    if isinstance(content, dict) or (isinstance(content, list) and all(isinstance(entry, dict) for entry in content)):
        return content
    raise UserError(f"{path} is no JSON object or list of objects.\nCopy it again from the model's source.")

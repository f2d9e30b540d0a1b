"""Read and write the module files that make a folder a sentence-transformers model.

Module names and keys are those of sentence-transformers 2 and 3; later releases read them too.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simcse_jax import __version__
from simcse_jax.data.tokenizer import transformer_settings
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.pooling import AVERAGED_LAYERS, POOLERS
from simcse_jax.model_folder.weight_files import SAFETENSORS, write_weights
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import TRANSFORMER_SETTINGS
from simcse_jax.system.json_file import read_json, write_json

OURS = "simcse_jax.json"
WIDTHS = "matryoshka_dimensions"  # in config.json, as vLLM reads it: what embeddings may be shortened to
_ADAPTER = "adapter_config.json"
_SETTINGS = "config_sentence_transformers.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_TYPES = "sentence_transformers.models."
# SimCSE's published folders say how they pool by their name alone.
_PUBLISHED = re.compile(r"(?<![a-z])(?P<un>un)?sup[-_]simcse", re.IGNORECASE)
# Options of loading a model or its tokenizer that change no vector, but for rounding, or are read below.
_KNOWN_OPTIONS = {"output_hidden_states", "add_pooling_layer", "attn_implementation", "dtype", "torch_dtype"}
_KNOWN_OPTIONS |= {"use_fast", "trust_remote_code", "model_max_length"}
# Settings of other kinds of models, and of the tokenizer's place, that change vectors if they are not null.
_NOT_SUPPORTED = ("tokenizer_name_or_path", "query_length", "document_length", "query_prefix", "document_prefix")
_POOLING_KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


class TextSettings(NamedTuple):
    """Hold what a folder says of texts, by the keys of sentence-transformers; see also `lower_cases`."""

    max_seq_length: int | None = None  # tokens at which texts are cut; None: the model's limit
    prompts: Mapping[str, str] = {}
    default_prompt_name: str | None = None
    include_prompt: bool = True  # whether the mean includes the tokens of a prompt

    @property
    def prompt(self) -> str:
        """Return what comes before each text."""
        return self.prompts[self.default_prompt_name] if self.default_prompt_name else ""

    def require_included(self, prompt: str | None, name: str | Path) -> None:
        """Raise UserError if the tokens of this prompt are to be left out of the mean; name: of the model."""
        if prompt and not self.include_prompt:
            raise UserError(
                f"{name}: include_prompt = false of its Pooling module leaves the tokens of the prompt {prompt!r} out "
                f"of the mean, which is not supported.\nRemove the prompt from {_SETTINGS} in a copy of the folder, to "
                "encode texts without it; or use the model with sentence-transformers."
            )


PLAIN = TextSettings()


def write_modules(
    folder: Path,
    pooler: str,
    architecture: Architecture,
    head: Mapping[str, Any] | None,
    texts: TextSettings,
    do_lower_case: bool,
) -> None:
    """Write modules.json, the modules after the Transformer, and the settings beside them.

    head: the parameters of the head, which "cls" needs.
    """
    width, averaged = architecture.hidden_size, AVERAGED_LAYERS.get(pooler, ())
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{_TYPES}Transformer"}]

    def module(kind: str, settings: dict[str, Any], weights: Mapping[str, np.ndarray] | None = None) -> None:
        place = len(listed)
        path = folder / f"{place}_{kind}"
        path.mkdir()
        write_json(path / "config.json", settings)
        if weights:
            write_weights(path / SAFETENSORS, weights)
        listed.append({"idx": place, "name": str(place), "path": path.name, "type": _TYPES + kind})

    transformer: dict[str, Any] = {"max_seq_length": texts.max_seq_length, "do_lower_case": do_lower_case}
    if len(averaged) > 1:
        transformer["config_args"] = {"output_hidden_states": True}
        module("WeightedLayerPooling", *_layer_average(averaged, architecture))
    chosen = "mean_tokens" if averaged else "cls_token"
    modes = {f"pooling_mode_{key}": key == chosen for key in _POOLING_KEYS}
    excluded = {} if texts.include_prompt else {"include_prompt": False}
    module("Pooling", {"word_embedding_dimension": width, **modes, **excluded})
    if pooler == "cls":
        assert head is not None
        kernel, bias = (np.asarray(head[part], np.float32) for part in ("kernel", "bias"))
        tanh = "torch.nn.modules.activation.Tanh"
        module(
            "Dense",
            {"in_features": width, "out_features": width, "bias": True, "activation_function": tanh},
            {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias},
        )
    write_json(folder / "modules.json", listed)
    write_json(folder / TRANSFORMER_SETTINGS[0], transformer)
    settings = {
        "__version__": {"simcse_jax": __version__},
        "prompts": texts.prompts,
        "default_prompt_name": texts.default_prompt_name,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / _SETTINGS, settings)


def _layer_average(
    averaged: tuple[int, ...], architecture: Architecture
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return settings and weights of a WeightedLayerPooling that averages these hidden states; see `AVERAGED_LAYERS`.

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
    return settings, {"layer_weights": weights[start:]}


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
        pooler = read_json(folder / OURS).get("pooler")
        if pooler in POOLERS:
            return pooler
        raise UserError(f"{folder / OURS}: pooler = {pooler!r} is unknown.\n{ways_out}")
    if not (folder / "modules.json").is_file():
        name = _PUBLISHED.search(_model_name(folder))
        if name:
            return "cls_before_pooler" if name["un"] else "cls"
        raise UserError(f"{folder} does not say how it makes a sentence's vector (no modules.json).\n{ways_out}")
    modules = _modules(folder)
    # Normalize changes no cosine.
    extra = [kind for kind, _ in modules if kind not in ("Transformer", "Pooling", "Normalize")]
    pooling = [path for kind, path in modules if kind == "Pooling"]
    if extra or len(pooling) != 1:
        raise UserError(f"{folder}/modules.json asks for {', '.join(kind for kind, _ in modules)}.\n{ways_out}")
    settings = read_json(folder / pooling[0] / "config.json")
    mode = settings.get("pooling_mode")  # one key since release 5, one for each mode before
    modes = set(map(str, mode)) if isinstance(mode, list) else {str(mode)} if mode else set()
    modes |= {key.split("_")[0] for key in _POOLING_KEYS if settings.get(f"pooling_mode_{key}") is True}
    poolers = {"cls": "cls_before_pooler", "mean": "avg"}
    if len(modes) != 1 or not modes <= poolers.keys():
        raise UserError(f"{folder / pooling[0]} pools by {', '.join(sorted(modes)) or 'nothing'}.\n{ways_out}")
    return poolers[modes.pop()]


def read_text_settings(folder: Path, limit: int) -> TextSettings:
    """Return what a model folder says of texts; UserError where a setting is malformed, or not supported.

    limit: the most tokens that the model takes.
    """
    path = folder / _SETTINGS
    settings = read_json(path) if path.is_file() else {}
    poolings = [folder / place / "config.json" for kind, place in _modules(folder) if kind == "Pooling"]
    inner = encoder_folder(folder)
    for file, content in ((path, settings), transformer_settings(inner)):
        if key := next((key for key in _NOT_SUPPORTED if content.get(key) is not None), None):
            raise UserError(
                f"{file}: {key} = {content[key]!r} changes tokens or texts, which is not supported.\nTo use the "
                "model without it, remove it in a copy of the folder, with its tokenizer's files beside config.json."
            )
    found = TextSettings(
        _length(inner, limit),
        settings.get("prompts") or {},
        settings.get("default_prompt_name"),
        all(read_json(pooling).get("include_prompt") is not False for pooling in poolings if pooling.is_file()),
    )
    prompts, default = found.prompts, found.default_prompt_name
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{path}: prompts = {prompts!r} must be an object of texts.")
    if default is not None and not isinstance(prompts.get(str(default)), str):
        raise UserError(
            f"{path}: default_prompt_name = {default!r} is not among prompts ({', '.join(prompts)}).\n"
            "Name one of these, or set it to null: then no prompt is put before texts."
        )
    found.require_included(found.prompt, folder)
    return found


def _length(folder: Path, limit: int) -> int | None:
    """Return the tokens at which an encoder's folder says to cut texts, at most `limit`; None if it does not say.

    As in sentence-transformers, max_seq_length counts before the tokenizer's model_max_length, where its later releases
    keep the number. UserError for a wrong number, and for options that would load another model or tokenizer.
    """
    path, settings = transformer_settings(folder)
    options = {key: settings[key] for key in settings if key.endswith(("_args", "_kwargs")) and settings[key]}
    for key, changes in options.items():
        if not isinstance(changes, dict) or changes.keys() - _KNOWN_OPTIONS:
            raise UserError(
                f"{path}: {key} = {changes!r} changes how the model or its tokenizer is loaded, which is not supported."
                f"\nIn a copy of the folder, move these keys into config.json or {_TOKENIZER_SETTINGS}."
            )
    of_tokenizer = folder / _TOKENIZER_SETTINGS
    tokenizer = read_json(of_tokenizer) if of_tokenizer.is_file() else {}
    stated = (
        *((path, options.get(key, {}), "model_max_length") for key in ("processor_kwargs", "tokenizer_args")),
        (path, settings, "max_seq_length"),
        *((of_tokenizer, tokenizer, key) for key in ("model_max_length", "max_len")),
    )
    for file, content, key in stated:
        length = content.get(key)
        if length is None:
            continue
        if not isinstance(length, int | float) or length < 3 or length % 1:
            raise UserError(f"{file}: {key} = {length!r} must be a whole number of at least 3, or null.")
        return int(min(length, limit))
    return None


def encoder_folder(folder: Path) -> Path:
    """Return where the encoder itself is: `folder`, or that of the Transformer module, 0_Transformer in old releases.

    Raises UserError where an adapter lies beside it.
    """
    inner = next((folder / path for kind, path in _modules(folder) if kind == "Transformer"), folder)
    if (inner / _ADAPTER).is_file():
        base = read_json(inner / _ADAPTER).get("base_model_name_or_path")
        raise UserError(
            f"{inner / _ADAPTER}: adapters (this is one of {base!r}) are not supported.\n"
            "Merge it into the model's weights once, where PEFT is installed (pip install peft torch):\n"
            "  from peft import AutoPeftModelForFeatureExtraction as Adapted; from transformers import AutoTokenizer\n"
            f"  Adapted.from_pretrained({str(inner)!r}).merge_and_unload().save_pretrained('MERGED')\n"
            f"  AutoTokenizer.from_pretrained({str(inner)!r}).save_pretrained('MERGED')\n"
            "and give MERGED with the pooler (--pooler=NAME), or copy modules.json and 1_Pooling there."
        )
    return inner


def normalizes(folder: str | Path) -> bool:
    """Say whether a model folder's modules normalise embeddings. That changes no cosine, but classifiers see it."""
    return any(kind == "Normalize" for kind, _ in _modules(Path(folder)))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return (kind, path) of each module of modules.json; none without that file."""
    path = folder / "modules.json"
    modules = read_json(path, list) if path.is_file() else []
    if not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{path} is no list of objects.\nCopy it again from the model's source.")
    found = [(str(module.get("type", "")).split(".")[-1], str(module.get("path", ""))) for module in modules]
    outside = [place for _, place in found if Path(place).is_absolute() or ".." in Path(place).parts]
    if outside:
        raise UserError(
            f"{path} names {outside[0]}, which is outside the folder.\nCopy it again from the model's source."
        )
    return found


def _model_name(folder: Path) -> str:
    """Return the folder's name; for a snapshot in the Hub's cache, the repository's."""
    folder = folder.absolute()  # not resolved: a link may be what carries the name
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def read_widths(folder: Path, width: int) -> list[int]:
    """Return the widths that embeddings may be shortened to, as config.json says; UserError for a wrong one."""
    path = folder / "config.json"
    found = read_json(path).get(WIDTHS) or []
    if not isinstance(found, list) or not all(isinstance(each, int) and 0 < each <= width for each in found):
        raise UserError(f"{path}: {WIDTHS} is {found!r:.100}; it must be a list of integers from 1 to {width}.")
    return found

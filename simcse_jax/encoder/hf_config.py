"""Hugging Face's config.json <-> Architecture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_jax.encoder.activations import ACTIVATIONS
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.system.errors import UserError

CONFIG = "config.json"
# model_type -> our family. CamemBERT is RoBERTa under another name; MiniLM and most national models say "bert" or
# "roberta" themselves. What is not here (distilbert, xlm-roberta-xl, deberta ...) has other layers.
FAMILIES = {"bert": "bert", "roberta": "roberta", "camembert": "roberta", "xlm-roberta": "xlm-roberta"}
ARCHITECTURES = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def read_config(folder: str | Path) -> Architecture:
    """The sizes of the model in a Hugging Face folder; dropout is a matter of the training, whatever the file says.

    Raises UserError for a missing or malformed config.json, another architecture, an unknown activation, relative
    position embeddings, a decoder, and missing or impossible sizes.
    """
    path = Path(folder) / CONFIG
    config = _read_json(path)
    family = _family(config, path)
    _refuse_variants(config, path)
    sizes: dict[str, Any] = {key: _size(config, key, path) for key in _SIZES}
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UserError(
            f"{path}: hidden_size = {sizes['hidden_size']} does not divide over num_attention_heads = "
            f"{sizes['num_attention_heads']}.\nIn BERT each head has 64: {max(sizes['hidden_size'] // 64, 1)} heads."
        )
    # Defaults are those of transformers' config classes, for files that leave a key out.
    result = Architecture(
        family=family,
        **sizes,
        hidden_act=_activation(config, path),
        type_vocab_size=_size(config, "type_vocab_size", path, default=2, least=0),
        layer_norm_eps=_number(config, "layer_norm_eps", path, default=1e-12),
        pad_token_id=_size(config, "pad_token_id", path, default=0 if family == "bert" else 1, least=0),
        initializer_range=_number(config, "initializer_range", path, default=0.02),
    )
    if result.max_length < 1:
        raise UserError(
            f"{path}: max_position_embeddings = {result.max_position_embeddings} leaves no position after the first "
            f"{result.position_offset}, which {family} reserves.\nUsual values are 512 for bert, 514 for roberta."
        )
    return result


def hugging_face_config(config: Architecture, has_mlm_head: bool = False) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 read, and `read_config` too.

    has_mlm_head: whether the weights are those of the class for masked language modelling. A model without token types
    gets one type (a table of zeros in the weights): transformers always adds type 0.
    """
    return {
        "architectures": [ARCHITECTURES[config.family].replace("Model", "ForMaskedLM" if has_mlm_head else "Model")],
        "attention_probs_dropout_prob": config.dropout,
        "dtype": "float32",  # to compute in, whatever the file holds
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": config.dropout,
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": config.family,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "pad_token_id": config.pad_token_id,
        "position_embedding_type": "absolute",
        "type_vocab_size": max(config.type_vocab_size, 1),
        "vocab_size": config.vocab_size,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist, so {path.parent} is no model folder.\n"
            "Give a folder as save_pretrained writes it: config.json, model.safetensors and the tokenizer's files."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}\nCopy it again from the model's source.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object with the model's sizes.")
    return content


def _family(config: Mapping[str, Any], path: Path) -> str:
    supported = f"Supported model_type: {', '.join(FAMILIES)} (MiniLM and most national BERTs are one of these)."
    kind, architectures = config.get("model_type"), config.get("architectures")
    if kind is None and architectures is None:
        raise UserError(f'{path} has no model_type.\n{supported}\nIf it is a BERT, add "model_type": "bert".')
    if kind is None:  # files of the first releases name the class only
        named = {architecture: family for family, architecture in ARCHITECTURES.items()}
        names = [str(name) for name in architectures or []]
        found = {f for name in names for a, f in named.items() if name.startswith(a.removesuffix("Model") + "For")}
        found |= {named[name] for name in names if name in named}
        if len(found) == 1:
            return found.pop()
    elif kind in FAMILIES:
        return FAMILIES[kind]
    which = f"model_type = {kind!r}" if kind is not None else f"architectures = {architectures!r}"
    raise UserError(f"{path}: {which} is another architecture.\n{supported}")


def _refuse_variants(config: Mapping[str, Any], path: Path) -> None:
    """Nothing, or UserError if the same model_type is used for layers that we do not have."""
    expected = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    for key, works in expected.items():
        value = config.get(key, works)
        if value is not None and value != works:
            raise UserError(
                f"{path}: {key} = {value!r} is not supported; only {works!r} is.\n"
                "Use a plain encoder of the BERT or RoBERTa family."
            )


def _activation(config: Mapping[str, Any], path: Path) -> str:
    value = config.get("hidden_act", "gelu")
    if value not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act = {value!r} is not known.\nKnown: {', '.join(ACTIVATIONS)}.")
    return value


def _size(config: Mapping[str, Any], key: str, path: Path, default: int | None = None, least: int = 1) -> int:
    value = config.get(key)
    if value is None:
        if default is not None:
            return default
        missing = [name for name in _SIZES if config.get(name) is None]
        raise UserError(
            f"{path} lacks {', '.join(missing)}.\n"
            "Every config.json of save_pretrained has them: copy the file again from the model's source."
        )
    if type(value) is not int or value < least:
        raise UserError(f"{path}: {key} = {value!r} must be a whole number of at least {least}.")
    return value


def _number(config: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise UserError(f"{path}: {key} = {value!r} must be a number in [0, 1), for example {default}.")
    return float(value)

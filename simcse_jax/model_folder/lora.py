"""Merge a LoRA adapter, as PEFT saves it, into the weights of the model that it adapts.

Each adapted linear layer becomes W + s B A, where s is alpha / r, or alpha / sqrt(r) with use_rslora. The merged model
is written into the cache once, as a folder like any other.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.data.tokenizer import ALL_TOKENIZER_FILES, TOKENIZER_FILES
from simcse_jax.encoder.families.family import Tensors
from simcse_jax.encoder.families.table import FAMILIES, read_architecture
from simcse_jax.model_folder.weight_files import SAFETENSORS, read_weight_file, read_weights, write_weights
from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError
from simcse_jax.system.hub import ADAPTER, ADAPTER_WEIGHTS, CONFIG, TRANSFORMER_SETTINGS
from simcse_jax.system.json_file import is_empty, read_json

# Keys of adapter_config.json that are read here, or that say how the adapter was made.
_READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
_MADE = {"target_modules", "exclude_modules", "task_type", "inference_mode", "auto_mapping", "lora_dropout"}
_MADE |= {"peft_version", "layers_to_transform", "layers_pattern", "loftq_config", "runtime_config"}
_MADE |= {"megatron_core", "qalora_group_size"}  # of what is off unless other keys say so
# What other keys have where they change nothing; init_lora_weights: other ways change the base model's weights.
_PLAIN = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal"), "revision": ("main",)}
_COPY = "Copy the adapter again from its source."
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<which>[AB])(?:\.default)?\.weight")


def merged_folder(inner: Path, base: Path) -> Path:
    """Return a folder with the model that an adapter makes of the one in `base`; both are folders of encoders.

    UserError for what is no LoRA of linear layers, by file and key.
    """
    settings = read_json(inner / ADAPTER)
    _require_plain(inner, settings)
    folder = cache_folder("merged") / _digest(inner, base)
    if folder.is_dir():
        return folder
    tensors = _merged(inner, settings, read_weights(base), FAMILIES[read_architecture(base).family].rename)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    has_tokenizer = any(all((inner / name).is_file() for name in names) for names in TOKENIZER_FILES)
    sources = {CONFIG: base, **dict.fromkeys(TRANSFORMER_SETTINGS, inner)}
    sources |= dict.fromkeys(ALL_TOKENIZER_FILES, inner if has_tokenizer else base)
    for name, source in sources.items():
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    write_weights(partial / SAFETENSORS, tensors)
    try:
        os.replace(partial, folder)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
    return folder


def _require_plain(inner: Path, settings: dict[str, Any]) -> None:
    """Raise UserError for another kind of adapter, and for a key that changes what is computed."""
    if settings.get("peft_type") != "LORA":
        raise _unsupported(inner, f"peft_type = {settings.get('peft_type')!r}")
    for key, value in settings.items():
        fits = value in _PLAIN[key] if key in _PLAIN else key in _READ | _MADE
        if not fits and not is_empty(value):
            raise _unsupported(inner, f"{key} = {value!r:.80}")


def _unsupported(inner: Path, what: str) -> UserError:
    return UserError(
        f"{inner / ADAPTER}: {what} is not supported; plain LoRA of linear layers is.\n"
        "Merge the adapter into the model's weights once, where PEFT is installed (pip install peft torch):\n"
        "  from peft import AutoPeftModelForFeatureExtraction as Adapted; from transformers import AutoTokenizer\n"
        f"  Adapted.from_pretrained({str(inner)!r}).merge_and_unload().save_pretrained('MERGED')\n"
        f"  AutoTokenizer.from_pretrained({str(inner)!r}).save_pretrained('MERGED')\n"
        "and give MERGED with the pooler (--pooler=NAME), or copy modules.json and 1_Pooling there."
    )


def _merged(inner: Path, settings: dict[str, Any], weights: Tensors, rename: Callable[[Tensors], Tensors]) -> Tensors:
    """Return the base model's weights with those of the adapted layers merged.

    rename: from names of older releases, which an adapter of such a model has too, to today's.
    """
    factors: dict[str, Tensors] = {}
    path = next((inner / name for name in ADAPTER_WEIGHTS if (inner / name).is_file()), None)
    if path is None:
        raise UserError(f"{inner} holds an adapter without weights ({' or '.join(ADAPTER_WEIGHTS)}).\nCopy them there.")
    for name, array in read_weight_file(path).items():
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            raise _unsupported(inner, f"the weight {name} of {path.name}")
        factors.setdefault(factor["layer"], {})[factor["which"]] = array
    if any(not _name_in(weights, layer) for layer in factors):
        weights = rename(weights)
    merged = dict(weights)
    for layer, pair in factors.items():
        name = _name_in(weights, layer)
        shapes = {which: array.shape for which, array in pair.items()}
        base = weights[name] if name else np.zeros(())
        fits = len(pair) == 2 and base.ndim == 2 and base.shape == (*shapes["B"][:1], *shapes["A"][1:])
        if not fits or shapes["A"][0] != shapes["B"][1]:
            raise UserError(
                f"{path}: the weights of {layer} are {shapes}, and the base model has "
                f"{list(base.shape) if name else 'no such layer'}.\nTake the adapter and its base model "
                f"({settings.get('base_model_name_or_path')!r}) from the same source."
            )
        merged[name] = base + np.float32(_scale(inner, settings, layer, shapes["A"][0])) * (pair["B"] @ pair["A"])
    return merged


def _name_in(weights: Tensors, layer: str) -> str:
    """Return the name of a layer's weight in the base model, which may have a prefix more or less; "" for none."""
    wanted = f"{layer}.weight"
    if wanted in weights:
        return wanted
    found = [name for name in weights if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    return found[0] if len(found) == 1 else ""


def _scale(inner: Path, settings: dict[str, Any], layer: str, rank: int) -> float:
    stated, alpha = (
        _of_layer(_patterns(inner, settings, key), layer, settings.get(default))
        for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if stated != rank or type(alpha) not in (int, float):
        raise UserError(
            f"{inner / ADAPTER}: r = {stated!r} and lora_alpha = {alpha!r} for {layer}, whose weights have rank {rank}."
            f"\n{_COPY}"
        )
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _patterns(inner: Path, settings: dict[str, Any], key: str) -> dict[re.Pattern[str], Any]:
    """Return the values that layers have by a pattern of their name or the end of it, as PEFT reads it."""
    stated = settings.get(key) or {}
    if not isinstance(stated, dict):
        raise UserError(f"{inner / ADAPTER}: {key} = {stated!r:.80} must be an object.\n{_COPY}")
    try:
        return {re.compile(name if name.startswith("^") else rf"(.*\.)?({name})$"): stated[name] for name in stated}
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"{inner / ADAPTER}: {key} = {stated!r:.80} holds what is no regular expression: {error}.\n{_COPY}"
        ) from error


def _of_layer(patterns: dict[re.Pattern[str], Any], layer: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a layer's name."""
    return next((value for pattern, value in patterns.items() if pattern.match(layer)), default)


def _digest(inner: Path, base: Path) -> str:
    """Return a name for what is merged here, which changes with any file of the two folders."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in (inner, base):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                state = path.stat()
                digest.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()

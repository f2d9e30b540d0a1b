"""Define what each family of encoders states: how its config.json reads, and what its weights are called."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.encoder.activations import ACTIVATIONS
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json

# Far above any model, and low enough that no array's size overflows.
LARGEST_SIZE, LARGEST = 10_000_000, {"num_hidden_layers": 1000, "n_layers": 1000, "n_layer": 1000}
# BERT's keys for the sizes of an encoder.
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "max_position_embeddings",
)
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Hold the names of a family's weights, without ".weight" and ".bias", by their place in our parameters.

    "" stands for what the family's models do not have.
    """

    prefix: str  # of the encoder's weights in a model with a head for a task, "bert."
    tables: dict[str, str]  # keys: Architecture.tables
    embedding_norm: str
    layer: str  # how the names of a layer begin, {} for its number
    layer_parts: dict[str, str | tuple[str, ...]]  # keys: Architecture.layer_products and the norms; several: stacked
    head: str  # dense layer on [CLS]
    mlm_dense: str
    mlm_norm: str
    mlm_output: str  # has the bias over the vocabulary
    mlm_decoder: str  # has the word embeddings once more
    task_heads: tuple[str, ...]  # how names begin that an encoder may leave unread
    projection: str = ""  # dense layer from the tables' width to that of the layers
    relative: str = ""  # table by distance
    relative_norm: str = ""
    final_norm: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """Describe a family: models that share a config.json format, weight names and modules."""

    name: str
    model_types: tuple[str, ...]  # values of config.json's model_type; exported models get the first
    model_class: str  # the bare encoder's class in transformers
    positions_after_padding: bool  # a sentence's first token has position pad_token_id + 1, not 0
    names: WeightNames
    read: Callable[[ConfigFile], Architecture]
    write: Callable[[Architecture], dict[str, Any]]  # what config.json has beside model_type, architectures and dtype
    rename: Callable[[Tensors], Tensors] = dict  # weights as older files name and join them -> as `names` has them

    def complete(self, architecture: Architecture) -> Architecture:
        """Return the architecture with the fields that follow from the family."""
        offset = architecture.pad_token_id + 1 if self.positions_after_padding else 0
        return dataclasses.replace(architecture, position_offset=offset)


class ConfigFile:
    """Read the values of a config.json; each method raises UserError for a value that is missing or impossible."""

    def __init__(self, path: Path):
        self.path: Any = path  # a part of a file has its name behind
        if not path.exists():
            raise UserError(
                f"{path} does not exist, so {path.parent} is no model folder.\n"
                "Give a folder as save_pretrained writes it: config.json, model.safetensors and the tokenizer's files."
            )
        self.content: dict[str, Any] = read_json(path)

    def part(self, key: str) -> ConfigFile:
        """Return the object under this key, empty for a missing key or null."""
        content = self.content.get(key)
        if content is not None and not isinstance(content, dict):
            raise UserError(f"{self.path}: {key} = {content!r:.100} must be an object.")
        part = copy.copy(self)
        part.path, part.content = f"{self.path}: {key}", content or {}
        return part

    def without(self, key: str) -> ConfigFile:
        """Return the same file as if it did not have this key."""
        rest = copy.copy(self)
        rest.content = {name: value for name, value in self.content.items() if name != key}
        return rest

    def with_defaults(self, **defaults: Any) -> ConfigFile:
        """Return the same file with these values for missing keys and null."""
        filled = copy.copy(self)
        filled.content = defaults | {name: value for name, value in self.content.items() if value is not None}
        return filled

    def sizes(self, *keys: str, **renamed: str) -> dict[str, int]:
        """Return whole numbers of at least 1, by their key; an error names all that are missing.

        renamed: the file's own keys, by the names under which they are returned.
        """
        called = {key: key for key in keys} | renamed
        missing = [key for key in called.values() if self.content.get(key) is None]
        if missing:
            raise UserError(
                f"{self.path} lacks {', '.join(missing)}.\n"
                "Every config.json of save_pretrained has them: copy the file again from the model's source."
            )
        return {name: self.size(key, default=1, least=1) for name, key in called.items()}

    def require_heads(
        self, sizes: dict[str, Any], width: str = "hidden_size", heads: str = "num_attention_heads"
    ) -> None:
        """Refuse a width that does not divide over the heads; width, heads: the file's keys for them."""
        size, count = sizes["hidden_size"], sizes["num_attention_heads"]
        if size % count:
            raise UserError(
                f"{self.path}: {width} = {size} does not divide over {heads} = {count}.\n"
                f"In most models each head has 64 features: {max(size // 64, 1)} heads."
            )

    def number(self, key: str, default: float) -> float:
        """Return a number above 0; `default` for a missing key or null."""
        value = self.content.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise UserError(f"{self.path}: {key} = {value!r} must be a number above 0, for example {default}.")
        return float(value)

    def size(self, key: str, default: int, least: int = 0) -> int:
        """Return a whole number from `least` to the largest that models have; `default` for a missing key or null."""
        value, largest = self.content.get(key), LARGEST.get(key, LARGEST_SIZE)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= largest:
            raise UserError(f"{self.path}: {key} = {value!r} must be a whole number from {least} to {largest}.")
        return value

    def fraction(self, key: str, default: float) -> float:
        """Return a number in [0, 1); `default` for a missing key or null."""
        value = self.content.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"{self.path}: {key} = {value!r} must be a number in [0, 1), for example {default}.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false; `default` for a missing key or null."""
        value = self.content.get(key)
        if not isinstance(value, bool | None):
            raise UserError(f"{self.path}: {key} = {value!r} must be true or false.")
        return default if value is None else value

    def activation(self, key: str, default: str) -> str:
        """Return the name of an activation that we have; `default` for a missing key or null."""
        value = self.content.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise UserError(f"{self.path}: {key} = {value!r} is unknown.\nKnown: {', '.join(ACTIVATIONS)}.")
        return value

    def require(self, **works: Any) -> None:
        """Refuse a value other than the one that works; a missing key or null is taken for it."""
        for key, wanted in works.items():
            value = self.content.get(key, wanted)
            if value is not None and value != wanted:
                raise UserError(
                    f"{self.path}: {key} = {value!r} is not supported; only {wanted!r} is.\n"
                    "Use a model whose config.json has it so."
                )


def require_pairs_of_features(file: ConfigFile, head_size: int) -> None:
    """Refuse heads of an odd number of features, which rotary positions cannot turn in pairs."""
    if head_size % 2:
        raise UserError(
            f"{file.path}: each head has {head_size} features; rotary positions need an even number.\n"
            "Take config.json again from the model's source."
        )

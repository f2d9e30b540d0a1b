"""Define what each family of encoders states: how its config.json reads, and what its weights are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simcse_jax.encoder.activations import ACTIVATIONS
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json

# Far above any model, and low enough that no array's size overflows.
LARGEST_SIZE, LARGEST = 10_000_000, {"num_hidden_layers": 1000}


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Hold the names of a family's weights, without ".weight" and ".bias", by their place in our parameters."""

    prefix: str  # of the encoder's weights in a model with a head for a task, "bert."
    tables: dict[str, str]  # keys: Architecture.tables
    embedding_norm: str
    layer: str  # how the names of a layer begin, {} for its number
    layer_parts: dict[str, str | tuple[str, ...]]  # keys: Architecture.layer_products and the norms; several: stacked
    head: str  # dense layer on [CLS]
    mlm_dense: str
    mlm_norm: str
    mlm_output: str  # has the bias over the vocabulary
    task_heads: tuple[str, ...]  # how names begin that an encoder may leave unread


@dataclasses.dataclass(frozen=True)
class Family:
    """Describe a family: models that share a config.json format, weight names and modules."""

    name: str
    model_types: tuple[str, ...]  # values of config.json's model_type
    model_class: str  # the bare encoder's class in transformers
    positions_after_padding: bool  # a sentence's first token has position pad_token_id + 1, not 0
    names: WeightNames
    read: Callable[[ConfigFile], Architecture]
    write: Callable[[Architecture], dict[str, Any]]  # what config.json has beside model_type, architectures and dtype

    def complete(self, architecture: Architecture) -> Architecture:
        """Return the architecture with the fields that follow from the family."""
        offset = architecture.pad_token_id + 1 if self.positions_after_padding else 0
        return dataclasses.replace(architecture, position_offset=offset)


class ConfigFile:
    """Read the values of a config.json; each method raises UserError for a value that is missing or impossible."""

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            raise UserError(
                f"{path} does not exist, so {path.parent} is no model folder.\n"
                "Give a folder as save_pretrained writes it: config.json, model.safetensors and the tokenizer's files."
            )
        self.content: dict[str, Any] = read_json(path)

    def sizes(self, *keys: str) -> dict[str, int]:
        """Return whole numbers of at least 1, by their key; an error names all that are missing."""
        missing = [key for key in keys if self.content.get(key) is None]
        if missing:
            raise UserError(
                f"{self.path} lacks {', '.join(missing)}.\n"
                "Every config.json of save_pretrained has them: copy the file again from the model's source."
            )
        return {key: self.size(key, default=1, least=1) for key in keys}

    def size(self, key: str, default: int, least: int = 0) -> int:
        """Return a whole number from `least` to the largest that models have; `default` for a missing key or null."""
        value, largest = self.content.get(key), LARGEST.get(key, LARGEST_SIZE)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= largest:
            raise UserError(f"{self.path}: {key} = {value!r} must be a whole number from {least} to {largest}.")
        return value

    def fraction(self, key: str, default: float) -> float:
        """Return a number in [0, 1)."""
        value = self.content.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise UserError(f"{self.path}: {key} = {value!r} must be a number in [0, 1), for example {default}.")
        return float(value)

    def activation(self, key: str, default: str) -> str:
        """Return the name of an activation that we have."""
        value = self.content.get(key, default)
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
                    "Use a plain encoder of the BERT or RoBERTa family."
                )

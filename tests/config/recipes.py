"""Recipes for the tests of this room."""

from collections.abc import Iterable
from typing import Any

from configs import base
from simcse_jax.config.keys import Key
from simcse_jax.config.resolve import resolve
from simcse_jax.config.schema import KEYS, Config
from simcse_jax.objective.losses import graded_losses

# What a recipe needs beside a value, to be one that trains.
COMPANIONS: dict[tuple[str, Any], dict[str, Any]] = {
    ("objective.loss", "none"): {"mlm.weight": 1.0, "model.pooler": "avg", "model.train_pooler": "avg"},
    ("model.tokenizer", "train"): {"model.init": "random", "model.vocab_size": 500},
    **{("objective.loss", loss): {"data.scores": "score", "data.positive": "columns"} for loss in graded_losses()},
    ("teacher.name", KEYS["teacher.name"].example): {"teacher.margin_mse": 1.0},
}
MLM_ALONE = {"objective.loss": "none", **COMPANIONS["objective.loss", "none"]}


def recipe(values: dict[str, Any] | None = None) -> Any:
    """Return the base recipe with local data and these values, by full name."""
    config: Any = base.get_config()
    config.data.files = "sentences.txt"
    config.update_from_flattened_dict(values or {})
    return config


def resolved(values: dict[str, Any] | None = None, devices: int = 1, overridden: Iterable[str] = ()) -> Config:
    return resolve(recipe(values), {*overridden}, devices)


def other_value(key: Key) -> Any:
    """Return an allowed value other than the default."""
    if key.type is bool:
        return not key.default
    if key.type is str:
        tried = [*key.choices] or [key.example, "folder"]
    else:
        tried = [*key.choices] or [key.example, *map(key.type, (key.default / 2, key.default + 1, 1))]
    return next(value for value in tried if value != key.default and key.allows(value))


def in_effect(key: Key) -> dict[str, Any]:
    """Return values of other keys with which this one has an effect."""
    values: dict[str, Any] = {}
    for name, effective in key.effects():
        value = other_value(KEYS[name]) if effective is None else effective[0]
        values |= in_effect(KEYS[name]) | COMPANIONS.get((name, value), {}) | {name: value}
    return values

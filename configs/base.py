"""Start a recipe: every key at its default. Recipes change what they need.

    python -m simcse_jax.train --help-config    # every key: default, range, meaning, when it has an effect

simcse_jax/config/schema.py states the keys. Any of them can be given on the command line, such as
--config.objective.temperature=0.07; unknown keys are refused. The defaults are the paper's, and its code's, for
unsupervised BERT-base (docs/paper.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from simcse_jax.config.schema import defaults, nested
from simcse_jax.system.errors import UserError

Recipe = TypeVar("Recipe")


def choose(variants: Mapping[str, Recipe], name: str) -> Recipe:
    """Return the variant of this name (after the colon of --config=FILE:variant); UserError where there is none."""
    if name not in variants:
        raise UserError(f"The recipe has no variant {name!r}. It has: {', '.join(variants)}.")
    return variants[name]


def shipped_model(name: str) -> str:
    """Return ./models/NAME; where the working directory has none, the path of the clone's own, if this is a clone."""
    clone = Path(__file__).resolve().parents[1] / "models" / name
    return str(clone) if clone.is_dir() and not Path("models", name).is_dir() else f"./models/{name}"


def get_config() -> ConfigDict:
    """Return the locked configuration that every recipe starts from."""
    return ConfigDict(nested(defaults())).lock()

"""Start a recipe: every key at its default. Recipes change what they need.

    python -m simcse_jax.train --help-config    # every key: default, range, meaning, when it has an effect

simcse_jax/config/sections/ states the keys. Any of them can be given on the command line, such as
--config.objective.temperature=0.07; unknown keys are refused. The defaults are the paper's, and its code's, for
unsupervised BERT-base (docs/paper.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from simcse_jax.config.schema import SOURCE_KEYS, SOURCES, defaults, nested
from simcse_jax.config.sources import require_source
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


def add_source(config: ConfigDict, name: str, **keys: Any) -> None:
    """Add a source to the mixture that a recipe trains on: data.sources.NAME (--help-config).

    keys: what it has of its own; what it leaves out is as in the section data, and can be given on the command line.
    Raises UserError for a name that is taken or that no source can have, and for a key that sources do not have.
    """
    require_source(name, keys)
    data: Any = config.data
    if name in data.get("sources", ()):
        raise UserError(f"The recipe adds the source {name!r} twice.\nGive {SOURCES}{name} another name.")
    left_out = {field: config_dict.placeholder(key.type) for field, key in SOURCE_KEYS.items() if field not in keys}
    with config.unlocked():
        if "sources" not in data:
            data.sources = ConfigDict()
        data.sources[name] = ConfigDict(keys | left_out)


def get_config() -> ConfigDict:
    """Return the locked configuration that every recipe starts from."""
    return ConfigDict(nested(defaults())).lock()

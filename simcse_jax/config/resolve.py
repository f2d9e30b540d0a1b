"""Turn a recipe into a checked `Config`, once, before any device work."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from simcse_jax.config.checks import one_duration, require_consistent, typed_values
from simcse_jax.config.layout import with_layout
from simcse_jax.config.schema import SECTIONS, Config, nested
from simcse_jax.system.errors import UserError


def resolve(recipe: Any, overridden: Collection[str], devices: int, x64: bool = False, processes: int = 1) -> Config:
    """Return the checked config of a run on `devices` visible devices of all `processes` together.

    recipe: a ConfigDict or nested mapping with the sections of the schema; overridden: full names of the keys that the
    command line gave; x64: whether JAX computes with 64 bits. Raises UserError with the key, its value, the limit and
    a value that works.
    """
    values = one_duration(typed_values(recipe), overridden)
    config = Config(**{section: SECTIONS[section](**fields) for section, fields in nested(values).items()})
    require_consistent(config)
    if config.model.dtype == "float64" and not x64:
        raise UserError("model.dtype = 'float64' needs JAX's 64-bit mode.\nSet JAX_ENABLE_X64=1, or use float32.")
    return with_layout(config, devices, processes)

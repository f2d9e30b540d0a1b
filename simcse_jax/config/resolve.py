"""Turn a recipe into a checked `Config`, once, before any device work."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from simcse_jax.config.checks import require, require_consistent
from simcse_jax.config.layout import with_layout
from simcse_jax.config.schema import (
    KEYS,
    SECTIONS,
    SOURCE_KEYS,
    SOURCES,
    Config,
    SourceConfig,
    find_key,
    nested,
)
from simcse_jax.config.sections.run import DURATIONS
from simcse_jax.config.sources import require_source
from simcse_jax.system.errors import UserError
from simcse_jax.system.import_path import is_import_path


def resolve(
    recipe: Any,
    overridden: Collection[str],
    devices: int,
    x64: bool = False,
    processes: int = 1,
    needs_data: bool = True,
) -> Config:
    """Return the checked config of a run on `devices` visible devices of all `processes` together.

    recipe: a ConfigDict or nested mapping with the sections of the schema; overridden: full names of the keys that the
    command line gave; x64: whether JAX computes with 64 bits; needs_data: refuse a recipe without data. Raises
    UserError with the key, its value, the limit and a value that works.
    """
    values = _one_duration(_typed_values(recipe), overridden)
    config = Config(**{section: SECTIONS[section](**fields) for section, fields in nested(values).items()})
    config = dataclasses.replace(config, sources=_read_sources(recipe["data"].get("sources") or {}, config))
    require_consistent(config, needs_data)
    if config.model.dtype == "float64" and not x64:
        raise UserError("model.dtype = 'float64' needs JAX's 64-bit mode.\nSet JAX_ENABLE_X64=1, or use float32.")
    return with_layout(config, devices, processes)


def require_in_range(name: str, value: Any) -> None:
    """Raise UserError for a value outside the range that the key declares."""
    key = find_key(name)
    assert key is not None
    if key.add_own and is_import_path(value):
        key.add_own(value)
    require(key.allows(value), name, value, key.limit, key.example)


def _typed_values(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return every key of the recipe by its full name, of its declared type and in its range; UserError otherwise.

    A float may be given as an integer. A key that the recipe leaves out has its default.
    """
    values = {name: key.default for name, key in KEYS.items()}
    for section in SECTIONS:
        for field, value in recipe[section].items():
            name = f"{section}.{field}"
            if name == "data.sources":  # see `read_sources`
                continue
            if name not in KEYS:
                known = ", ".join(key for key in KEYS if key.startswith(f"{section}."))
                raise UserError(f"{name} is no key of a recipe.\nKeys of {section}: {known}.")
            values[name] = _typed(name, value)
    return values


def _typed(name: str, value: Any) -> Any:
    """Return the value of a key, of its declared type and in its range; UserError otherwise."""
    key = find_key(name)
    assert key is not None
    value = float(value) if key.type is float and type(value) is int else value
    if type(value) is not key.type:
        raise UserError(f"{name} = {value!r} is of type {type(value).__name__}; it takes {key.type.__name__}.")
    require_in_range(name, value)
    return value


def _read_sources(given: Mapping[str, Mapping[str, Any]], config: Config) -> tuple[SourceConfig, ...]:
    """Return the sources that a recipe names, in the order of their names; UserError for a wrong name, key or value.

    config: the whole run's, of which a source has every key that it leaves out, or gives as None.
    """
    found = []
    for name in sorted(given):
        require_source(name, given[name])
        own = {field: value for field, value in given[name].items() if value is not None}
        values = {field: _typed(f"{SOURCES}{name}.{field}", value) for field, value in own.items()}
        weight, dev = (values.pop(field, SOURCE_KEYS[field].default) for field in ("weight", "dev"))
        loss = values.pop("loss", config.objective.loss)
        found.append(SourceConfig(name, weight, dataclasses.replace(config.data, **values), loss, dev))
    return tuple(found)


def _one_duration(values: Mapping[str, Any], overridden: Collection[str]) -> dict[str, Any]:
    """Return the values with one duration above 0: one on the command line replaces the recipe's, of any unit.

    overridden: the full names of the keys on the command line.
    """
    names = [f"train.{unit}" for unit in DURATIONS]
    given = [name for name in names if name in overridden and values[name]]
    chosen = given or [name for name in names if values[name]]
    if len(chosen) != 1:
        listed = ", ".join(f"{name} = {values[name]}" for name in names)
        raise UserError(
            f"Exactly one duration must be above 0, and {len(chosen)} are: {listed}.\nGive one of them, for example "
            "--config.train.epochs=1."
        )
    return {**values, **{name: KEYS[name].type(0) for name in names if name != chosen[0]}}

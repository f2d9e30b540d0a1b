"""Say what the keys of a recipe are within each source of a mixture, data.sources.NAME."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from simcse_jax.config.schema import SOURCE_DATA, SOURCE_KEYS, SOURCES
from simcse_jax.system.errors import UserError

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)  # a part of a flag and of a metric's name
_OWN = re.compile(rf"\bdata\.({'|'.join(SOURCE_DATA)})\b|\bobjective\.(loss)\b")


def require_source(name: str, given: Mapping[str, Any]) -> None:
    """Raise UserError for a name that no source can have, and for keys that sources do not have."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{SOURCES}{name}: the name of a source is a letter, then letters, digits and _, as a part of flags and "
            "metrics."
        )
    for field in given:
        if field not in SOURCE_KEYS:
            raise UserError(
                f"{SOURCES}{name}.{field} is no key of a source.\nKeys of a source: {', '.join(SOURCE_KEYS)}. All "
                f"others are those of the whole run, such as data.max_length."
            )


@contextmanager
def about_source(name: str) -> Iterator[None]:
    """Let a UserError raised within name the keys of this source, where it names those of the section; "": none."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        message = _OWN.sub(lambda found: f"{SOURCES}{name}.{found[1] or found[2]}", str(error))
        raise UserError(message if f"{SOURCES}{name}" in message else f"{SOURCES}{name}: {message}") from error


def within_sources(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all keys as each source with a weight has them; [values] without sources.

    values: by full name, as `Config.flat` returns them.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for key in values:
        if key.startswith(SOURCES):
            name, _, field = key.removeprefix(SOURCES).partition(".")
            by_name.setdefault(name, {})[field] = values[key]
    plain = {key: value for key, value in values.items() if not key.startswith(SOURCES)}
    own = [fields for fields in by_name.values() if fields.get("weight", 1.0)]
    each = [{section_key(field): value for field, value in fields.items() if section_key(field)} for fields in own]
    return [plain | fields for fields in each] or [plain]


def section_key(field: str) -> str:
    """Return the key of the whole run that a source has where it leaves its own out; "" for none."""
    return "objective.loss" if field == "loss" else f"data.{field}" if field in SOURCE_DATA else ""


def section_value(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a key, None where there is none; what a source leaves out is as in the section."""
    if name in values or not name.startswith(SOURCES):
        return values.get(name)
    source, _, field = name.removeprefix(SOURCES).partition(".")
    return values.get(section_key(field)) if f"{SOURCES}{source}.weight" in values else None


def source_values(recipe: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return the value of data.sources.NAME.FIELD of each source that has its own, by NAME."""
    own = {key.removeprefix(SOURCES): value for key, value in recipe.items() if key.startswith(SOURCES)}
    return {key.removesuffix(f".{field}"): value for key, value in own.items() if key.endswith(f".{field}")}


def flat_sections(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys of a recipe's sections by full name, with those that its sources give."""
    found = {}
    for section, keys in sections.items():
        for field, value in keys.items():
            if f"{section}.{field}." != SOURCES:
                found[f"{section}.{field}"] = value
                continue
            for name, own in value.items():
                found |= {f"{SOURCES}{name}.{key}": given for key, given in own.items() if given is not None}
    return found

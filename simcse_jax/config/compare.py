"""Compare recipes: keys that have no effect, and differences that change the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simcse_jax.config.keys import Key
from simcse_jax.config.schema import KEYS, defaults, resumable
from simcse_jax.config.sources import section_value, within_sources


def idle_keys(values: Mapping[str, Any]) -> list[str]:
    """Return the keys that differ from their defaults and have no effect beside the other values.

    values: every key by its full name. With sources, a key has no effect if it has none within any of them.
    """
    each = within_sources(values)
    return [
        key.name
        for key in KEYS.values()
        if values[key.name] != key.default and all(_idle_because_of(key, own) is not None for own in each)
    ]


def idle_message(name: str, values: Mapping[str, Any]) -> str:
    """Return why a key is idle, and how to change that."""
    key = KEYS[name]
    found = _idle_because_of(key, values)
    assert found is not None
    other, effective = found
    first, *more = effective or (KEYS[other].example or True,)
    or_one_of = f" (or {', '.join(map(str, more))})" if more else ""
    return (
        f"{name} = {values[name]!r} has no effect with {other} = {values[other]!r}.\n"
        f"Leave it out (--config.{name}={key.default}), or use --config.{other}={first}{or_one_of}."
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ and change what is trained, each with both values.

    Arguments are from `Config.flat`, `old` possibly of an earlier version. Keys that had no effect in the old recipe do
    not count: earlier versions did not refuse all of them.
    """
    idle = idle_keys(defaults() | dict(old)) if old else []
    names = old.keys() | new.keys()
    names = sorted(names - resumable(names) - {*idle})
    both = {name: (section_value(old, name), section_value(new, name)) for name in names}
    return {name: (before, now) for name, (before, now) in both.items() if before != now}


def _idle_because_of(key: Key, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...] | None] | None:
    """Return the first other key that leaves this one without effect, and its values with which it has one."""
    for other, effective in key.effects():
        if not values[other] if effective is None else values[other] not in effective:
            return other, effective
    return None

"""Declare a key of a recipe: its default, range and meaning, and when it has an effect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, get_type_hints

Value = TypeVar("Value")
_DECLARED = "key"  # the name of a declaration in a dataclass field's metadata
_UNSET = object()


class When(NamedTuple):
    """Say that a key has an effect only with some values of another key.

    values: those values; a function from the first key's full name to them, where other rooms' tables decide; or None
    for every value but "", 0 and False.
    """

    other: str
    values: tuple[Any, ...] | Callable[[str], Iterable[Any]] | None = None


class Key(NamedTuple):
    """Hold the declaration of one key. `key` documents the fields that a declaration gives."""

    name: str  # in full: "objective.temperature"
    type: type
    default: Any
    meaning: str
    at_least: float | None
    above: float | None
    below: float | None
    also: tuple[Any, ...]
    one_of: tuple[Any, ...] | Callable[[], Iterable[Any]]
    effective: tuple[When, ...]
    layout: bool
    resumable: bool
    local: bool
    example: Any

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only allowed values; () where a range, or nothing, limits them."""
        return tuple(self.one_of() if callable(self.one_of) else self.one_of)

    @property
    def limit(self) -> str:
        """The allowed values in words, "at least 0 and below 1" for example; "" where every value is allowed."""
        if self.choices:
            named = [f"{choice}" if choice != "" else "empty" for choice in self.choices]
            return f"one of {', '.join(named)}"
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (("at least", self.at_least), ("above", self.above), ("below", self.below))
            if bound is not None
        ]
        if self.type is float and self.below is None:
            bounds.append("finite")
        return " and ".join(bounds) + "".join(f", or {value}" for value in self.also)

    def allows(self, value: Any) -> bool:
        """Return whether a value of the right type is within the limit."""
        if self.choices:
            return value in self.choices
        if self.type not in (int, float) or value in self.also:
            return True
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def effects(self) -> list[tuple[str, tuple[Any, ...] | None]]:
        """Return (other key, its values with which this one has an effect; None = any but "", 0 and False)."""
        return [(other, tuple(values(self.name)) if callable(values) else values) for other, values in self.effective]


def key(
    default: Value,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: tuple[Value, ...] = (),
    one_of: tuple[Value, ...] | Callable[[], Iterable[Value]] = (),
    effective: When | tuple[When, ...] = (),
    layout: bool = False,
    resumable: bool = False,
    local: bool = False,
    example: Any = _UNSET,
) -> Value:
    """Return the dataclass field that declares a key. Its type is the field's annotation.

    meaning: its text in --help-config.
    at_least, above, below: the range of a number, floats finite; also: allowed values outside the range.
    one_of: the allowed values, or a function that returns them.
    effective: other keys that must all have one of some values, or this key has no effect.
    layout: it changes speed and memory, and no result.
    resumable: it changes no step of the training, so a run may resume with another value; layout keys may too.
    local: a path, which the hosts of one run may each have another of.
    example: a value that works, for messages; the default where left out.
    """
    declared = {
        "meaning": " ".join(meaning.split()),
        "at_least": at_least,
        "above": above,
        "below": below,
        "also": also,
        "one_of": one_of,
        "effective": (effective,) if isinstance(effective, When) else effective,
        "layout": layout,
        "resumable": resumable or layout,
        "local": local,
        "example": default if example is _UNSET else example,
    }
    field: Any = dataclasses.field(default=default, metadata={_DECLARED: declared})
    return field


def section_keys(name: str, section: Any) -> list[Key]:
    """Return the keys that a dataclass declares, in order; name: the section's."""
    types = get_type_hints(section)
    return [
        Key(f"{name}.{field.name}", types[field.name], field.default, **field.metadata[_DECLARED])
        for field in dataclasses.fields(section)
    ]

"""Declare a key of a recipe: its default, range and meaning, and when it has an effect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, get_type_hints

Value = TypeVar("Value")


class When(NamedTuple):
    """Say that a key has an effect only with some values of another key.

    values: those values; a function from the first key's full name to them, where other rooms' tables decide; or None
    for every value but "", 0 and False.
    """

    other: str
    values: tuple[Any, ...] | Callable[[str], Iterable[Any]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """Hold the declaration of one key."""

    default: Any
    meaning: str  # its text in --help-config
    # The range of a number, floats finite, and allowed values outside the range.
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[Any, ...] = ()
    one_of: tuple[Any, ...] | Callable[[], Iterable[Any]] = ()  # the allowed values, or a function that returns them
    add_own: Callable[[str], None] | None = None  # makes what MODULE:NAME names, the user's own, an allowed value
    form: str = ""  # such as run:DIR: what begins like this, up to the colon, is an allowed value as well
    effective: When | tuple[When, ...] = ()  # other keys that must all have one of some values, or it has no effect
    layout: bool = False  # it changes speed and memory, and no result
    resumable: bool = False  # it changes no step of the training, so a run may resume with another value, as of layout
    local: bool = False  # a path, which the hosts of one run may each have another of
    example: Any  # a value that works, for messages; the default where none is declared
    name: str = ""  # in full: "objective.temperature"
    type: type = str

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only allowed values; () where a range, or nothing, limits them."""
        return tuple(self.one_of() if callable(self.one_of) else self.one_of)

    @property
    def limit(self) -> str:
        """The allowed values in words, "at least 0 and below 1" for example; "" where every value is allowed."""
        if self.choices:
            own = ", or MODULE:NAME of your own" if self.add_own else f", or {self.form}" if self.form else ""
            return f"one of {', '.join(f'{choice}' if choice != '' else 'empty' for choice in self.choices)}{own}"
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
            start, colon, _ = self.form.partition(":")
            return value in self.choices or (bool(colon) and value.startswith(start + colon))
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
        conditions = (self.effective,) if isinstance(self.effective, When) else self.effective
        return [(other, tuple(values(self.name)) if callable(values) else values) for other, values in conditions]


def key(default: Value, meaning: str, **declared: Any) -> Value:
    """Return the dataclass field that declares a key. Its type is the field's annotation; declared: fields of `Key`."""
    declared.setdefault("example", default)
    made = Key(default=default, meaning=" ".join(meaning.split()), **declared)
    field: Any = dataclasses.field(default=default, metadata={"key": made})
    return field


def section_keys(name: str, section: Any) -> list[Key]:
    """Return the keys that a dataclass declares, in order; name: the section's."""
    types = get_type_hints(section)
    return [
        dataclasses.replace(field.metadata["key"], name=f"{name}.{field.name}", type=types[field.name])
        for field in dataclasses.fields(section)
    ]


def split_list(value: str) -> list[str]:
    """Return the parts of a comma-separated value, such as that of data.files."""
    return [part.strip() for part in value.split(",") if part.strip()]


def parse_numbers(value: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated value, such as that of model.keep_layers."""
    return tuple(map(int, split_list(value)))

"""Split what names a user's own data into the place and its options: `FILE:score=COLUMN,split=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simcse_jax.system.errors import UserError


def split_options(source: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the place and the options after its last colon; UserError for an option that is not known, or empty."""
    place, _, words = source.rpartition(":")
    if not place or "=" not in words or "/" in words or Path(source).expanduser().exists():
        return source, {}
    return place, parse_options(source, words, known)


def parse_options(source: str, words: str, known: Sequence[str]) -> dict[str, str]:
    """Return the options in "key=value,key=value"; source: for messages."""
    options = {key: value for key, _, value in (word.partition("=") for word in words.split(","))}
    for key, value in options.items():
        if key not in known or not value:
            raise UserError(f"{source}: {key}={value} is no option; known: {', '.join(f'{k}=...' for k in known)}.")
    return options

"""A stream in blocks."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last perhaps shorter; no more than one is held."""
    stream = iter(items)
    while block := list(itertools.islice(stream, size)):
        yield block

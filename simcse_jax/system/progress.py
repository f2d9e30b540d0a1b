"""How far an encoding is, on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[int], object]  # told how many sentences more are done


def progress_bar(total: int | None, shown: bool) -> tqdm:
    """A bar of sentences, gone when it is done; its `update` is a `Progress`. total: None where nobody knows."""
    return tqdm(total=total, unit=" sentences", desc="encoding", leave=False, disable=not shown)

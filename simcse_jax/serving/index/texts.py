"""The texts of an index: one blob of UTF-8 and where each text ends, memory-mapped from files, appended in memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simcse_jax.serving.index.vectors import open_array

# Half a surrogate pair is no UTF-8, but Python strings hold it (from JSON escapes), and it has to come back as it was.
_ERRORS = "surrogatepass"


class Texts:
    """N texts by their places, 0 to N - 1."""

    def __init__(self) -> None:
        self._mapped = np.zeros(0, np.uint8)  # the blob of the file
        self._mapped_ends = np.zeros(0, np.int64)  # int64[n]: where each of its texts ends
        self._blob = bytearray()
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self._mapped_ends) + len(self._ends)

    def append(self, texts: Sequence[str]) -> None:
        """Keep these texts behind what is there."""
        for text in texts:
            self._blob += text.encode("utf-8", _ERRORS)
            self._ends.append(len(self._blob))

    def __getitem__(self, place: int) -> str:
        return self._bytes(place).decode("utf-8", _ERRORS)

    def _bytes(self, place: int) -> bytes:
        mapped = len(self._mapped_ends)
        blob, ends, n = (
            (self._mapped, self._mapped_ends, place) if place < mapped else (self._blob, self._ends, place - mapped)
        )
        return bytes(blob[ends[n - 1] if n else 0 : ends[n]])

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write the kept texts, bool[N], as `texts.bin` and `ends.npy`."""
        ends, size = array("q"), 0
        with (folder / "texts.bin").open("wb") as file:
            for place in np.flatnonzero(kept).tolist():
                size += file.write(self._bytes(place))
                ends.append(size)
        np.save(folder / "ends.npy", np.array(ends, np.int64))


def open_texts(folder: Path, count: int) -> Texts:
    """What `Texts.write` wrote there, memory-mapped; ValueError or OSError where it is something else."""
    texts = Texts()
    texts._mapped_ends = open_array(folder / "ends.npy", np.dtype(np.int64), (count,))
    path = folder / "texts.bin"
    size = path.stat().st_size
    if size:  # an empty file cannot be mapped
        texts._mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))
    if (int(texts._mapped_ends[-1]) if count else 0) != size:
        raise ValueError(f"{path.name} has {size} bytes, which is not where its last text ends")
    return texts

"""Search by the signs of features: the fewest that differ give candidates, which the stored vectors score.

A code has one bit for each feature, 1 where it is above 0, so it takes 1/32 of a float32 vector, and comparing two
codes is an exclusive or and a count of bits. Codes stay in memory, or mapped; of the vectors themselves only the rows
of candidates are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simcse_jax.serving.index.exact import ExactSearch
from simcse_jax.serving.index.rescoring import FEWEST, rescored
from simcse_jax.serving.index.rows import BLOCK, Codes, Vectors, open_codes

SMALLEST = 10_000  # rows; with fewer, exact search takes milliseconds
OVERSAMPLED = 25  # candidates for each result


class BinarySearch:
    """Find nearly all of the nearest rows of `vectors` by the signs of their features."""

    def __init__(self, vectors: Vectors):
        self._vectors = vectors
        self._hold(Codes(words(vectors.width)))
        self._alive = np.zeros(0, bool)

    def _hold(self, codes: Codes) -> None:
        self._codes = codes
        self._search = ExactSearch(codes)

    def prepare(self, alive: np.ndarray) -> bool:
        """Add the codes of new rows; call this after each change.

        alive: bool[N], false for removed rows. Returns whether `nearest` may be called: False with too few rows.
        """
        self._alive = alive.copy()
        if np.count_nonzero(alive) < SMALLEST:
            return False
        for at in range(len(self._codes), len(alive), BLOCK):
            self._codes.append(signs(self._vectors.rows(np.arange(at, min(at + BLOCK, len(alive))))))
        return True

    def nearest(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search as `ExactSearch.nearest` does, in the state of the last `prepare`; some of the best may be missing."""
        wanted = min(max(OVERSAMPLED * top_k, FEWEST), int(np.count_nonzero(self._alive)))

        def find(some: np.ndarray) -> np.ndarray:
            return self._search.nearest(signs(some), self._alive, wanted)[1]

        return rescored(self._vectors, queries, top_k, wanted, find)

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write the codes where `kept`, bool[N], is true as `codes.npy`, if there are any for all rows."""
        if len(self._codes) == len(kept) and len(kept):
            self._codes.write(folder, kept)

    def read(self, folder: Path) -> None:
        """Map what `write` wrote there, if anything; raises ValueError or OSError if the file does not hold that."""
        if (folder / "codes.npy").exists():
            self._hold(open_codes(folder, words(self._vectors.width), len(self._vectors)))


def words(width: int) -> int:
    """Return the number of uint32 that hold a bit for each feature."""
    return -(-width // 32)


def signs(vectors: np.ndarray) -> np.ndarray:
    """Return the codes of float32[n, D] as uint32[n, words]; the bits after the last feature are 0."""
    bits = np.packbits(vectors > 0, axis=1, bitorder="little")
    out = np.zeros((len(vectors), 4 * words(vectors.shape[1])), np.uint8)
    out[:, : bits.shape[1]] = bits
    return out.view("<u4").astype(np.uint32, copy=False)

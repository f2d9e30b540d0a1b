"""Keep a teacher's vector of each text, found by the text's hash, in memory-mapped files.

A folder is complete once it has its name. Until then it is called NAME.partial, and knows which vectors it holds, so a
stopped command goes on where it was.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from simcse_jax.data.tokenise import text_hashes
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.vectors import check_vectors, normalize
from simcse_jax.system.whole_file import to_disk, writing

SAMPLE = 50_000  # vectors that decide which axes are kept
_HASHES, _VECTORS, _DONE = "hashes.npy", "vectors.npy", "done.npy"

Missing = Callable[[Sequence[str]], np.ndarray]  # texts -> bool[n]: which lack a vector, equal texts once


class VectorSource(Protocol):
    """Hold what gives texts their vectors: a model, or files of vectors."""

    name: str
    width: int

    @property
    def fingerprint(self) -> str:
        """Return a digest, equal for sources that give equal texts equal vectors."""
        ...

    def blocks(self, missing: Missing) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield texts that are missing, and their vectors float[n, width]; each block is kept before the next."""
        ...


class TextVectors:
    """Hold the vectors of U texts, of length 1, by the hash of each text."""

    def __init__(self, folder: Path, fingerprint: str):
        """fingerprint: that of their source."""
        self.fingerprint = fingerprint
        self._hashes: np.ndarray = np.load(folder / _HASHES)  # uint64[U], ascending
        self._vectors: np.ndarray = np.load(folder / _VECTORS, mmap_mode="r")  # float16[U, D]
        self._axes: np.ndarray | None = None  # float64[D, width]: what the vectors are reduced to

    def reduced(self, width: int) -> TextVectors:
        """Return the same vectors with `width` features, in which their products stay as near as they can.

        These are the first axes of a singular value decomposition, without centring, of SAMPLE of the vectors, spread
        over all. Vectors are then no longer of length 1. 0: as they are.
        """
        if not width:
            return self
        if width > self.width:
            raise UserError(
                f"teacher.width = {width}, and the teacher's vectors have {self.width} features.\n"
                f"Use --config.teacher.width={self.width} or less."
            )
        some = self._vectors[:: max(len(self) // SAMPLE, 1)].astype(np.float64)
        _, axes = np.linalg.eigh(some.T @ some)  # ascending
        axes = axes[:, : -width - 1 : -1]
        signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(width)])  # else a matter of the library
        found = copy.copy(self)
        found._axes = axes * signs
        return found

    @property
    def width(self) -> int:
        """Return the number of features."""
        return (self._vectors if self._axes is None else self._axes).shape[1]

    def __len__(self) -> int:
        return len(self._hashes)

    def __call__(self, hashes: np.ndarray) -> np.ndarray:
        """Return float32[..., width], the vectors of texts by their hashes uint64[...]; zeros for a missing text."""
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        is_there = self._hashes[places] == hashes
        assert (is_there | (hashes == 0)).all(), "every text of the corpus has a vector"
        found = np.where(is_there[..., None], self._vectors[places], np.float16(0))
        if self._axes is not None:  # in float64, as a product in float32 differs with the number of rows
            found = found.astype(np.float64) @ self._axes
        return found.astype(np.float32)


def wanted_texts(hashes: np.ndarray) -> np.ndarray:
    """Return uint64[U], ascending: the hashes of the texts, each once, without the 0 of a missing one."""
    found = np.unique(hashes)
    return found[found != 0]


def write_text_vectors(folder: Path, wanted: np.ndarray, source: VectorSource) -> None:
    """Write the vectors of the wanted texts into a folder, a block at a time, after those that are there already.

    wanted: see `wanted_texts`. Raises UserError where the source lacks a wanted text, or a vector is not finite. One
    process at a time.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(partial, "Free some space, or set SIMCSE_CACHE to a folder elsewhere."):
        lacking = _fill(partial, wanted, source)
        if lacking:
            shutil.rmtree(partial)
            raise UserError(
                f"{source.name} holds no vector of {lacking:,} of the {len(wanted):,} texts of the data.\nGive vectors "
                "of the same texts, such as `embed` writes of each column, several files separated by commas; or the "
                "model itself."
            )
        (partial / _DONE).unlink()
        for name in (_HASHES, _VECTORS):
            to_disk(partial / name)
        os.replace(partial, folder)


def _fill(partial: Path, wanted: np.ndarray, source: VectorSource) -> int:
    """Write what the source has of the wanted texts; return how many are lacking."""
    vectors, done = _opened(partial, wanted, source.width)

    def missing(texts: Sequence[str]) -> np.ndarray:
        hashes = text_hashes(texts)
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        found = np.zeros(len(texts), bool)
        found[np.unique(hashes, return_index=True)[1]] = True
        return found & (wanted[places] == hashes) & ~done[places]

    with progress_bar(len(wanted), what=f"vectors of {source.name}", unit="texts", done=int(done.sum())) as bar:
        for texts, block in source.blocks(missing):
            places = np.searchsorted(wanted, text_hashes(texts))
            vectors[places] = normalize(check_vectors(np.asarray(block), texts, source.name, zeros=True))
            vectors.flush()  # before they are marked as done
            done[places] = True
            bar.update(len(texts))
    return int(np.count_nonzero(~done))


def _opened(partial: Path, wanted: np.ndarray, width: int) -> tuple[np.memmap, np.memmap]:
    """Return the vectors float16[U, D] and which are there bool[U], of a folder that is made if need be."""
    if not (partial / _HASHES).exists():  # it is written last
        partial.mkdir(exist_ok=True)
        np.lib.format.open_memmap(partial / _VECTORS, "w+", np.float16, (len(wanted), width)).flush()
        np.lib.format.open_memmap(partial / _DONE, "w+", bool, (len(wanted),)).flush()
        np.save(partial / _HASHES, wanted)
    return np.lib.format.open_memmap(partial / _VECTORS, "r+"), np.lib.format.open_memmap(partial / _DONE, "r+")

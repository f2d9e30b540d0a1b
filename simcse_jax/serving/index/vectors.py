"""Stored vectors: rows of float32, float16 or int8 in blocks, in memory or memory-mapped from a file.

All blocks have the same number of rows, so that a search compiles for one shape. Of a file, full blocks stay
mapped; its last rows are copied into memory, where appending goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from simcse_jax.system.errors import UserError

STORAGES = ("float32", "float16", "int8")
BLOCK = 16384  # rows of a block: their scores for 100 queries still lie in a CPU's cache
ALIGNMENT = 64  # bytes; from there XLA on a CPU reads an array where it is, without a copy
_LARGEST = 127  # of int8, symmetric


class Block(NamedTuple):
    """The rows of one block as they are stored; those not filled yet are zeros."""

    rows: np.ndarray  # the storage's type [BLOCK, D]
    scales: np.ndarray | None  # float32[BLOCK] of int8: a row is rows * scale


class Vectors:
    """N vectors of `width` features, in one of STORAGES."""

    def __init__(self, width: int, storage: str = "float32"):
        if storage not in STORAGES:
            raise UserError(f"Unknown storage {storage!r}; known: {', '.join(STORAGES)}.")
        self.width, self.storage = width, storage
        self.blocks: list[Block] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, vectors: np.ndarray) -> None:
        """Store float32[n, D] behind what is there."""
        for at in range(0, len(vectors), BLOCK):
            some = vectors[at : at + BLOCK]
            if self.storage == "int8":
                scales = np.maximum(np.abs(some).max(axis=1), np.finfo(np.float32).tiny) / np.float32(_LARGEST)
                self._append(np.rint(some / scales[:, None]).astype(np.int8), scales)
            else:
                self._append(some.astype(self.storage, copy=False), None)

    def _append(self, rows: np.ndarray, scales: np.ndarray | None) -> None:
        done = 0
        while done < len(rows):
            at = self._count % BLOCK
            if at == 0:
                self.blocks.append(self._empty_block())
            n = min(BLOCK - at, len(rows) - done)
            block = self.blocks[-1]
            block.rows[at : at + n] = rows[done : done + n]
            if block.scales is not None and scales is not None:
                block.scales[at : at + n] = scales[done : done + n]
            self._count, done = self._count + n, done + n

    def _empty_block(self) -> Block:
        scales = _zeros((BLOCK,), np.dtype(np.float32)) if self.storage == "int8" else None
        return Block(_zeros((BLOCK, self.width), np.dtype(self.storage)), scales)

    def rows(self, places: np.ndarray) -> np.ndarray:
        """float32[n, D]: the vectors at these places, int64[n], as they are stored."""
        out = np.empty((len(places), self.width), np.float32)
        blocks, within = np.divmod(places, BLOCK)
        for b in np.unique(blocks):
            here, block = blocks == b, self.blocks[b]
            out[here] = block.rows[within[here]]
            if block.scales is not None:
                out[here] *= block.scales[within[here], None]
        return out

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write the kept rows, bool[N], as `vectors.npy` (and `scales.npy`), block by block."""
        count = int(np.count_nonzero(kept))
        with (folder / "vectors.npy").open("wb") as file:
            _write_header(file, np.dtype(self.storage), (count, self.width))
            for b, block in enumerate(self.blocks):
                some = kept[b * BLOCK : (b + 1) * BLOCK]
                file.write(np.ascontiguousarray(block.rows[: len(some)][some]).data)
        if self.storage == "int8":
            parts = [block.scales for block in self.blocks if block.scales is not None]
            scales = np.concatenate([*parts, np.zeros(0, np.float32)])
            np.save(folder / "scales.npy", scales[: len(kept)][kept])


def open_vectors(folder: Path, width: int, storage: str, count: int) -> Vectors:
    """What `Vectors.write` wrote there, memory-mapped; ValueError or OSError where it is something else."""
    vectors = Vectors(width, storage)
    rows = open_array(folder / "vectors.npy", np.dtype(storage), (count, width))
    scales = open_array(folder / "scales.npy", np.dtype(np.float32), (count,)) if storage == "int8" else None
    full = count - count % BLOCK
    for start in range(0, full, BLOCK):
        some = slice(start, start + BLOCK)
        vectors.blocks.append(Block(rows[some], None if scales is None else scales[some]))
    vectors._count = full
    vectors._append(rows[full:], None if scales is None else scales[full:])
    return vectors


def open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A .npy file, memory-mapped; ValueError or OSError unless it holds just that."""
    array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {array.dtype}{list(array.shape)}, not {dtype}{list(shape)}")
    return array


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at a multiple of ALIGNMENT; memory is taken only where rows are filled in."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _write_header(file: object, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """The head of a .npy file; NumPy pads it to a multiple of ALIGNMENT, so mapped rows are aligned too."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # pyright: ignore[reportArgumentType]

"""Hold the rows of an index: vectors or codes in blocks, texts in one blob, in memory or memory-mapped from files.

Vectors are float32, float16 or int8. All blocks have the same number of rows, so that a search compiles for one shape.
Full blocks of a file stay mapped; its last rows are copied into memory, where new rows are appended.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simcse_jax.system.errors import UserError

STORAGES = ("float32", "float16", "int8")
BLOCK = 16384  # rows of a block: their scores for 100 queries still fit in a CPU's cache
ALIGNMENT = 64  # bytes; XLA on a CPU reads an array at such an address without a copy
_LARGEST = 127  # of int8, symmetric


class Block(NamedTuple):
    """Hold the stored rows of one block; rows that are not filled yet are zeros."""

    rows: np.ndarray  # [BLOCK, D] in the storage's type; codes: uint32[BLOCK, W]
    scales: np.ndarray | None  # float32[BLOCK], only of int8: a vector is its row times its scale


class Rows:
    """Store N rows of `width` numbers of one type, each with a scale if `scaled`."""

    def __init__(self, width: int, dtype: np.dtype, scaled: bool = False):
        self.width, self._dtype, self._scaled = width, dtype, scaled
        self.blocks: list[Block] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

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
        scales = _zeros((BLOCK,), np.dtype(np.float32)) if self._scaled else None
        return Block(_zeros((BLOCK, self.width), self._dtype), scales)

    def _write(self, path: Path, kept: np.ndarray) -> None:
        """Write the rows where `kept`, bool[N], is true as a .npy file."""
        with path.open("wb") as file:
            _write_header(file, self._dtype, (int(np.count_nonzero(kept)), self.width))
            for b, block in enumerate(self.blocks):
                some = kept[b * BLOCK : (b + 1) * BLOCK]
                file.write(np.ascontiguousarray(block.rows[: len(some)][some]).data)

    def _map(self, rows: np.ndarray, scales: np.ndarray | None) -> None:
        """Hold these rows, of a file, and no others."""
        full = len(rows) - len(rows) % BLOCK
        for start in range(0, full, BLOCK):
            some = slice(start, start + BLOCK)
            self.blocks.append(Block(rows[some], None if scales is None else scales[some]))
        self._count = full
        self._append(rows[full:], None if scales is None else scales[full:])


class Vectors(Rows):
    """Store N vectors of `width` features in one of STORAGES."""

    def __init__(self, width: int, storage: str = "float32"):
        if storage not in STORAGES:
            raise UserError(f"Unknown storage {storage!r}; known: {', '.join(STORAGES)}.")
        super().__init__(width, np.dtype(storage), scaled=storage == "int8")
        self.storage = storage

    def append(self, vectors: np.ndarray) -> None:
        """Append float32[n, D]."""
        for at in range(0, len(vectors), BLOCK):
            some = vectors[at : at + BLOCK]
            if self.storage == "int8":
                scales = np.maximum(np.abs(some).max(axis=1), np.finfo(np.float32).tiny) / np.float32(_LARGEST)
                self._append(np.rint(some / scales[:, None]).astype(np.int8), scales)
            else:
                self._append(some.astype(self.storage, copy=False), None)

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the stored vectors at these places, int64[n], as float32[n, D]."""
        out = np.empty((len(places), self.width), np.float32)
        blocks, within = np.divmod(places, BLOCK)
        for b in np.unique(blocks):
            here, block = blocks == b, self.blocks[b]
            out[here] = block.rows[within[here]]
            if block.scales is not None:
                out[here] *= block.scales[within[here], None]
        return out

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write the rows where `kept`, bool[N], is true as `vectors.npy` (int8: and `scales.npy`)."""
        self._write(folder / "vectors.npy", kept)
        if self.storage == "int8":
            parts = [block.scales for block in self.blocks if block.scales is not None]
            scales = np.concatenate([*parts, np.zeros(0, np.float32)])
            np.save(folder / "scales.npy", scales[: len(kept)][kept])


def open_vectors(folder: Path, width: int, storage: str, count: int) -> Vectors:
    """Memory-map what `Vectors.write` wrote there; raises ValueError or OSError if the files do not hold that."""
    vectors = Vectors(width, storage)
    rows = open_array(folder / "vectors.npy", np.dtype(storage), (count, width))
    scales = open_array(folder / "scales.npy", np.dtype(np.float32), (count,)) if storage == "int8" else None
    vectors._map(rows, scales)
    return vectors


class Codes(Rows):
    """Store N codes of `width` uint32, which have a bit for each feature; see `index.binary`."""

    def __init__(self, width: int):
        super().__init__(width, np.dtype(np.uint32))

    def append(self, codes: np.ndarray) -> None:
        """Append uint32[n, W]."""
        self._append(codes, None)

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write the codes where `kept`, bool[N], is true as `codes.npy`."""
        self._write(folder / "codes.npy", kept)


def open_codes(folder: Path, width: int, count: int) -> Codes:
    """Memory-map what `Codes.write` wrote there; raises ValueError or OSError if the file does not hold that."""
    codes = Codes(width)
    codes._map(open_array(folder / "codes.npy", np.dtype(np.uint32), (count, width)), None)
    return codes


class Texts:
    """Store N texts, numbered from 0."""

    def __init__(self) -> None:
        self._mapped = np.zeros(0, np.uint8)  # the texts of a file as UTF-8, one after the other
        self._mapped_ends = np.zeros(0, np.int64)  # int64[n]: where each of these texts ends
        self._blob = bytearray()  # the same of texts that were appended
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self._mapped_ends) + len(self._ends)

    def append(self, texts: Sequence[str]) -> None:
        """Append these texts."""
        for text in texts:
            self._blob += text.encode()
            self._ends.append(len(self._blob))

    def __getitem__(self, place: int) -> str:
        return self._bytes(place).decode("utf-8", "surrogatepass")  # indexes of earlier versions may hold half a pair

    def _bytes(self, place: int) -> bytes:
        mapped = len(self._mapped_ends)
        blob, ends, n = (
            (self._mapped, self._mapped_ends, place) if place < mapped else (self._blob, self._ends, place - mapped)
        )
        return bytes(blob[ends[n - 1] if n else 0 : ends[n]])

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write the texts where `kept`, bool[N], is true as `texts.bin` and `ends.npy`."""
        ends, size = array("q"), 0
        with (folder / "texts.bin").open("wb") as file:
            for place in np.flatnonzero(kept).tolist():
                size += file.write(self._bytes(place))
                ends.append(size)
        np.save(folder / "ends.npy", np.array(ends, np.int64))


def open_texts(folder: Path, count: int) -> Texts:
    """Memory-map what `Texts.write` wrote there; raises ValueError or OSError if the files do not hold that."""
    texts = Texts()
    texts._mapped_ends = open_array(folder / "ends.npy", np.dtype(np.int64), (count,))
    path = folder / "texts.bin"
    size = path.stat().st_size
    if size:  # an empty file cannot be mapped
        texts._mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))
    if (int(texts._mapped_ends[-1]) if count else 0) != size:
        raise ValueError(f"{path.name} has {size} bytes, but its last text ends elsewhere")
    return texts


def open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-map a .npy file; raises ValueError or OSError unless it has this type and shape."""
    array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {array.dtype}{list(array.shape)}, not {dtype}{list(shape)}")
    return array


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return zeros that begin at a multiple of ALIGNMENT; pages take memory only once they are written."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _write_header(file: object, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the head of a .npy file; NumPy pads it to a multiple of ALIGNMENT, so mapped rows are aligned too."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # pyright: ignore[reportArgumentType]

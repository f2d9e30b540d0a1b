"""Search approximately: faiss (HNSW or IVF-PQ) finds candidates, which are then scored from the stored vectors.

Rows are only added to faiss. A search skips removed rows. Once most rows are removed, or there are many more rows than
IVF-PQ was trained on, the faiss index is built anew.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.serving.index.rescoring import FEWEST, rescored
from simcse_jax.serving.index.rows import BLOCK, Vectors, open_array
from simcse_jax.system.errors import UserError

KINDS = ("hnsw", "ivfpq")
SMALLEST = 10_000  # rows; with fewer, exact search takes milliseconds and IVF-PQ cannot be trained well
LINKS = 32  # of each node of HNSW
BUILD_EFFORT = 80  # candidates examined when a node is linked (efConstruction)
SEARCH_EFFORT = 128  # candidates examined in a search (efSearch)
SPREAD = {"hnsw": 2, "ivfpq": 10}  # candidates for each result: the codes of PQ are coarse
LISTS_PROBED = 32
TRAINED_ON = 64  # vectors for one list of IVF
# PQ's k-means: faiss's own 25 rounds on 256 vectors a code take three times as long, and find no more (measured).
CODES, CODE_TRAINED_ON, CODE_ROUNDS = 256, 64, 10
OUTGROWN = 4  # IVF-PQ is trained anew at this many times the rows that it was trained on


def load_faiss() -> Any:
    """Import and return faiss; raises UserError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about SWIG's types, in some versions of Python
            import faiss
    except ImportError as error:
        raise UserError(
            f"The index kinds {' and '.join(KINDS)} need faiss, which is not installed ({error}).\n"
            'Install it with pip install faiss-cpu, or use kind="exact".'
        ) from error
    return faiss


class ApproximateSearch:
    """Find nearly all of the nearest rows of `vectors` with HNSW or IVF-PQ."""

    def __init__(self, kind: str, vectors: Vectors):
        self._faiss = load_faiss()
        self._kind, self._vectors = kind, vectors
        self._index: Any = None
        self._places = np.zeros(0, np.int64)  # the place of each row of faiss, in its order; -1 if no longer stored
        self._seen = 0  # places below this are in faiss, or were removed before they could be added
        self._chosen: Any = None  # faiss's selector of rows; None if no row is removed, which is faster
        self._bits = np.zeros(0, np.uint8)  # the memory that the selector points to

    def prepare(self, alive: np.ndarray) -> bool:
        """Add new rows to faiss, or build its index anew; call this after each change.

        alive: bool[N], false for removed rows. Returns whether `nearest` may be called: False with too few rows.
        """
        if np.count_nonzero(alive) < SMALLEST:
            return False
        held = _alive_at(self._places, alive)
        if (
            self._index is None
            or self._outgrown(int(np.count_nonzero(alive)))
            or 2 * np.count_nonzero(held) < len(held)
        ):
            self._index, self._places, self._seen = self._new(alive), np.zeros(0, np.int64), 0
        new = self._seen + np.flatnonzero(alive[self._seen :])
        for at in range(0, len(new), BLOCK):
            some = new[at : at + BLOCK]
            self._index.add(self._vectors.rows(some))
            self._places, self._seen = np.concatenate([self._places, some]), int(some[-1]) + 1
        self._seen = len(alive)
        held = _alive_at(self._places, alive)
        self._bits = np.packbits(held, bitorder="little")
        self._chosen = None if held.all() else self._faiss.IDSelectorBitmap(self._bits)
        return True

    def _outgrown(self, living: int) -> bool:
        """Return whether IVF has too few lists: it has the square root of the number of rows that it was trained on."""
        return self._kind == "ivfpq" and living > OUTGROWN * (self._index.nlist + 1) ** 2

    def _new(self, alive: np.ndarray) -> Any:
        """Return an empty faiss index; IVF-PQ is trained on a sample of the rows."""
        faiss, width = self._faiss, self._vectors.width
        if self._kind == "hnsw":
            # Half precision is enough for finding candidates, and takes half the memory.
            index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = BUILD_EFFORT
            return index
        rows = np.flatnonzero(alive)
        lists = math.isqrt(len(rows))
        # "np": no polysemous training, which takes most of the time and is only for a filter that is not used here.
        index = faiss.index_factory(width, f"IVF{lists},PQ{_parts(width)}x8np", faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = CODE_ROUNDS, CODE_TRAINED_ON
        sample = np.random.default_rng(0).permutation(rows)[: max(TRAINED_ON * lists, CODES * CODE_TRAINED_ON)]
        index.train(self._vectors.rows(np.sort(sample)))
        return index

    def nearest(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search as `ExactSearch.nearest` does, in the state of the last `prepare`; some of the best may be missing."""
        wanted = min(max(SPREAD[self._kind] * top_k, FEWEST), len(self._places))
        if self._kind == "hnsw":
            how = self._faiss.SearchParametersHNSW(sel=self._chosen, efSearch=max(SEARCH_EFFORT, wanted))
        else:
            how = self._faiss.SearchParametersIVF(sel=self._chosen, nprobe=LISTS_PROBED)

        def find(some: np.ndarray) -> np.ndarray:
            _, labels = self._index.search(some, wanted, params=how)
            return np.where(labels >= 0, self._places[labels], -1)

        return rescored(self._vectors, queries, top_k, wanted, find)

    def write(self, folder: Path, kept: np.ndarray) -> None:
        """Write `faiss.bin`, and `places.npy` with the places of its rows once only `kept`, bool[N], are stored."""
        if self._index is None or self._seen < len(kept):  # there are new rows, but too few in all for faiss
            return
        after = np.where(kept, np.cumsum(kept) - 1, -1)
        try:
            self._faiss.write_index(self._index, str(folder / "faiss.bin"))
        except RuntimeError as error:
            raise OSError(f"faiss.bin: {error}") from error
        np.save(folder / "places.npy", np.append(after, -1)[self._places])

    def read(self, folder: Path) -> None:
        """Read what `write` wrote there, if anything; raises ValueError or OSError if the files do not hold that."""
        if not (folder / "faiss.bin").exists():
            return
        try:
            index = self._faiss.read_index(str(folder / "faiss.bin"))
        except RuntimeError as error:
            raise ValueError(f"faiss.bin cannot be read: {error}") from error
        places = np.asarray(open_array(folder / "places.npy", np.dtype(np.int64), (index.ntotal,)))
        if index.d != self._vectors.width or places.max(initial=-1) >= len(self._vectors):
            raise ValueError("faiss.bin and places.npy do not belong to these vectors")
        self._index, self._places, self._seen = index, places, len(self._vectors)


def _alive_at(places: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Return a bool for each of these places: whether its row is alive; False for place -1."""
    return np.append(alive, False)[places]  # place -1 reads the appended False


def _parts(width: int) -> int:
    """Return the number of parts of a vector in PQ: of 4 features each, or of the next larger divisor of the width."""
    return next(width // size for size in range(min(4, width), width + 1) if width % size == 0)

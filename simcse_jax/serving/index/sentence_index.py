"""Keep texts with their vectors: add, remove, search, save and open again, memory-mapped."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simcse_jax.serving.index.approximate import KINDS as APPROXIMATE
from simcse_jax.serving.index.approximate import ApproximateSearch
from simcse_jax.serving.index.binary import BinarySearch
from simcse_jax.serving.index.exact import ExactSearch
from simcse_jax.serving.index.folder import (
    REBUILD,
    fingerprint_difference,
    read_record,
    whole_files,
    write_folder,
)
from simcse_jax.serving.index.rows import Texts, Vectors, open_array, open_texts, open_vectors
from simcse_jax.system.errors import UserError
from simcse_jax.system.texts import each_text

KINDS = ("exact", "binary", *APPROXIMATE)
LENGTH_ERROR = 1e-3  # largest difference of a vector's length from 1; bfloat16 models stay below
ROUNDING = {"float32": 2e-6, "float16": 1e-4, "int8": 1e-3}  # of a score, by the type of the stored vectors


class Hit(NamedTuple):
    """Hold one result: the text, its cosine with the query, and its id in the index."""

    text: str
    score: float
    id: int


class SentenceIndex:
    """Hold texts with vectors of length 1 under the ids 0, 1, 2, ...; an id is never used again after removal.

    width: D, the features of a vector. fingerprint: which model made the vectors (`folder.vector_fingerprint`); it is
    saved, and `open_index` compares it. kind: "exact"; or "binary", or "hnsw" or "ivfpq", which need faiss: these find
    nearly all of the best, score them from the stored vectors, and search exactly while there are fewer than 10,000
    texts. storage: "float32", "float16" or "int8" (with one scale for each vector). Raises UserError for unknown ones.
    Several threads may search at once, but not while another changes the index; an approximate index needs a call of
    `prepare` first.
    """

    def __init__(self, width: int, fingerprint: str, kind: str = "exact", storage: str = "float32"):
        if kind not in KINDS:
            raise UserError(f"Unknown kind of index {kind!r}; known: {', '.join(KINDS)}.")
        if operator.index(width) < 1:
            raise UserError(f"The width of an index is {width}; it is a number of features, 1 or more.")
        self.width, self.fingerprint, self.kind, self.storage = width, fingerprint, kind, storage
        self.prompt: str | None = None  # put before its texts when they were encoded; None for the model's own
        self._hold(Vectors(width, storage), Texts(), np.zeros(0, np.int64), 0)

    def _hold(self, vectors: Vectors, texts: Texts, ids: np.ndarray, next_id: int) -> None:
        self._vectors, self._texts = vectors, texts
        self._ids, self._next_id = ids, next_id  # int64[N], ascending: the id of each row
        self._alive = np.ones(len(ids), bool)  # removed rows stay in memory until the index is saved and opened
        self._exact = ExactSearch(vectors)
        self._approximate = BinarySearch(vectors) if self.kind == "binary" else None
        if self.kind in APPROXIMATE:
            self._approximate = ApproximateSearch(self.kind, vectors)
        self._changed = True  # since the approximate search was prepared
        self._ready = False  # whether the approximate search may be called

    def __repr__(self) -> str:
        return f"SentenceIndex({len(self):,} sentences, {self.kind}, {self.storage}, width {self.width})"

    def __len__(self) -> int:
        return int(np.count_nonzero(self._alive))

    def ids(self) -> np.ndarray:
        """Return the ids of all texts, int64[N], ascending."""
        return self._ids[self._alive]

    def text(self, id: int) -> str:
        """Return the text with that id; raises UserError if there is none."""
        return self._texts[int(self._places([id])[0])]

    def add(self, texts: Iterable[str], vectors: np.ndarray) -> np.ndarray:
        """Add texts with their vectors, float32[n, D] of length 1, and return their ids, int64[n].

        Raises UserError, or TypeError as `each_text`, and adds nothing, if the numbers of texts and vectors differ, or
        one of them is not valid.
        """
        texts = list(each_text(texts))
        vectors = self._checked(vectors, "vectors")
        if len(texts) != len(vectors):
            raise UserError(f"There are {len(texts):,} texts but {len(vectors):,} vectors; each text needs one vector.")
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        wrong = np.flatnonzero(np.abs(lengths - 1) > LENGTH_ERROR)
        if len(wrong):
            raise UserError(
                f"Vector {wrong[0]} has length {lengths[wrong[0]]:.4g}, but the vectors of an index have length 1.\n"
                "Encode with normalize=True, or divide each vector by its length."
            )
        ids = np.arange(self._next_id, self._next_id + len(texts))
        self._texts.append(texts)
        self._vectors.append(vectors)
        self._ids = np.concatenate([self._ids, ids])
        self._alive = np.concatenate([self._alive, np.ones(len(ids), bool)])
        self._changed = True
        self._next_id += len(ids)
        return ids

    def remove(self, ids: Iterable[int]) -> None:
        """Remove the texts with these ids; raises UserError, and removes nothing, if an id is not in the index."""
        self._alive[self._places(ids)] = False
        self._changed = True

    def _places(self, ids: Iterable[int]) -> np.ndarray:
        """Return the places of these ids, int64[n]; raises UserError for an id that is not in the index."""
        try:
            wanted = [operator.index(id) for id in ids]
        except TypeError:
            raise UserError(f"Ids must be a list of integers, as add() returned them; got {ids!r:.60}.") from None
        for id in wanted:
            if not 0 <= id < self._next_id:
                raise UserError(f"There is no text with the id {id}: {self._known()}.")
        if not wanted:
            return np.zeros(0, np.int64)
        places = np.searchsorted(self._ids, np.array(wanted, np.int64))
        near = np.minimum(places, len(self._ids) - 1)  # an id above the last is compared with the last, and differs
        there = (self._ids[near] == wanted) & self._alive[near] if len(self._ids) else np.zeros(len(wanted), bool)
        if not there.all():
            raise UserError(f"The text with the id {wanted[int(np.argmin(there))]} has been removed: {self._known()}.")
        return places

    def _known(self) -> str:
        ids = self.ids()
        return f"the index has {len(ids):,} ids from {ids[0]} to {ids[-1]}" if len(ids) else "the index is empty"

    def prepare(self) -> None:
        """Add new rows to an approximate index now, not in the first search after changes."""
        if self._approximate and self._changed:
            self._ready = self._approximate.prepare(self._alive)
            self._changed = False

    def nearest(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32[Q, k], descending, and ids int64[Q, k] for queries float32[Q, D]; k = min(top_k, N).

        Scores are inner products with the vectors as they are stored, cut to [-1, 1]; of equal scores the lower id
        comes first. An approximate index may find fewer; the rest is -inf and -1. Raises UserError if top_k is below 1
        or the queries are not valid.
        """
        queries = self._checked(queries, "queries")
        if not isinstance(top_k, int | np.integer) or top_k < 1:
            raise UserError(f"top_k is {top_k!r}; it must be an integer of at least 1.")
        k = min(int(top_k), len(self))
        if not k or not len(queries):
            return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
        self.prepare()
        if self._approximate and self._ready:
            scores, places = self._approximate.nearest(queries, k)
        else:
            scores, places = self._exact.nearest(queries, self._alive, k)
        np.clip(scores, -1, 1, out=scores, where=places >= 0)
        return scores, np.where(places >= 0, self._ids[places], -1)

    def lowest(self, threshold: float | None) -> float:
        """Return the lowest score that reaches a threshold, with room for rounding: 1 is reached by the text itself."""
        return -np.inf if threshold is None else threshold - ROUNDING[self.storage]

    def search(self, queries: np.ndarray, top_k: int = 5, threshold: float | None = None) -> list[list[Hit]]:
        """Return for each query of float32[Q, D] at most `top_k` hits, best first, that score `threshold` or more."""
        if threshold is not None and not (isinstance(threshold, Real) and np.isfinite(float(threshold))):
            raise UserError(f"The threshold is {threshold!r}; it must be a cosine, from -1 to 1, or None for all hits.")
        scores, ids = self.nearest(queries, top_k)
        lowest = self.lowest(threshold)
        places = np.searchsorted(self._ids, ids)
        return [
            [
                Hit(self._texts[place], score, id)
                for score, id, place in zip(*row, strict=True)
                if id >= 0 and score >= lowest
            ]
            for row in zip(scores.tolist(), ids.tolist(), places.tolist(), strict=True)
        ]

    def _checked(self, vectors: np.ndarray, what: str) -> np.ndarray:
        """Return the vectors as float32[n, D]; raises UserError for another shape or values that are not finite."""
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(vectors, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"The {what} are not a matrix of numbers: {error}.") from error
        if array.ndim != 2 or array.shape[1] != self.width:
            raise UserError(f"The {what} have the shape {list(array.shape)}; this index takes [n, {self.width}].")
        finite = np.isfinite(np.einsum("nd,nd->n", array, array))  # sums of squares need no second matrix
        if not finite.all():
            row = int(np.argmin(finite))
            raise UserError(
                f"Row {row} of the {what} is not finite: it holds NaN, infinity or numbers that are too large."
            )
        return array

    def save(self, folder: Path) -> None:
        """Write the index to a folder, whole or not at all; removed texts are left out, ids stay.

        folder: new, empty, or with an index, which is replaced; raises UserError for any other. In an approximate
        index the faiss file keeps the vectors of removed texts until it is built anew.
        """
        self.prepare()
        settings = {
            "kind": self.kind,
            "storage": self.storage,
            "width": self.width,
            "fingerprint": self.fingerprint,
            "count": len(self),
            "next_id": self._next_id,
        }
        settings |= {} if self.prompt is None else {"prompt": self.prompt}
        write_folder(folder, settings, self._write)

    def _write(self, folder: Path) -> None:
        self._vectors.write(folder, self._alive)
        self._texts.write(folder, self._alive)
        np.save(folder / "ids.npy", self.ids())
        if self._approximate:
            self._approximate.write(folder, self._alive)


def open_index(folder: Path, fingerprint: str) -> SentenceIndex:
    """Open a saved index; vectors and texts are read from its files only as they are needed.

    Raises UserError if there is none, if it is damaged, or if its vectors have another fingerprint.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    try:
        return _opened(folder, record, fingerprint)
    except UserError:
        newer = read_record(folder)
        if newer["data"] == record["data"]:
            raise
        return _opened(folder, newer, fingerprint)  # another process has saved it in the meantime


def _opened(folder: Path, record: dict[str, Any], fingerprint: str) -> SentenceIndex:
    if record["fingerprint"] != fingerprint:
        words, flags = fingerprint_difference(record["fingerprint"], fingerprint)
        raise UserError(
            f"The index in {folder} was made with {words}.\n"
            f"Open it {f'with {flags}' if flags else 'with the model that made it'}, or make it again with this model: "
            f"--corpus=SENTENCES --save_index={folder}; in Python build_index(sentences), save(folder)."
        )
    index = SentenceIndex(record["width"], record["fingerprint"], record["kind"], record["storage"])
    count, index.prompt = record["count"], record.get("prompt")
    try:
        data = whole_files(folder, record)
        ids = np.array(open_array(data / "ids.npy", np.dtype(np.int64), (count,)))
        if count and (ids[0] < 0 or ids[-1] >= record["next_id"] or (np.diff(ids) <= 0).any()):
            raise ValueError("the ids in ids.npy do not ascend")
        vectors = open_vectors(data, index.width, index.storage, count)
        index._hold(vectors, open_texts(data, count), ids, record["next_id"])
        if index._approximate:
            index._approximate.read(data)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"The index in {folder} is damaged: {error}.\n{REBUILD}") from error
    return index

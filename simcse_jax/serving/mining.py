"""Find paraphrases among sentences, and hard negatives for training pairs, and write a training file with them.

Both searches call a `Nearest` function, such as `SentenceIndex.nearest`. Vectors have length 1, so that inner products
are cosines.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simcse_jax.data.sources import RowCounts, choose_columns, open_tables, read_rows
from simcse_jax.serving.index.exact import ExactSearch
from simcse_jax.serving.index.rows import Vectors
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole, writing

if TYPE_CHECKING:
    from simcse_jax.data.readers import TextTable

# (float32[Q, D], k) -> (float32[Q, k] scores, descending; int64[Q, k] ids, -1 where fewer were found)
Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

QUERIES = 1024  # searched at once
COLUMNS = ("sent0", "sent1", "hard_neg")  # of a training file


class Pair(NamedTuple):
    """Hold the places of two sentences, first < second, and their cosine."""

    first: int
    second: int
    score: float


class Triplet(NamedTuple):
    """Hold an anchor with a positive and a hard negative, and the cosine of each with the anchor."""

    anchor: str
    positive: str
    negative: str
    positive_score: float
    negative_score: float


def paraphrases(
    sentences: Sequence[str],
    vectors: np.ndarray,
    threshold: float = 0.85,
    top_k: int = 100,
    nearest: Nearest | None = None,
) -> list[Pair]:
    """Return each pair of sentences with a cosine of at least `threshold` once, the most similar first.

    vectors: float32[N, D] of length 1. Equal texts count as one sentence, at the first place. top_k: a pair counts if
    one is among the `top_k` nearest of the other, so there are at most N x top_k pairs; pairs are left out only where
    many sentences are alike. nearest: searches these sentences, under their places; by default all pairs are compared,
    block by block, in memory that does not grow with N x N. Raises UserError if threshold or top_k is out of range.
    """
    require_cosine("threshold", threshold, 0.85)
    _require_positive("top_k", top_k, 100)
    _require_unit(vectors, len(sentences))
    first_place: dict[str, int] = {}
    places = np.fromiter(
        (first_place.setdefault(text, n) for n, text in enumerate(sentences)), np.int64, len(sentences)
    )
    kept = np.fromiter(first_place.values(), np.int64, len(first_place))
    sentence_of = places  # maps what `nearest` finds to the first place of that text
    if nearest is None:
        # Repeated texts are left out: they would fill each other's nearest.
        nearest, sentence_of = _exact_nearest(vectors[kept]), kept
    keys, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, len(kept), QUERIES):
        asked = kept[start : start + QUERIES]
        scores, ids = nearest(vectors[asked], min(top_k + 1, len(sentences)))  # each sentence also finds itself
        rows, columns = np.nonzero((ids >= 0) & (scores >= threshold))
        mine, theirs = asked[rows], sentence_of[ids[rows, columns]]
        other = mine != theirs
        low, high = np.minimum(mine, theirs)[other], np.maximum(mine, theirs)[other]
        keys.append(low * len(sentences) + high)
        found.append(scores[rows, columns][other])
    key, at = np.unique(np.concatenate(keys), return_index=True)
    score = np.concatenate(found)[at]
    order = np.lexsort((key, -score))
    first, second = np.divmod(key[order], max(len(sentences), 1))
    return [Pair(*pair) for pair in zip(first.tolist(), second.tolist(), score[order].tolist(), strict=True)]


def hard_negatives(
    pairs: Sequence[tuple[str, str]],
    anchors: np.ndarray,
    positives: np.ndarray,
    nearest: Nearest,
    text: Callable[[int], str],
    ranks: tuple[int, int] = (1, 100),
    margin: float = 0.05,
    ceiling: float = 0.9,
) -> Iterator[Triplet]:
    """Yield a triplet for each pair that has a hard negative, in order; the other pairs are left out.

    pairs: (anchor, positive) texts. anchors, positives: their vectors, float32[N, D] of length 1. nearest, text: of
    the index of the corpus. Candidates are the texts of the corpus except the anchor's own and all its positives in
    `pairs`; each text counts once, ranked by its cosine with the anchor. The negative is the first candidate with a
    rank from ranks[0] to ranks[1] (1 = the most similar) whose cosine is at most that of the positive minus `margin`,
    and at most `ceiling`: what is closer is often an unlabelled positive. Raises UserError on the first triplet if a
    setting is out of range.
    """
    require_window(ranks)
    low, high = ranks
    if not 0 <= margin <= 2:
        raise UserError(f"margin is {margin:g}; it must be a difference of cosines, 0 to 2, for example 0.05.")
    require_cosine("ceiling", ceiling, 0.9)
    _require_unit(anchors, len(pairs))
    _require_unit(positives, len(pairs))
    same: dict[str, set[str]] = {}
    for anchor, positive in pairs:
        same.setdefault(anchor, {anchor}).add(positive)
    for start in range(0, len(pairs), QUERIES):
        block = pairs[start : start + QUERIES]
        labels = np.einsum("nd,nd->n", anchors[start : start + QUERIES], positives[start : start + QUERIES]).tolist()
        limits = [min(label - margin, ceiling) for label in labels]
        chosen: dict[int, _Chosen] = {}
        waiting, asked = list(range(len(block))), high + max(len(same[anchor]) for anchor, _ in block)
        while waiting:
            scores, ids = nearest(anchors[start : start + QUERIES][waiting], asked)
            rows = zip(waiting, scores.tolist(), ids.tolist(), strict=True)
            for n, row_scores, row_ids in rows:
                chosen[n] = _first_below(row_scores, row_ids, text, same[block[n][0]], (low, high), limits[n])
            # In a corpus with repeated texts the window may end further down.
            waiting = [n for n in waiting if chosen[n] == _NOT_YET] if ids.shape[1] == asked else []
            asked *= 2
        for n, (anchor, positive) in enumerate(block):
            negative, score = chosen[n]
            if negative is not None:
                yield Triplet(anchor, positive, negative, labels[n], score)


def require_window(ranks: tuple[int, int]) -> None:
    """Raise UserError for an empty window of ranks."""
    if not 1 <= ranks[0] <= ranks[1]:
        raise UserError(
            f"The ranks are {ranks[0]} to {ranks[1]}; they must ascend and begin at 1 or above, for example 1 to 100."
        )


_Chosen = tuple[str | None, float]  # a text and its score
_NONE, _NOT_YET = (None, 0.0), (None, 1.0)  # no text of the window will do; or the window is not complete yet


def _first_below(
    scores: list[float],
    ids: list[int],
    text: Callable[[int], str],
    excluded: set[str],
    ranks: tuple[int, int],
    limit: float,
) -> _Chosen:
    """Return the first text in the window of ranks with a score of at most `limit`."""
    seen = set(excluded)
    rank = 0
    for score, found in zip(scores, ids, strict=True):
        if found < 0 or rank == ranks[1]:
            return _NONE
        candidate = text(found)
        if candidate in seen:
            continue
        seen.add(candidate)
        rank += 1
        if rank >= ranks[0] and score <= limit:
            return candidate, score
    return _NONE if rank == ranks[1] else _NOT_YET


def _exact_nearest(vectors: np.ndarray) -> Nearest:
    """Return a `Nearest` that searches the rows of float32[N, D] on the accelerator; ids are rows."""
    held, alive = Vectors(vectors.shape[1], "float32"), np.ones(len(vectors), bool)
    held.append(vectors)
    search = ExactSearch(held)
    return lambda queries, k: search.nearest(queries, alive, min(k, len(alive)))


def read_pairs(files: Sequence[str], columns: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return (anchor, positive) of every row without an empty cell; further columns, also hard negatives, are skipped.

    files, columns: as for training; see `data.sources`. Raises UserError for files with one column.
    """
    tables, chosen = open_pairs(files, columns)
    return [(sentence, positive) for _, (sentence, positive) in read_rows(tables, chosen, RowCounts())]


def open_pairs(files: Sequence[str], columns: Sequence[str] = ()) -> tuple[list[TextTable], list[tuple[str, ...]]]:
    """Return the tables, and the two columns of each that `read_pairs` reads; only headers are read here."""
    tables = open_tables(files)
    # One table at a time: they may have different numbers of columns.
    chosen = [choose_columns([table], columns)[0] for table in tables]
    single = next((n for n, names in enumerate(chosen) if len(names) < 2), None)
    if single is not None:
        raise UserError(
            f"{tables[single].name} has one column, {chosen[single][0]}, but hard negatives are mined for pairs.\n"
            "Give a .csv, .tsv, .jsonl or .parquet file with the columns sent0 (anchor) and sent1 (positive)."
        )
    return tables, [names[:2] for names in chosen]


def require_csv(out: Path) -> None:
    """Raise UserError unless the path ends in .csv and its folder exists."""
    if out.suffix.lower() != ".csv":
        raise UserError(f"The file of hard negatives is {out}; it must end in .csv, for example {out.stem}.csv.")
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}.\nCreate it, or give another path.")


def write_negatives(out: str | Path, triplets: Iterable[Triplet]) -> int:
    """Write a .csv with the columns sent0, sent1, hard_neg, as configs/sup.py reads it; return the number of rows.

    The file is written whole or not at all. Raises UserError if the path does not end in .csv or cannot be written, or
    if there is no triplet; an earlier file then stays.
    """
    out = Path(out).expanduser()
    require_csv(out)
    count = 0

    def write(partial: Path) -> None:
        nonlocal count
        with open(partial, "w", encoding="utf-8", newline="") as file:
            # Quoted, since a lone carriage return within a sentence would not be read back otherwise.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(COLUMNS)
            for triplet in triplets:
                writer.writerow((triplet.anchor, triplet.positive, triplet.negative))
                count += 1
        if not count:
            raise UserError(
                "No pair has a hard negative: no sentence of the corpus within the ranks scores at most the positive's "
                "score minus the margin, and at most the ceiling.\nWiden --ranks, lower --margin, raise --ceiling, or "
                "give a larger --corpus."
            )

    with writing(out, "Give another path."):
        write_whole(out, write)
    return count


def require_cosine(name: str, value: float, example: float) -> None:
    """Raise UserError unless the value is a possible cosine."""
    if not -1 <= value <= 1:
        raise UserError(f"{name} is {value:g}; it must be a cosine, from -1 to 1, for example {example:g}.")


def _require_positive(name: str, value: int, example: int) -> None:
    if value < 1:
        raise UserError(f"{name} is {value}; it must be at least 1, for example {example}.")


def _require_unit(vectors: np.ndarray, count: int) -> None:
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(f"{count} texts, but vectors of shape {vectors.shape}; expected ({count}, D).")
    lengths = np.einsum("nd,nd->n", vectors, vectors)
    if not np.allclose(lengths, 1, atol=1e-3):
        raise ValueError("The vectors are not of length 1; encode with normalize=True.")

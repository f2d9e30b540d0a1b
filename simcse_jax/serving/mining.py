"""Find paraphrases among sentences, and hard negatives for training pairs, and write a training file with them.

Vectors have length 1, so that inner products are cosines.
"""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.sources import open_tables
from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole, writing

if TYPE_CHECKING:
    from simcse_jax.data.tables import TextTable

QUERIES = 1024  # searched at once
MOST = 100  # paraphrases of a sentence
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


def paraphrases(sentences: Sequence[str], vectors: np.ndarray, threshold: float = 0.85) -> list[Pair]:
    """Return each pair of sentences with a cosine of at least `threshold` once, the most similar first.

    vectors: float32[N, D] of length 1. Equal texts count as one sentence, at the first place. A pair counts if one is
    among the `MOST` nearest of the other; so pairs are left out only where many sentences are alike, and memory does
    not grow with N x N. Raises UserError if the threshold is no cosine, or the vectors are not of length 1.
    """
    require_cosine("threshold", threshold, 0.85)
    if not len(sentences):
        return []
    first_place: dict[str, int] = {}
    for place, text in enumerate(sentences):
        first_place.setdefault(text, place)
    kept = np.fromiter(first_place.values(), np.int64, len(first_place))
    index = SentenceIndex(vectors.shape[1], "")
    index.add(list(first_place), vectors[kept])
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(kept), QUERIES):
        scores, ids = index.nearest(vectors[kept[start : start + QUERIES]], MOST + 1)  # each also finds itself
        rows, columns = np.nonzero(scores >= index.lowest(threshold))
        mine, theirs = kept[start + rows], kept[ids[rows, columns]]
        for a, b, score in zip(mine.tolist(), theirs.tolist(), scores[rows, columns].tolist(), strict=True):
            if a != b:
                found.setdefault((min(a, b), max(a, b)), score)
    return sorted((Pair(*places, score) for places, score in found.items()), key=lambda pair: (-pair.score, pair[:2]))


def hard_negatives(
    pairs: Sequence[tuple[str, str]],
    anchors: np.ndarray,
    positives: np.ndarray,
    index: SentenceIndex,
    ranks: tuple[int, int] = (1, 100),
    margin: float = 0.05,
    ceiling: float = 0.9,
) -> Iterator[Triplet]:
    """Yield a triplet for each pair that has a hard negative, in order; the other pairs are left out.

    pairs: (anchor, positive) texts. anchors, positives: their vectors, float32[N, D] of length 1. index: of the corpus.
    Candidates are the texts of the corpus except the anchor's own and all its positives in `pairs`; each text counts
    once, ranked by its cosine with the anchor. The negative is the first candidate with a rank from ranks[0] to
    ranks[1] (1 = the most similar) whose cosine is at most that of the positive minus `margin`, and at most `ceiling`:
    what is closer is often an unlabelled positive. Raises UserError on the first triplet if a setting is out of range.
    """
    require_window(ranks)
    low, high = ranks
    if not 0 <= margin <= 2:
        raise UserError(f"margin is {margin:g}; it must be a difference of cosines, 0 to 2, for example 0.05.")
    require_cosine("ceiling", ceiling, 0.9)
    excluded: dict[str, set[str]] = {}
    for anchor, positive in pairs:
        excluded.setdefault(anchor, {anchor}).add(positive)
    for start in range(0, len(pairs), QUERIES):
        some = slice(start, start + QUERIES)
        block, vectors = pairs[some], anchors[some]
        labels = np.einsum("nd,nd->n", vectors, positives[some]).tolist()
        chosen: dict[int, tuple[str, float]] = {}
        waiting, asked = list(range(len(block))), high + max(len(excluded[anchor]) for anchor, _ in block)
        while waiting:
            scores, ids = index.nearest(vectors[waiting], asked)
            unfinished = []
            for n, row_scores, row_ids in zip(waiting, scores.tolist(), ids.tolist(), strict=True):
                limit = min(labels[n] - margin, ceiling)
                texts = _distinct(row_scores, row_ids, index, excluded[block[n][0]])
                for rank, (text, score) in enumerate(texts, 1):
                    if rank >= low and score <= limit:
                        chosen[n] = text, score
                    if rank == high or n in chosen:
                        break
                else:
                    # In a corpus with repeated texts the window may end further down.
                    if len(row_ids) == asked and row_ids[-1] >= 0:
                        unfinished.append(n)
            waiting, asked = unfinished, 2 * asked
        for n, (anchor, positive) in enumerate(block):
            if n in chosen:
                yield Triplet(anchor, positive, chosen[n][0], labels[n], chosen[n][1])


def require_window(ranks: tuple[int, int]) -> None:
    """Raise UserError for an empty window of ranks."""
    if not 1 <= ranks[0] <= ranks[1]:
        raise UserError(
            f"The ranks are {ranks[0]} to {ranks[1]}; they must ascend and begin at 1 or above, for example 1 to 100."
        )


def _distinct(
    scores: list[float], ids: list[int], index: SentenceIndex, excluded: set[str]
) -> Iterator[tuple[str, float]]:
    """Yield each text of these results once, with its score; not the excluded ones."""
    seen = set(excluded)
    for score, id in zip(scores, ids, strict=True):
        if id < 0:
            return
        text = index.text(id)
        if text not in seen:
            seen.add(text)
            yield text, score


def read_pairs(files: Sequence[str], columns: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return (anchor, positive) of every row without an empty cell; further columns, also hard negatives, are skipped.

    files, columns, rows of a split: as for training; see `data.sources`. Raises UserError for files with one column.
    """
    tables, chosen = open_pairs(files, columns)
    rows = read_rows(tables, chosen, RowCounts(), "train", bool(columns))
    return [(sentence, positive) for _, (sentence, positive) in rows]


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
    with writing(out, "Create it, or give another path."):
        if not out.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {out.parent}")


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

"""Find hard negatives for training pairs, and write a training file with them.

Vectors have length 1, so that inner products are cosines.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.sources import open_tables
from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import written
from simcse_jax.system.vectors import require_cosine
from simcse_jax.system.whole_file import write_whole, writing

if TYPE_CHECKING:
    from simcse_jax.data.tables import TextTable

QUERIES = 1024  # searched at once
MOST_NEGATIVES = 100  # of a pair
COLUMNS = ("sent0", "sent1", "hard_neg")  # of a training file; several hard negatives are hard_neg_1, hard_neg_2, ...


class Example(NamedTuple):
    """Hold an anchor with a positive and its hard negatives, and the cosine of each with the anchor."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]  # the most similar first
    positive_score: float
    negative_scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Say which texts are hard negatives of an anchor; UserError where a setting is out of range.

    ranks: from the first to the last of the texts by their cosine with the anchor, 1 = the most similar. margin: how
    far below the positive's cosine at least; relative_margin: the same as a share of that cosine's size. ceiling,
    floor: the highest and the lowest cosine. negatives: how many of a pair at most. sampled: drawn among all that these
    admit, a function of seed and the pair's place; False takes the most similar.
    """

    ranks: tuple[int, int] = (1, 100)
    margin: float = 0.05
    relative_margin: float = 0.0
    ceiling: float = 0.9
    floor: float = -1.0
    negatives: int = 1
    sampled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.ranks
        if not 1 <= low <= high:
            raise UserError(
                f"The ranks are {low} to {high}; they must ascend and begin at 1 or above, for example 1 to 100."
            )
        if not 0 <= self.margin <= 2:
            raise UserError(f"margin is {self.margin:g}; it must be a difference of cosines, 0 to 2, for example 0.05.")
        if not 0 <= self.relative_margin <= 2:
            raise UserError(
                f"relative_margin is {self.relative_margin:g}; it must be a share of a cosine, 0 to 2, such as 0.05."
            )
        require_cosine("ceiling", self.ceiling, 0.9)
        require_cosine("floor", self.floor, 0.3)
        if self.floor > self.ceiling:
            raise UserError(f"floor is {self.floor:g}, above the ceiling {self.ceiling:g}: no score is between them.")
        if not 1 <= self.negatives <= min(high - low + 1, MOST_NEGATIVES):
            raise UserError(
                f"negatives is {self.negatives}; the ranks {low} to {high} admit 1 to "
                f"{min(high - low + 1, MOST_NEGATIVES)}. Give fewer, or widen the ranks."
            )

    def limit(self, positive: float) -> float:
        """Return the highest cosine of a negative, beside a positive with this cosine."""
        return min(positive - self.margin, positive - abs(positive) * self.relative_margin, self.ceiling)


def hard_negatives(
    pairs: Sequence[tuple[str, str]],
    anchors: np.ndarray,
    positives: np.ndarray,
    index: SentenceIndex,
    rules: Rules,
) -> Iterator[Example]:
    """Yield an example for each pair that has a hard negative, in order; the other pairs are left out.

    pairs: (anchor, positive) texts. anchors, positives: their vectors, float32[N, D] of length 1. index: of the corpus.
    Candidates are the texts of the corpus except the anchor's own and all its positives in `pairs`; each text counts
    once, ranked by its cosine with the anchor. Negatives are candidates that the rules admit: what is closer is often
    an unlabelled positive. An example may have fewer than the rules ask for.
    """
    high = rules.ranks[1]
    excluded: dict[str, set[str]] = {}
    for anchor, positive in pairs:
        excluded.setdefault(anchor, {anchor}).add(positive)
    for start in range(0, len(pairs), QUERIES):
        some = slice(start, start + QUERIES)
        block, vectors = pairs[some], anchors[some]
        labels = np.einsum("nd,nd->n", vectors, positives[some]).tolist()
        chosen: dict[int, list[tuple[str, float]]] = {}
        waiting, asked = list(range(len(block))), high + max(len(excluded[anchor]) for anchor, _ in block)
        while waiting:
            scores, ids = index.nearest(vectors[waiting], asked)
            unfinished = []
            for n, row_scores, row_ids in zip(waiting, scores.tolist(), ids.tolist(), strict=True):
                texts = _distinct(row_scores, row_ids, index, excluded[block[n][0]])
                chosen[n], is_whole = _admitted(texts, rules, rules.limit(labels[n]))
                # In a corpus with repeated texts the window may end further down.
                if not is_whole and len(row_ids) == asked and row_ids[-1] >= 0:
                    unfinished.append(n)
            waiting, asked = unfinished, 2 * asked
        for n, (anchor, positive) in enumerate(block):
            found = _drawn(chosen[n], rules, start + n)
            if found:
                negatives, its_scores = zip(*found, strict=True)
                yield Example(anchor, positive, negatives, labels[n], its_scores)


def _admitted(texts: Iterable[tuple[str, float]], rules: Rules, limit: float) -> tuple[list[tuple[str, float]], bool]:
    """Return the candidates that the rules admit, and whether no further candidate could be taken.

    texts: candidates with their scores, the most similar first; of the result, all are needed to draw from, and else
    the first `rules.negatives`.
    """
    low, high = rules.ranks
    found: list[tuple[str, float]] = []
    for rank, (text, score) in enumerate(texts, 1):
        if score < rules.floor:
            return found, True
        if rank >= low and score <= limit:
            found.append((text, score))
        if rank == high or (not rules.sampled and len(found) == rules.negatives):
            return found, True
    return found, False


def _drawn(found: list[tuple[str, float]], rules: Rules, place: int) -> list[tuple[str, float]]:
    """Return the negatives of the pair in that place: the first of those admitted, or as many drawn among them."""
    if not rules.sampled or len(found) <= rules.negatives:
        return found[: rules.negatives]
    rng = np.random.default_rng([rules.seed, place])
    return [found[n] for n in sorted(rng.choice(len(found), rules.negatives, replace=False).tolist())]


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


def write_negatives(out: str | Path, examples: Iterable[Example], negatives: int = 1) -> tuple[int, int]:
    """Write a .csv with the columns sent0, sent1, hard_neg, which training reads; return its rows and hard negatives.

    negatives: the columns of hard negatives; above 1 they are hard_neg_1, hard_neg_2, ..., and a row that has fewer
    lacks the last ones. The file is written whole or not at all. Raises UserError if the path does not end in .csv or
    cannot be written, or if there is no example; an earlier file then stays.
    """
    with written(out) as path:
        require_csv(path)
        return _write_negatives(path, examples, negatives)


def _write_negatives(out: Path, examples: Iterable[Example], negatives: int) -> tuple[int, int]:
    count = total = 0

    def write(partial: Path) -> None:
        nonlocal count, total
        with open(partial, "w", encoding="utf-8", newline="") as file:
            # Quoted, since a lone carriage return within a sentence would not be read back otherwise.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            *texts, name = COLUMNS
            writer.writerow([*texts, *([name] if negatives == 1 else [f"{name}_{n + 1}" for n in range(negatives)])])
            for example in examples:
                missing = [""] * (negatives - len(example.negatives))
                writer.writerow([example.anchor, example.positive, *example.negatives, *missing])
                count, total = count + 1, total + len(example.negatives)
        if not count:
            raise UserError(
                "No pair has a hard negative: no sentence of the corpus within the ranks scores at most the positive's "
                "score minus the margin, and from the floor to the ceiling.\nWiden --ranks, lower --margin or --floor, "
                "raise --ceiling, or give a larger --corpus."
            )

    with writing(out, "Give another path."):
        write_whole(out, write)
    return count, total

"""Sample pairs of texts from all ranges of similarity, as a sheet for people to grade."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simcse_jax.data.held_out import choose_units
from simcse_jax.evaluation.results import Encode
from simcse_jax.evaluation.retrieval.search import nearest
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import check_vectors, normalize
from simcse_jax.system.whole_file import write_whole_text, writing

HEADER = ("score", "sentence1", "sentence2")
TEXTS = 5_000  # that pairs are made of
NEIGHBOURS, OTHERS = 20, 20  # candidates of each text: its nearest ones, and any
RANGES = 10  # of the cosine, each of which gives equally many pairs where it has them
MOST_USES = 2  # pairs of one text
SEED = 0


def sample_pairs(encode: Encode, texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Return `count` pairs of different texts, in an order that says nothing; the same for the same vectors.

    Candidates are pairs of neighbours and random pairs. The range from the lowest to the highest cosine is cut into
    RANGES equal ones, which take turns. UserError where there are too few texts.
    """
    kept = [text for [text] in choose_units([[text] for text in dict.fromkeys(texts)], TEXTS)]
    if count < 1 or len(kept) < max(count, 4):
        raise UserError(
            f"--sample_pairs={count}: a number from 1 to that of the different texts, {len(kept):,}, is needed."
        )
    vectors = normalize(check_vectors(np.asarray(encode(kept)), kept, "--text")).astype(np.float32)
    rng = np.random.default_rng(SEED)
    first, second, cosines = _candidates(vectors, rng)
    low, high = float(cosines.min()), float(cosines.max())
    ranges = np.minimum(((cosines - low) / max(high - low, 1e-9) * RANGES).astype(int), RANGES - 1)
    waiting = [rng.permutation(np.flatnonzero(ranges == n)).tolist() for n in range(RANGES)]
    uses = np.zeros(len(kept), int)
    chosen: list[int] = []
    while len(chosen) < count and any(waiting):
        for queue in waiting:
            while queue and len(chosen) < count:
                pair = queue.pop()
                if max(uses[first[pair]], uses[second[pair]]) < MOST_USES:
                    uses[[first[pair], second[pair]]] += 1
                    chosen.append(pair)
                    break
    return [(kept[first[pair]], kept[second[pair]]) for pair in rng.permutation(chosen).tolist()]


def _candidates(vectors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places of both texts of each candidate, first < second, and its cosine."""
    count = len(vectors)
    depth = min(NEIGHBOURS + 1, count)
    near = nearest(vectors, [vectors], depth)[1].ravel()
    pairs = np.concatenate(
        [
            np.stack([np.repeat(np.arange(count), depth), near], axis=1),
            rng.integers(0, count, (count * OTHERS, 2)),
        ]
    )
    first, second = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0).T
    return first, second, np.einsum("nd,nd->n", vectors[first], vectors[second])


def require_new_sheet(path: Path) -> None:
    """Raise UserError where no sheet can be written: for another kind of file, or one that may hold grades."""
    if path.suffix.lower() != ".csv":
        raise UserError(f"--out={path}: a sheet of pairs is a .csv. Give --out=sheet.csv.")
    if path.exists():
        raise UserError(f"--out={path} exists, and may hold grades. Give another name, or remove it.")


def write_sheet(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write the pairs with an empty column of scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(("", *pair) for pair in pairs)
    with writing(path, "Give another file.", f"--out={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole_text(path, text.getvalue())

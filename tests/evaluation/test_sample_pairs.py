"""Test the sheet of sampled pairs: all ranges of similarity, no text often, and what people fill in is read."""

import csv
from pathlib import Path

import numpy as np
import pytest

from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.retrieval.from_text import read_texts
from simcse_jax.evaluation.sample_pairs import MOST_USES, require_new_sheet, sample_pairs, write_sheet
from simcse_jax.system.errors import UserError
from tests.evaluation.retrieval.made_retrieval import vectors_for


def test_pairs_come_from_all_ranges() -> None:
    texts = [f"text {n}" for n in range(400)]
    encode = vectors_for(width=3)
    pairs = sample_pairs(encode, texts, 100)
    assert pairs == sample_pairs(encode, texts, 100)
    assert len({frozenset(pair) for pair in pairs}) == 100
    assert all(first != second for first, second in pairs)
    uses = np.unique([text for pair in pairs for text in pair], return_counts=True)[1]
    assert uses.max() <= MOST_USES
    unit = {text: v / np.linalg.norm(v) for text, v in zip(texts, encode(texts), strict=True)}
    cosines = [float(unit[a] @ unit[b]) for a, b in pairs]
    counts, _ = np.histogram(cosines, 5, (-1, 1))
    assert counts.min() >= 15
    assert abs(np.corrcoef(np.arange(100), cosines)[0, 1]) < 0.3  # their order tells nothing


def test_a_filled_sheet_is_read_as_graded_pairs(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f'Sentence "{n}", of many.\n' for n in range(60)))
    pairs = sample_pairs(vectors_for(), read_texts(str(tmp_path / "text.txt")), 20)
    sheet = tmp_path / "sheet.csv"
    require_new_sheet(sheet)
    write_sheet(sheet, pairs)
    with pytest.raises(UserError, match="line 2: the score is blank"):
        load_graded_pairs(str(sheet))
    with sheet.open(newline="") as file:
        rows = list(csv.reader(file))
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([str(n % 6), *row[1:]] for n, row in enumerate(rows[1:]))])
    read = load_graded_pairs(str(sheet))
    assert list(zip(read.first, read.second, strict=True)) == pairs
    with pytest.raises(UserError, match="may hold grades"):
        require_new_sheet(sheet)
    with pytest.raises(UserError, match=r"is a \.csv"):
        require_new_sheet(tmp_path / "sheet")


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(UserError, match=r"--sample_pairs=20.*10"):
        sample_pairs(vectors_for(), [f"text {n}" for n in range(10)] * 9, 20)

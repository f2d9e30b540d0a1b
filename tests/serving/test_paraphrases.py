"""Paraphrases against their definition, written out pair by pair."""

import itertools

import numpy as np
import pytest

from simcse_jax.serving import paraphrases as finding
from simcse_jax.serving.paraphrases import paraphrases
from simcse_jax.system.errors import UserError
from tests.serving.made_vectors import COSINES, TEXTS, VECTORS


@pytest.fixture(params=[1024, 7])
def queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search all sentences in one block, or in many."""
    monkeypatch.setattr(finding, "QUERIES", request.param)


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("threshold", [0.5, 0.8, -1.0, 1.0])
def test_every_pair_once_the_most_similar_first(threshold: float) -> None:
    found = paraphrases(TEXTS, VECTORS, threshold)
    places = itertools.combinations(range(60), 2)
    expected = {(i, j): COSINES[i, j] for i, j in places if COSINES[i, j] >= threshold}
    assert {pair[:2] for pair in found} == expected.keys()
    assert len(found) == len(expected)
    for pair in found:
        assert pair.score == pytest.approx(expected[pair[:2]], abs=1e-6)
    assert [pair.score for pair in found] == sorted((pair.score for pair in found), reverse=True)


@pytest.mark.usefixtures("queries")
def test_repeated_texts_are_one_sentence_and_a_pair_counts_from_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = VECTORS[[ord(text) for text in "\0\1\0\2\1\0"]]
    assert {pair[:2] for pair in paraphrases(list("abacba"), repeated, -1.0)} == {(0, 1), (0, 3), (1, 3)}
    monkeypatch.setattr(finding, "MOST", 2)
    near = np.argsort(-(COSINES - 3 * np.eye(60)), axis=1)[:, :2]
    expected = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    assert {pair[:2] for pair in paraphrases(TEXTS, VECTORS, -1.0)} == expected


def test_paraphrases_of_little_and_of_what_is_wrong() -> None:
    assert paraphrases([], VECTORS[:0], 0.5) == []
    assert paraphrases(["a"], VECTORS[:1], 0.5) == []
    with pytest.raises(UserError, match="threshold is 85"):
        paraphrases(TEXTS, VECTORS, 85)
    with pytest.raises(UserError, match="length"):
        paraphrases(TEXTS, 2 * VECTORS, 0.5)

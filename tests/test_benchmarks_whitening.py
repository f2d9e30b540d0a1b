"""The benchmark of centring and whitening: its maps by their definition, and a space that they improve."""

import numpy as np
import pytest

from benchmarks.whitening import centred, measure, table, whitened
from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.system.errors import UserError

WIDTH = 6


def test_the_maps_do_what_they_are_named_for() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + 3
    np.testing.assert_allclose(centred(vectors)(vectors).mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(centred(vectors)(vectors).T), np.cov(vectors.T), atol=1e-9)
    np.testing.assert_allclose(whitened(vectors)(vectors).mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(whitened(vectors)(vectors).T), np.eye(WIDTH), atol=1e-9)


def test_whitening_by_text_of_another_kind_mends_less() -> None:
    """Meaning is in small features beside a large one of no meaning; in other text another feature is large."""
    rng = np.random.default_rng(1)
    meaning = rng.normal(size=(2, 300, WIDTH))
    meaning[1] = meaning[0] * 0.7 + meaning[1] * 0.7
    gold = np.sum(meaning[0] * meaning[1], 1) / np.prod(np.linalg.norm(meaning, axis=2), 0)
    noise = np.zeros((2, 300, WIDTH))
    noise[..., 0] = 20 + 20 * rng.normal(size=(2, 300))
    vectors = dict(enumerate((meaning + noise).reshape(-1, WIDTH)))
    other = rng.normal(size=(400, WIDTH)) + np.eye(WIDTH)[1] * 20 * rng.normal(size=(400, 1))
    vectors |= {1000 + n: vector for n, vector in enumerate(other)}
    pairs = GradedPairs("made", gold, [str(n) for n in range(300)], [str(n) for n in range(300, 600)])
    texts = [str(n) for n in range(1000, 1400)]
    rows = measure(lambda some: np.stack([vectors[int(text)] for text in some]), texts, {"dev": pairs, "STS12": pairs})
    scores = {row: found["STS12"] for row, found in rows.items()}
    assert list(scores) == [
        "as it is",
        "centred by the text",
        "whitened by the text",
        "centred by each set itself",
        "whitened by each set itself",
    ]
    assert scores["whitened by each set itself"] > scores["centred by each set itself"] + 20
    assert scores["whitened by each set itself"] > scores["whitened by the text"] + 20
    assert [line.count("|") for line in table(rows)] == [5] * 7
    with pytest.raises(UserError, match="6 texts are too few to whiten 6 features"):
        measure(lambda some: np.stack([vectors[int(text)] for text in some]), texts[:6], {"dev": pairs})

"""Test the geometry of pairs: which of them count as close, which sentences count, and what is refused."""

import numpy as np
import pytest

from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.space import measure_space
from simcse_jax.system.errors import UserError

SCALE = (0.0, 5.0)
PAIRS = GradedPairs("some pairs", np.array([5.0, 4.0, 4.2, 0.0]), ["a", "b", "c", "a"], ["b", "c", "d", "e"])


def encode(texts: list[str]) -> np.ndarray:
    """Return a vector of any length for each letter, always the same."""
    drawn = np.random.default_rng(0).normal(size=(26, 7)) + 0.5
    return np.stack([drawn[ord(text) - ord("a")] for text in texts])


def unit(text: str) -> np.ndarray:
    vector = encode([text])[0]
    return vector / np.linalg.norm(vector)


def test_close_pairs_align_and_every_sentence_counts_once() -> None:
    asked: list[str] = []
    space = measure_space(lambda texts: asked.extend(texts) or encode(texts), PAIRS, SCALE)
    assert asked == ["a", "b", "c", "d", "e"]
    close = [("a", "b"), ("c", "d")]  # 4.0 is not above 80 % of the scale
    assert space.alignment == pytest.approx(np.mean([np.sum((unit(x) - unit(y)) ** 2) for x, y in close]), rel=1e-5)
    cosines = [unit(x) @ unit(y) for x in "abcde" for y in "abcde" if x != y]
    assert space.mean_cosine == pytest.approx(np.mean(cosines), rel=1e-5)
    assert space.uniformity == pytest.approx(np.log(np.mean(np.exp(4 * np.array(cosines) - 4))), rel=1e-5)
    values = np.linalg.svd(np.stack([unit(x) for x in "abcde"]), compute_uv=False)
    assert space.singular_values.dtype == np.float64
    assert space.singular_values == pytest.approx(values / values[0], rel=1e-5)
    assert space.top_share == pytest.approx(values[0] ** 2 / 5, rel=1e-5)
    assert 1 < space.effective_rank < 5
    assert np.exp(-2) < space.isotropy < 1
    assert all(type(metric) is float for metric in space.metrics().values())
    expected = {"source": "some pairs", "pairs": 4, "close pairs": 2, "close above": 4.0, "sentences": 5}
    assert space.protocol.items() >= expected.items()
    assert space.protocol["data"] == PAIRS.fingerprint


def test_close_is_told_by_the_scale() -> None:
    unit_scale = GradedPairs("unit", PAIRS.gold / 5, PAIRS.first, PAIRS.second)
    assert measure_space(encode, unit_scale, (0, 1)).protocol["close pairs"] == 2
    assert measure_space(encode, PAIRS, (-5, 5)).protocol["close pairs"] == 3


def test_precision_and_length_of_the_vectors_do_not_matter() -> None:
    space = measure_space(encode, PAIRS, SCALE)
    huge = measure_space(lambda texts: encode(texts) * 1e30, PAIRS, SCALE)
    half = measure_space(lambda texts: encode(texts).astype(np.float16), PAIRS, SCALE)
    assert huge.metrics() == pytest.approx(space.metrics(), rel=1e-6)
    assert half.metrics() == pytest.approx(space.metrics(), rel=1e-2)


def test_broken_vectors_are_an_error() -> None:
    with pytest.raises(UserError, match=r"(?s)some pairs.*'d'"):
        measure_space(lambda texts: encode(texts) * np.array([[text != "d"] for text in texts]), PAIRS, SCALE)


def test_pairs_without_geometry() -> None:
    with pytest.raises(UserError, match=r"(?s)some pairs: .*8.*5"):  # no close pair
        measure_space(encode, PAIRS, (0.0, 10.0))
    pairs = GradedPairs("same", np.array([5.0, 1.0]), ["a", "a"], ["a", "a"])
    with pytest.raises(UserError, match="same"):
        measure_space(encode, pairs, SCALE)

"""Test the check and the scaling of vectors."""

import numpy as np
import pytest

from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import check_vectors, normalize

TEXTS = ["a", "b", "c"]


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def test_lengths_become_1_and_zeros_stay() -> None:
    given = vectors()
    given[1] = 0
    unit = normalize(given)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(unit[0] * np.linalg.norm(given[0]), given[0], rtol=1e-6)
    np.testing.assert_array_equal(normalize(given, out=given), unit)
    np.testing.assert_array_equal(given, unit)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "not finite"), (-np.inf, "not finite"), (0.0, "zero")])
def test_broken_vectors_name_a_text(value: float, kind: str) -> None:
    given = vectors()
    np.testing.assert_array_equal(check_vectors(given, TEXTS, "a task"), given)
    given[1] = value
    with pytest.raises(UserError, match=f"(?s)a task.*1 of 3.*{kind}.*'b'"):
        check_vectors(given, TEXTS, "a task")
    if value == 0:
        check_vectors(given, TEXTS, "a task", zeros=True)
    for shape in ((2, 4), (3,), (3, 2, 2)):
        with pytest.raises(ValueError, match="for 3 texts"):
            check_vectors(np.ones(shape), TEXTS, "a task")

"""The figures of geometry against direct float64 computations, on round, narrow and degenerate sets of vectors."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective import geometry


def units(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def direct(x: np.ndarray) -> dict[str, float]:
    """Return every metric of one set, term by term."""
    u = units(x)
    n = len(u)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    values = np.linalg.svd(u, compute_uv=False)
    shares = values / values.sum()
    _, vectors = np.linalg.eigh(u.T @ u)
    sums = [sum(np.exp(sign * c @ row) for row in u) for c in vectors.T for sign in (1, -1)]
    figures = {
        "uniformity": np.log(np.mean([np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i, j in pairs])),
        "mean_cosine": np.mean([u[i] @ u[j] for i, j in pairs]),
        "effective_rank": np.exp(-sum(p * np.log(p) for p in shares if p > 0)),
        "top_share": values[0] ** 2 / np.sum(values**2),
        "isotropy": min(sums) / max(sums),
    }
    return {name: float(figure) for name, figure in figures.items()}


def ours(x: np.ndarray) -> dict[str, float]:
    values = geometry.singular_values(x)
    return {
        "uniformity": float(geometry.uniformity(x)),
        "mean_cosine": float(geometry.mean_cosine(x)),
        "effective_rank": float(geometry.effective_rank(values)),
        "top_share": float(geometry.top_share(values)),
        "isotropy": float(geometry.isotropy(x)),
    }


def some_sets() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sets = {
        "round": rng.normal(size=(90, 12)),
        "narrow": rng.normal(size=(90, 12)) + 4 * rng.normal(size=12),
        "very narrow": rng.normal(size=(90, 12)) * 1e-3 + 1,
        "few directions": rng.normal(size=(60, 12)) * 0.3 ** np.arange(12),
        "fewer rows than width": rng.normal(size=(7, 33)),
        "two rows": rng.normal(size=(2, 5)),
        "all equal": np.repeat(rng.normal(size=(1, 6)), 20, axis=0),
        "opposite": np.array([[1.0, 2.0], [-1.0, -2.0]]),
        "a zero among them": np.concatenate([rng.normal(size=(10, 4)), np.zeros((1, 4))]),
        "tiny": rng.normal(size=(40, 8)) * 1e-30,
        "huge": rng.normal(size=(40, 8)) * 1e30,
    }
    return {name: x.astype(np.float32) for name, x in sets.items()}


@pytest.mark.parametrize("name", some_sets())
def test_figures_equal_the_direct_ones(name: str) -> None:
    x = some_sets()[name]
    found = ours(x)
    for figure, expected in direct(x).items():
        assert found[figure] == pytest.approx(expected, rel=2e-5, abs=2e-6), figure
    values = np.asarray(geometry.singular_values(x))
    expected = np.linalg.svd(units(x), compute_uv=False)
    np.testing.assert_allclose(values, expected, rtol=0, atol=3e-6 * expected[0])


@pytest.mark.parametrize("count", [10, 30, 31])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    x = np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32) + 0.5
    whole = ours(x)
    monkeypatch.setattr(geometry, "BLOCK", 10)
    figures: tuple[Any, ...] = (geometry.uniformity, geometry.mean_cosine, geometry.isotropy)
    for figure in figures:
        figure.clear_cache()  # what is compiled holds the block's size
    assert ours(x) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    for figure in figures:
        figure.clear_cache()
    assert whole["uniformity"] == pytest.approx(direct(x)["uniformity"], rel=1e-5)


def test_alignment_equals_the_direct_one() -> None:
    rng = np.random.default_rng(2)
    for distance in (0, 1e-3, 1, 1e3):
        x = rng.normal(size=(50, 9)).astype(np.float32)
        y = (x + distance * rng.normal(size=x.shape)).astype(np.float32)
        expected = np.mean(np.sum((units(x) - units(y)) ** 2, axis=1))
        assert float(geometry.alignment(x, y)) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert float(geometry.alignment(x, -x)) == pytest.approx(4)
    assert float(geometry.alignment(x[:1], x[:1])) == pytest.approx(0, abs=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    x = jnp.asarray(np.random.default_rng(5).normal(size=(20, 4)), jnp.bfloat16)
    assert geometry.uniformity(x).dtype == jnp.float32
    assert ours(np.asarray(x, np.float32)) == pytest.approx(ours(np.asarray(x)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,)])
def test_too_few_rows_raise(shape: tuple[int, ...]) -> None:
    for figure in (geometry.uniformity, geometry.mean_cosine, geometry.singular_values, geometry.isotropy):
        with pytest.raises(ValueError, match="at least 2"):
            figure(np.ones(shape, np.float32))


@pytest.mark.parametrize(("first", "second"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_what_is_no_pairs_raises(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="got"):
        geometry.alignment(np.ones(first, np.float32), np.ones(second, np.float32))

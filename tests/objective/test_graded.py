"""The losses of graded pairs against their equations in float64 NumPy, and against sentence-transformers'."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective.cosent import make_graded
from simcse_jax.objective.losses import LOSSES, graded_losses
from simcse_jax.training.mesh import make_mesh
from tests.objective.test_losses import BATCH, GROUPS, SIZE, WIDTH, assert_gradient

TEXTS = np.zeros((2, BATCH), np.int32)


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def cosent(x: np.ndarray, y: np.ndarray) -> float:
    return float(unit(x) @ unit(y))


def angle(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (np.pad(unit(z), (0, len(z) % 2)) for z in (x, y))
    half = len(x) // 2
    quotient = (x[:half] + 1j * x[half:]) * np.conj(y[:half] + 1j * y[half:])
    return abs(float((quotient.real + quotient.imag).sum()))


SIMILARITIES = {f.__name__: f for f in (cosent, angle)}


def expected(name: str, temperature: float, x: np.ndarray, y: np.ndarray, grades: np.ndarray) -> float:
    s = np.array([SIMILARITIES[name](a, b) for a, b in zip(x, y, strict=True)])
    higher = grades[:, None] > grades[None]
    return float(np.log(1 + np.exp((s[None] - s[:, None]) / temperature)[higher].sum()))


def inputs(width: int = WIDTH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return anchors and positives [B, D], and grades [B], some of them equal."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, width))
    grades = rng.integers(0, 6, BATCH).astype(float) - 2
    return x, rng.normal(size=(BATCH, width)) + x * grades[:, None] / 5, grades


def value_and_gradients(loss: Any, x: Any, y: Any, grades: Any) -> tuple[float, Any, Any]:
    def of(x: jax.Array, y: jax.Array) -> Any:
        shaped = x.reshape(GROUPS, SIZE, -1), y.reshape(1, GROUPS, SIZE, -1)
        return loss(*shaped, TEXTS, grades=jnp.asarray(grades).reshape(GROUPS, SIZE))

    (value, metrics), gradients = jax.jit(jax.value_and_grad(of, (0, 1), has_aux=True))(jnp.asarray(x), jnp.asarray(y))
    return float(value), gradients, metrics


def made(name: str, devices: int = 1, tile: int = 0, **options: Any) -> Any:
    loss: Any = LOSSES[name]
    return make_graded(loss, make_mesh(devices), tile=tile, **options)


@pytest.mark.parametrize("name", graded_losses())
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize(("devices", "tile", "width"), [(1, 0, 7), (4, 5, 8)])
def test_loss_and_gradient_are_those_of_the_equation(
    name: str, temperature: float, devices: int, tile: int, width: int
) -> None:
    with jax.enable_x64(True):
        x, y, grades = inputs(width)
        loss = made(name, devices, tile, temperature=temperature)
        value, gradients, metrics = value_and_gradients(loss, x, y, grades)

        def at(x: np.ndarray, y: np.ndarray) -> float:
            return expected(name, temperature, x, y, grades)

        assert value == pytest.approx(at(x, y), abs=1e-9)
        assert_gradient(gradients, at, x, y)
        s = np.array([SIMILARITIES[name](a, b) for a, b in zip(x, y, strict=True)])
        higher = grades[:, None] > grades[None]
        assert float(metrics["ordered"]) == pytest.approx((s[:, None] > s[None])[higher].mean())
        cosine = np.mean([cosent(a, b) for a, b in zip(x, y, strict=True)])
        assert float(metrics["positive_cosine"]) == pytest.approx(cosine)


@pytest.mark.parametrize("name", graded_losses())
def test_pairs_of_one_grade_have_nothing_to_learn(name: str) -> None:
    x, y, grades = inputs()
    value, gradients, _ = value_and_gradients(made(name, 2, 1, temperature=0.05), x, y, np.ones_like(grades))
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradients)


def test_differences_of_many_temperatures_stay_finite() -> None:
    x, _, grades = inputs()
    y = np.where(grades[:, None] > 0, -x, x)
    value, gradients, _ = value_and_gradients(made("cosent", 2, 5, temperature=1e-3), *map(jnp.float32, (x, y, grades)))
    assert 1900 < value < 2100
    assert all(np.isfinite(g).all() for g in gradients)


def test_widths_are_the_mean() -> None:
    with jax.enable_x64(True):
        x, y, grades = inputs()
        value, *_, metrics = value_and_gradients(made("cosent", temperature=0.2, widths=(7, 3)), x, y, grades)
        alone = [expected("cosent", 0.2, x[:, :width], y[:, :width], grades) for width in (7, 3)]
        assert value == pytest.approx(np.mean(alone), abs=1e-9)
        assert float(metrics["loss_3"]) == pytest.approx(alone[1], abs=1e-9)


@pytest.mark.parametrize(("name", "theirs"), [("cosent", "CoSENTLoss"), ("angle", "AnglELoss")])
def test_they_are_those_of_sentence_transformers(name: str, theirs: str) -> None:
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

    class Given(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features

    x, y, grades = inputs()
    features = [{"sentence_embedding": torch.tensor(z)} for z in (x, y)]
    of_st = getattr(losses, theirs)(Given(), scale=20.0)(features, torch.tensor(grades))
    value, *_ = value_and_gradients(made(name, temperature=0.05), *map(jnp.float32, (x, y, grades)))
    assert value == pytest.approx(float(of_st), rel=1e-5)

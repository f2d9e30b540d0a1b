"""The loss of masked language modelling against its definition in float64, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from simcse_jax.objective.mlm import mlm_loss, predictions

G, M, V = 3, 5, 11


def made() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, V, (G, M)).astype(np.int32)
    labels[0, 3:], labels[2] = -1, -1  # one group has nothing to predict
    return 3 * rng.normal(size=(G, M, V)), labels


def direct(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, np.ndarray]:
    """(loss, accuracy, gradient), place by place."""
    losses, right, gradient, count = 0.0, 0, np.zeros_like(scores), int((labels >= 0).sum())
    for g, m in zip(*np.nonzero(labels >= 0), strict=True):
        p = np.exp(scores[g, m] - scores[g, m].max())
        p /= p.sum()
        losses -= np.log(p[labels[g, m]])
        right += int(p.argmax() == labels[g, m])
        gradient[g, m] = p
        gradient[g, m, labels[g, m]] -= 1
    return losses / count, right / count, gradient / count


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    scores, labels = made()
    loss, accuracy, gradient = direct(scores, labels)
    with jax.enable_x64(True):
        graded = jax.value_and_grad(lambda s: mlm_loss(predictions(s, jnp.asarray(labels))), has_aux=True)
        (found, metrics), slope = jax.jit(graded)(jnp.asarray(scores))
    np.testing.assert_allclose(found, loss, rtol=1e-12)
    np.testing.assert_allclose(metrics["mlm_accuracy"], accuracy, rtol=1e-12)
    np.testing.assert_allclose(slope, gradient, rtol=1e-10, atol=1e-14)
    assert np.abs(gradient).max() > 1e-3


def test_places_without_a_label_do_not_count() -> None:
    scores, labels = made()
    loss = float(mlm_loss(predictions(jnp.asarray(scores), jnp.asarray(labels)))[0])
    scores[labels < 0] *= 1000
    assert float(mlm_loss(predictions(jnp.asarray(scores), jnp.asarray(labels)))[0]) == loss
    nothing = predictions(jnp.asarray(scores), jnp.full((G, M), -1))
    assert float(mlm_loss(nothing)[0]) == 0.0

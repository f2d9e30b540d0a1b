"""The mean of a loss over the embeddings of several layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective.contrastive import make_contrastive
from simcse_jax.objective.layers import mean_over_layers, of_last_layer
from simcse_jax.objective.losses import LOSSES
from simcse_jax.training.mesh import make_mesh
from tests.objective.test_losses import NCE, WIDTH, assert_gradient, expected, inputs, value_and_gradients


def test_every_layer_counts_alike_and_metrics_are_of_the_last() -> None:
    one = make_contrastive(LOSSES["info_nce"], make_mesh(2), temperature=0.05, hard_negative_weight=1.0, widths=(8, 4))
    anchors, candidates, texts = inputs(1, 8)
    some = (anchors, candidates), (anchors[..., ::-1] ** 3, candidates)
    first, last = (value_and_gradients(one, a, c, texts) for a, c in some)
    both = [np.concatenate(pair, axis=-1) for pair in zip(*some, strict=True)]
    value, gradients, metrics = value_and_gradients(mean_over_layers(one, (1, 2)), both[0], both[1], texts)
    assert float(value) == pytest.approx((float(first[0]) + float(last[0])) / 2, rel=1e-6)
    assert float(metrics["loss_layer_1"]) == pytest.approx(float(first[0]), rel=1e-6)
    for name, of_last in last[2].items():
        assert float(metrics[name]) == pytest.approx(float(of_last), rel=1e-5)
    for found, *each in zip(gradients[1:], first[1][1:], last[1][1:], strict=True):
        np.testing.assert_allclose(found, np.concatenate(each, axis=-1) / 2, atol=1e-6)


def test_layers_and_widths_are_the_mean_of_their_equation() -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(1, 8)
        # Two layers' embeddings, one after the other; of both, the widths are of their first coordinates.
        anchors, candidates = (np.concatenate([z, np.cos(3 * z)], axis=-1) for z in (anchors, candidates))
        widths, starts = (3, WIDTH), (0, WIDTH)

        def at(anchors: np.ndarray, candidates: np.ndarray) -> float:
            parts = [slice(start, start + width) for start in starts for width in widths]
            each = [expected("info_nce", NCE, anchors[..., part], candidates[..., part], texts) for part in parts]
            return float(np.mean(each))

        one = make_contrastive(LOSSES["info_nce"], make_mesh(2), tile=5, widths=widths, **NCE)
        value, (_, *gradients), _ = value_and_gradients(mean_over_layers(one, (1, 2)), anchors, candidates, texts)
        assert value == pytest.approx(at(anchors, candidates), abs=1e-9)
        assert_gradient(gradients, at, anchors, candidates)


def test_a_teacher_sees_the_last_layer() -> None:
    z = jnp.arange(12.0).reshape(1, 1, 2, 6)
    seen, metrics = of_last_layer(lambda z, teacher: (z, {"teacher": teacher}), (1, 3))(z, jnp.ones(2))
    np.testing.assert_array_equal(seen, z[..., 3:])
    np.testing.assert_array_equal(metrics["teacher"], 1)

"""InfoNCE against a direct float64 computation, one example at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective.contrastive import make_info_nce
from simcse_jax.training.mesh import make_mesh

GROUPS, SIZE, WIDTH = 4, 3, 7
BATCH = GROUPS * SIZE


def direct(
    anchors: np.ndarray, candidates: np.ndarray, texts: np.ndarray, temperature: float, weight: float, mask: bool
) -> float:
    """The mean loss, term by term; anchors [B, D], candidates [K, B, D], texts [K + 1, B]."""
    losses = []
    for i in range(len(anchors)):
        total = 0.0
        for k in range(len(candidates)):
            for j in range(len(anchors)):
                own_positive = k == 0 and j == i
                if mask and not own_positive and texts[k + 1, j] in (texts[0, i], texts[1, i]):
                    continue
                a, c = anchors[i], candidates[k, j]
                cosine = a @ c / np.sqrt(a @ a) / np.sqrt(c @ c)
                total += (weight if k > 0 and j == i else 1.0) * np.exp(cosine / temperature)
                if own_positive:
                    positive = cosine / temperature
        losses.append(np.log(total) - positive)
    return float(np.mean(losses))


def inputs(hard_negatives: int, distinct_texts: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    anchors = rng.normal(size=(BATCH, WIDTH))
    candidates = rng.normal(size=(1 + hard_negatives, BATCH, WIDTH)) + anchors
    return anchors, candidates, rng.integers(0, distinct_texts, (2 + hard_negatives, BATCH)).astype(np.int32)


def ours(devices: int, anchors: Any, candidates: Any, texts: np.ndarray, **options: Any) -> tuple[Any, Any]:
    loss = jax.jit(make_info_nce(make_mesh(devices), **options))
    return loss(anchors.reshape(GROUPS, SIZE, -1), candidates.reshape(len(candidates), GROUPS, SIZE, -1), texts)


@pytest.mark.parametrize(
    ("hard_negatives", "distinct", "temperature", "weight"), [(0, 1000, 0.05, 1.0), (0, 6, 0.1, 1.0), (2, 8, 0.2, 3.0)]
)
@pytest.mark.parametrize("mask", [True, False])
def test_loss_and_gradient_equal_the_direct_ones(
    hard_negatives: int, distinct: int, temperature: float, weight: float, mask: bool
) -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, distinct)
        options: Any = {"temperature": temperature, "hard_negative_weight": weight, "mask_duplicates": mask}
        expected = direct(anchors, candidates, texts, temperature, weight, mask)
        for devices in (1, 4):
            value = ours(devices, anchors, candidates, texts, **options)[0]
            assert float(value) == pytest.approx(expected, abs=1e-9)
        gradient = jax.jit(jax.grad(lambda a: ours(4, a, jnp.asarray(candidates), texts, **options)[0]))(
            jnp.asarray(anchors)
        )
        for i, d in ((0, 0), (5, 3), (11, 6)):
            step = np.zeros_like(anchors)
            step[i, d] = 1e-5
            slope = (
                direct(anchors + step, candidates, texts, temperature, weight, mask)
                - direct(anchors - step, candidates, texts, temperature, weight, mask)
            ) / 2e-5
            assert float(gradient[i, d]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_candidates_of_other_devices_get_their_gradient() -> None:
    """Gathering without the gradient would leave 1/N of it."""
    anchors, candidates, texts = inputs(1)

    def gradient(devices: int) -> np.ndarray:
        return jax.jit(jax.grad(lambda c: ours(devices, jnp.asarray(anchors), c, texts)[0]))(jnp.asarray(candidates))

    np.testing.assert_allclose(gradient(4), gradient(1), atol=1e-5 * np.abs(gradient(1)).max())


def test_symmetric_averages_both_directions() -> None:
    anchors, candidates, texts = inputs(0, 5)
    forward = direct(anchors, candidates, texts, 0.1, 1.0, True)
    backward = direct(candidates[0], anchors[None], texts[::-1], 0.1, 1.0, True)
    for devices in (1, 4):
        value = ours(devices, anchors, candidates, texts, temperature=0.1, symmetric=True)[0]
        assert float(value) == pytest.approx((forward + backward) / 2, abs=1e-5)


def test_diagnostics() -> None:
    anchors, candidates, _ = inputs(0)
    texts = np.tile(np.arange(BATCH, dtype=np.int32), (2, 1))
    texts[:, 3] = texts[:, 7]  # one pair of equal sentences: each masks the other
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (anchors, candidates[0])]
    cosines = unit[0] @ unit[1].T
    other = ~np.eye(BATCH, dtype=bool) & ~(texts[0][:, None] == texts[0][None])
    visible = np.where(other | np.eye(BATCH, dtype=bool), cosines, -2)
    expected = {
        "positive_cosine": np.diag(cosines).mean(),
        "negative_cosine": cosines[other].mean(),
        "accuracy": (visible.argmax(1) == np.arange(BATCH)).mean(),
        "alignment": ((unit[0] - unit[1]) ** 2).sum(1).mean(),
        "uniformity": np.log(np.exp(-2 * (2 - 2 * cosines[other])).mean()),
        "masked": 2.0,
    }
    for devices in (1, 4):
        metrics = ours(devices, anchors, candidates, texts)[1]
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(value, abs=1e-5), name


def test_masking_all_else_leaves_zero_loss() -> None:
    anchors, candidates, _ = inputs(0)
    loss, metrics = ours(2, anchors, candidates, np.zeros((2, BATCH), np.int32))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(metrics["masked"]) == BATCH * (BATCH - 1)

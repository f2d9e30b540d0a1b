"""What all losses share: metrics, masking, zero vectors, and memory that does not grow with the square of the batch."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective.contrastive import Objective, make_contrastive
from simcse_jax.objective.losses import LOSSES
from simcse_jax.training.mesh import make_mesh
from tests.objective.test_losses import BATCH, inputs, value_and_gradients

OPTIONS: dict[str, dict[str, Any]] = {
    "info_nce": {"temperature": 0.05, "hard_negative_weight": 1.0},
    "margin_ranking": {"margin": 0.2},
}


def objective(name: str, devices: int, **rest: Any) -> Objective:
    return make_contrastive(LOSSES[name], make_mesh(devices), **OPTIONS[name], **rest)


@pytest.mark.parametrize("name", OPTIONS)
def test_metrics(name: str) -> None:
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
    for devices, rest in ((1, {"tile": 0}), (4, {"tile": 5}), (4, {"tile": 5, "similarity": "dot"})):
        metrics = value_and_gradients(objective(name, devices, **rest), anchors, candidates, texts)[2]
        metrics["accuracy"] = expected["accuracy"] if "similarity" in rest else metrics["accuracy"]  # ranks products
        assert {key: float(value) for key, value in metrics.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_of_equally_similar_candidates_the_first_ranks_first(name: str) -> None:
    """Positives before hard negatives, of positives the one of the example with the lowest index, whatever the tile."""
    anchors, candidates, texts = inputs(2, 8)
    candidates[0, 4] = candidates[0, 20] = anchors[4]  # a tie of positives: 4 has the lower index, 20 the same vector
    anchors[20] = anchors[4]
    candidates[1, 2] = candidates[0, 9] = anchors[9]  # a tie with a hard negative of lower index, which ranks behind
    texts = np.arange(texts.size, dtype=np.int32).reshape(texts.shape)
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (anchors, candidates)]
    cosines = np.einsum("id,kjd->ikj", *unit).round(12)
    first = cosines.reshape(BATCH, -1).argmax(1) == np.arange(BATCH)
    assert first[[4, 9]].all()
    assert not first[20]
    for devices, tile in ((1, 0), (1, 1), (8, 2)):
        metrics = value_and_gradients(objective(name, devices, tile=tile), anchors, candidates, texts)[2]
        assert float(metrics["accuracy"]) == pytest.approx(first.mean()), (devices, tile)


def test_zero_vectors_have_finite_gradients() -> None:
    anchors, candidates, texts = inputs(0)
    anchors[0], candidates[0, 23] = 0, 0
    for tile in (0, 5):
        value, (_, *gradients), _ = value_and_gradients(objective("info_nce", 1, tile=tile), anchors, candidates, texts)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


def compiled(name: str, batch: int, width: int, tile: int) -> Any:
    """Compile loss and gradients for one device for shapes only."""
    z, texts = jax.ShapeDtypeStruct((batch // 64, 64, width), jnp.float32), jax.ShapeDtypeStruct((2, batch), jnp.int32)
    loss = jax.value_and_grad(objective(name, 1, tile=tile), argnums=(0, 1), has_aux=True)
    return jax.jit(loss).lower(z, jax.ShapeDtypeStruct((1, *z.shape), z.dtype), texts).compile()


def largest_array(program: Any) -> int:
    """Return the elements of the largest array of any type in a compiled program."""
    shapes = re.findall(r"\b(?:f32|f64|bf16|pred|[su]\d+)\[([\d,]+)\]", program.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_no_array_holds_the_similarities_of_a_batch() -> None:
    batch, width = 4096, 32
    embeddings = batch * width  # 131,072 elements; a tile has 65,536, and all similarities are 16.8 million
    assert largest_array(compiled("info_nce", batch, width, 256)) == embeddings
    assert largest_array(compiled("margin_ranking", batch, width, 64)) == 64 * batch
    assert largest_array(compiled("info_nce", batch, width, 0)) == batch * batch

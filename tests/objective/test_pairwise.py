"""Triplet, margin ranking and sigmoid losses against direct float64 computations, one pair at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective.contrastive import Objective
from simcse_jax.objective.pairwise import make_margin_ranking, make_sigmoid, make_triplet
from simcse_jax.training.mesh import make_mesh
from tests.objective.test_contrastive import BATCH, GROUPS, SIZE, inputs

# (similarity with the positive, those with the negatives) -> loss of an anchor
OfAnchor = Callable[[float, list[float]], float]


def direct(
    of_anchor: OfAnchor,
    anchors: np.ndarray,
    candidates: np.ndarray,
    texts: np.ndarray,
    mask_duplicates: bool = True,
    symmetric: bool = False,
    similarity: str = "cosine",
) -> float:
    """The mean over anchors [B, D], candidates [K, B, D], texts [K + 1, B]."""
    losses = []
    for i, a in enumerate(anchors):
        negatives = []
        for k, columns in enumerate(candidates):
            for j, c in enumerate(columns):
                value = a @ c if similarity == "dot" else a @ c / np.sqrt(a @ a) / np.sqrt(c @ c)
                if (k, j) == (0, i):
                    positive = value
                elif not (mask_duplicates and texts[k + 1, j] in (texts[0, i], texts[1, i])):
                    negatives.append(value)
        losses.append(of_anchor(positive, negatives))
    loss = float(np.mean(losses))
    if symmetric:
        back = direct(of_anchor, candidates[0], anchors[None], texts[[1, 0]], mask_duplicates, similarity=similarity)
        loss = (loss + back) / 2
    return loss


def triplet(margin: float, mining: str) -> OfAnchor:
    def of_anchor(positive: float, negatives: list[float]) -> float:
        own, others = 2 - 2 * positive, [2 - 2 * s for s in negatives]
        farther = [d for d in others if d > own]
        chosen = {
            "all": others,
            "hardest": [min(others)],
            "semi_hard": [min(farther)] if farther else [max(others)],
        }[mining]
        return float(np.mean([max(0.0, own - d + margin) for d in chosen]))

    return of_anchor


def ranking(margin: float) -> OfAnchor:
    return lambda positive, negatives: float(np.mean([max(0.0, margin - positive + s) for s in negatives]))


def sigmoid(temperature: float, bias: float) -> OfAnchor:
    def of_anchor(positive: float, negatives: list[float]) -> float:
        signed = [positive / temperature + bias, *(-(s / temperature + bias) for s in negatives)]
        return float(sum(np.log1p(np.exp(-x)) for x in signed))

    return of_anchor


MAKERS: dict[str, Callable[..., Objective]] = {
    "triplet": make_triplet,
    "ranking": make_margin_ranking,
    "sigmoid": make_sigmoid,
}
CASES: list[tuple[str, dict[str, Any], OfAnchor]] = [
    *(
        ("triplet", {"margin": 0.5, "mining": mining}, triplet(0.5, mining))
        for mining in ("all", "semi_hard", "hardest")
    ),
    ("triplet", {"margin": 0.1, "mining": "semi_hard"}, triplet(0.1, "semi_hard")),
    ("ranking", {"margin": 0.3}, ranking(0.3)),
    ("ranking", {"margin": 2.0, "similarity": "dot"}, ranking(2.0)),
    ("sigmoid", {"temperature": 0.2, "bias": -3.0}, sigmoid(0.2, -3.0)),
    ("sigmoid", {"temperature": 4.0, "bias": -1.0, "similarity": "dot"}, sigmoid(4.0, -1.0)),
]


def value_and_gradients(
    objective: Objective, anchors: Any, candidates: Any, texts: Any, learned: Any = None
) -> tuple[Any, Any, Any]:
    def loss(learned: Any, a: jax.Array, c: jax.Array) -> Any:
        return objective(a.reshape(GROUPS, SIZE, -1), c.reshape(len(c), GROUPS, SIZE, -1), texts, learned)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, metrics), gradients = run(learned or {}, jnp.asarray(anchors), jnp.asarray(candidates))
    return value, gradients, metrics


@pytest.mark.parametrize(("name", "options", "of_anchor"), CASES)
@pytest.mark.parametrize(
    ("hard_negatives", "distinct", "rest"),
    [(0, 1000, {}), (2, 8, {}), (1, 8, {"symmetric": True}), (1, 8, {"mask_duplicates": False})],
)
def test_loss_and_gradient_equal_the_direct_ones(
    name: str, options: dict, of_anchor: OfAnchor, hard_negatives: int, distinct: int, rest: dict
) -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, distinct)
        similarity = options.get("similarity", "cosine")

        def exact(anchors: np.ndarray, candidates: np.ndarray) -> float:
            return direct(of_anchor, anchors, candidates, texts, similarity=similarity, **rest)

        for devices, tile in ((1, 0), (4, 5)):
            objective = MAKERS[name](make_mesh(devices), **options, **rest, tile=tile)
            value, (_, to_anchors, to_candidates), _ = value_and_gradients(objective, anchors, candidates, texts)
            assert float(value) == pytest.approx(exact(anchors, candidates), abs=1e-9)
            assert np.abs(to_anchors).max() > 1e-4
            for i, d in ((0, 0), (5, 3), (23, 6)):
                step = np.zeros_like(anchors)
                step[i, d] = 1e-6
                slope = (exact(anchors + step, candidates) - exact(anchors - step, candidates)) / 2e-6
                assert float(to_anchors[i, d]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
                both = np.zeros_like(candidates)
                both[-1, i, d] = 1e-6
                slope = (exact(anchors, candidates + both) - exact(anchors, candidates - both)) / 2e-6
                assert float(to_candidates[-1, i, d]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_what_sigmoid_learns() -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(1, 8)
        for devices in (1, 4):
            objective = make_sigmoid(make_mesh(devices), temperature=9.0, bias=9.0)
            learned = {"log_temperature": jnp.log(jnp.asarray(0.2)), "bias": jnp.asarray(-3.0)}
            value, (to_learned, *_), metrics = value_and_gradients(objective, anchors, candidates, texts, learned)
            assert float(value) == pytest.approx(direct(sigmoid(0.2, -3.0), anchors, candidates, texts), abs=1e-9)
            assert (float(metrics["temperature"]), float(metrics["bias"])) == (pytest.approx(0.2), -3.0)
            step = 1e-6

            def at(log_temperature: float, bias: float) -> float:
                return direct(sigmoid(float(np.exp(log_temperature)), bias), anchors, candidates, texts)

            log = float(np.log(0.2))
            slopes = [
                (at(log + step, -3.0) - at(log - step, -3.0)) / 2 / step,
                (at(log, -3.0 + step) - at(log, -3.0 - step)) / 2 / step,
            ]
            found = [float(to_learned["log_temperature"]), float(to_learned["bias"])]
            assert found == pytest.approx(slopes, rel=1e-5)


@pytest.mark.parametrize("mining", ["all", "semi_hard", "hardest"])
def test_an_anchor_without_negatives_has_no_loss(mining: str) -> None:
    anchors, candidates, _ = inputs(0)
    objective = make_triplet(make_mesh(2), mining=mining)
    value, gradients, _ = value_and_gradients(objective, anchors, candidates, np.zeros((2, BATCH), np.int32))
    assert float(value) == 0
    assert all(np.abs(g).max() == 0 for g in gradients[1:])


def test_metrics_are_those_of_info_nce() -> None:
    from simcse_jax.objective.contrastive import make_info_nce

    anchors, candidates, texts = inputs(2, 8)
    expected = value_and_gradients(make_info_nce(make_mesh(1)), anchors, candidates, texts)[2]
    for devices, tile in ((1, 0), (4, 5)):
        found = value_and_gradients(make_triplet(make_mesh(devices), tile=tile), anchors, candidates, texts)[2]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), abs=1e-5), name


def test_no_array_holds_the_similarities_of_a_batch() -> None:
    from tests.objective.test_contrastive import largest_array

    batch, width, tile = 4096, 32, 64
    z, texts = jax.ShapeDtypeStruct((batch // 64, 64, width), jnp.float32), jax.ShapeDtypeStruct((2, batch), jnp.int32)

    def compiled(tile: int) -> Any:
        loss = jax.value_and_grad(make_margin_ranking(make_mesh(1), tile=tile), argnums=(0, 1), has_aux=True)
        return jax.jit(loss).lower(z, jax.ShapeDtypeStruct((1, *z.shape), z.dtype), texts).compile()

    assert largest_array(compiled(tile)) == tile * batch
    assert largest_array(compiled(0)) == batch * batch

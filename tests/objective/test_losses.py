"""Each loss against its equation, computed in float64 NumPy one anchor at a time, in value and gradient."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.data.batches import Batch
from simcse_jax.group import NO_TEXT
from simcse_jax.objective.contrastive import Queue, make_contrastive
from simcse_jax.objective.loss import PairwiseLoss, Scores
from simcse_jax.objective.losses import LOSSES, graded_losses
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.state import QUEUE
from simcse_jax.training.step import Encoded, make_loss
from tests.small_models import train_small

GROUPS, SIZE, WIDTH = 8, 3, 7
BATCH = GROUPS * SIZE

# (similarity with the positive, with negatives [n], which negatives are the anchor's own [n], options) -> loss
Equation = Callable[[float, np.ndarray, np.ndarray, dict[str, Any]], float]


def info_nce(positive: float, negatives: np.ndarray, is_own: np.ndarray, options: dict[str, Any]) -> float:
    weights = np.where(is_own, options["hard_negative_weight"], 1.0)
    terms = weights * np.exp(negatives / options["temperature"])
    own = np.exp(positive / options["temperature"])
    return -float(np.log(own / (own + terms.sum())))


def triplet(positive: float, negatives: np.ndarray, is_own: np.ndarray, options: dict[str, Any]) -> float:
    own, others = 2 - 2 * positive, 2 - 2 * negatives  # squared distances of unit vectors
    if not others.size:
        return 0.0
    farther = others[others > own]
    chosen = {
        "all": others,
        "hardest": others.min(),
        "semi_hard": farther.min() if farther.size else others.max(),
    }[options["mining"]]
    return float(np.mean(np.maximum(0.0, own - chosen + options["margin"])))


def margin_ranking(positive: float, negatives: np.ndarray, is_own: np.ndarray, options: dict[str, Any]) -> float:
    return float(np.mean(np.maximum(0.0, options["margin"] - positive + negatives))) if negatives.size else 0.0


def sigmoid(positive: float, negatives: np.ndarray, is_own: np.ndarray, options: dict[str, Any]) -> float:
    signed = np.append(-negatives, positive) / options["temperature"]
    signed += np.append(np.full(len(negatives), -options["bias"]), options["bias"])
    return float(np.log1p(np.exp(-signed)).sum())


EQUATIONS: dict[str, Equation] = {f.__name__: f for f in (info_nce, triplet, margin_ranking, sigmoid)}


def expected(
    name: str,
    options: dict[str, Any],
    anchors: np.ndarray,
    candidates: np.ndarray,
    texts: np.ndarray,
    *,
    similarity: str = "cosine",
    symmetric: bool = False,
    mask_duplicates: bool = True,
    older: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Return the mean over anchors [B, D] of candidates [K, B, D], texts [K + 1, B], and older (vectors, texts)."""
    everyone, their_texts = candidates.reshape(-1, candidates.shape[-1]), texts[1:].ravel()
    if older is not None:
        everyone, their_texts = np.concatenate([everyone, older[0]]), np.concatenate([their_texts, older[1]])
    lengths = [np.ones(len(z)) if similarity == "dot" else np.linalg.norm(z, axis=1) for z in (anchors, everyone)]
    similarities = anchors @ everyone.T / lengths[0][:, None] / lengths[1]
    losses, place = [], np.arange(len(everyone))
    for i, row in enumerate(similarities):
        negative = (place != i) & (their_texts != NO_TEXT)
        if mask_duplicates:
            negative &= (their_texts != texts[0, i]) & (their_texts != texts[1, i])
        is_own = (place % BATCH == i) & (place < candidates.shape[0] * BATCH)
        losses.append(EQUATIONS[name](row[i], row[negative], is_own[negative], options))
    loss = float(np.mean(losses))
    if symmetric:
        rest: Any = {"similarity": similarity, "mask_duplicates": mask_duplicates}
        loss = (loss + expected(name, options, candidates[0], anchors[None], texts[[1, 0]], **rest)) / 2
    return loss


def inputs(hard_negatives: int, distinct_texts: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return anchors [B, D], candidates [K, B, D] near them, and texts [K + 1, B]."""
    rng = np.random.default_rng(0)
    anchors = rng.normal(size=(BATCH, WIDTH))
    candidates = rng.normal(size=(1 + hard_negatives, BATCH, WIDTH)) + anchors
    return anchors, candidates, rng.integers(0, distinct_texts, (2 + hard_negatives, BATCH)).astype(np.int32)


def value_and_gradients(
    objective: Any, anchors: Any, candidates: Any, texts: Any, learned: Any = None, queue: Any = None
) -> tuple[float, tuple[Any, np.ndarray, np.ndarray], dict[str, Any]]:
    """Return loss, gradients for (learned, anchors, candidates), and metrics."""

    def loss(learned: Any, a: jax.Array, c: jax.Array) -> Any:
        shaped = a.reshape(GROUPS, SIZE, -1), c.reshape(len(c), GROUPS, SIZE, -1)
        return objective(*shaped, texts, learned, queue)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, metrics), gradients = run(learned or {}, jnp.asarray(anchors), jnp.asarray(candidates))
    return float(value), gradients, metrics


def assert_gradient(found: Any, at: Callable[..., float], *arrays: np.ndarray) -> None:
    """Compare the gradients for arrays with the slopes of `at` along random directions through all of them."""
    rng = np.random.default_rng(1)
    for _ in range(3):
        steps = [rng.normal(size=array.shape) for array in arrays]
        ahead, behind = (at(*(x + h * d for x, d in zip(arrays, steps, strict=True))) for h in (1e-6, -1e-6))
        along = sum(float((np.asarray(g) * d).sum()) for g, d in zip(found, steps, strict=True))
        assert along == pytest.approx((ahead - behind) / 2e-6, rel=1e-6, abs=1e-7)
    assert all(np.abs(g).max() > 1e-4 for g in found)


NCE: dict[str, Any] = {"temperature": 0.1, "hard_negative_weight": 1.0}
CASES: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("info_nce", {"temperature": 0.05, "hard_negative_weight": 1.0}, 0, {}),
    ("info_nce", {"temperature": 0.2, "hard_negative_weight": 3.0}, 2, {}),
    ("info_nce", {"temperature": 0.1, "hard_negative_weight": 0.5}, 1, {"symmetric": True}),
    ("info_nce", NCE, 1, {"mask_duplicates": False}),
    ("info_nce", {"temperature": 0.7, "hard_negative_weight": 1.0}, 2, {"similarity": "dot"}),
    ("triplet", {"margin": 0.5, "mining": "all"}, 2, {}),
    ("triplet", {"margin": 0.5, "mining": "hardest"}, 1, {"symmetric": True}),
    ("triplet", {"margin": 0.1, "mining": "semi_hard"}, 2, {}),
    ("triplet", {"margin": 0.5, "mining": "semi_hard"}, 0, {"mask_duplicates": False}),
    ("margin_ranking", {"margin": 0.3}, 2, {}),
    ("margin_ranking", {"margin": 2.0}, 1, {"similarity": "dot", "symmetric": True}),
    ("sigmoid", {"temperature": 0.2, "bias": -3.0}, 2, {}),
    ("sigmoid", {"temperature": 4.0, "bias": -1.0}, 1, {"similarity": "dot", "symmetric": True}),
]
ONE_TILE, TILES_ON_DEVICES = (1, 0), (4, 5)  # 6 anchors a device; tiles of 5 divide neither these nor the 24 examples


LAYOUTS = [(case, layout) for case in CASES for layout in (ONE_TILE, TILES_ON_DEVICES)]
LAYOUTS += [(CASES[1], layout) for layout in ((1, 1), (2, 3), (8, 1024))]


@pytest.mark.parametrize(("case", "layout"), LAYOUTS)
def test_loss_and_gradient_are_those_of_the_equation(
    case: tuple[str, dict[str, Any], int, dict[str, Any]], layout: tuple[int, int]
) -> None:
    (name, options, hard_negatives, rest), (devices, tile) = case, layout
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, distinct_texts=8)
        if hard_negatives:
            texts[-1, ::3] = NO_TEXT  # some examples lack one

        def at(anchors: np.ndarray, candidates: np.ndarray) -> float:
            return expected(name, options, anchors, candidates, texts, **rest)

        objective = make_contrastive(LOSSES[name], make_mesh(devices), tile=tile, **options, **rest)
        value, (_, *gradients), _ = value_and_gradients(objective, anchors, candidates, texts)
        assert value == pytest.approx(at(anchors, candidates), abs=1e-9)
        assert_gradient(gradients, at, anchors, candidates)
        assert not np.asarray(gradients[1])[texts[1:] == NO_TEXT].any()


@pytest.mark.parametrize(
    ("name", "options", "learned", "shown"),
    [
        ("info_nce", {"hard_negative_weight": 2.0}, {"log_temperature": math.log(0.3)}, {"temperature": 0.3}),
        ("sigmoid", {}, {"log_temperature": math.log(0.2), "bias": -3.0}, {"temperature": 0.2, "bias": -3.0}),
    ],
)
@pytest.mark.parametrize(("devices", "tile"), [ONE_TILE, TILES_ON_DEVICES])
def test_what_is_learned_replaces_the_option_and_has_the_gradient(
    name: str, options: dict, learned: dict, shown: dict, devices: int, tile: int
) -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(1, 8)

        def at(*scalars: np.ndarray) -> float:
            given = dict(zip(learned, map(float, scalars), strict=True))
            values = {"temperature": math.exp(given.pop("log_temperature")), **given}
            return expected(name, options | values, anchors, candidates, texts, symmetric=True)

        fixed: Any = dict.fromkeys(shown, 9.0)
        objective = make_contrastive(LOSSES[name], make_mesh(devices), symmetric=True, tile=tile, **options, **fixed)
        scalars = {key: jnp.asarray(value) for key, value in learned.items()}
        value, (slopes, *_), metrics = value_and_gradients(objective, anchors, candidates, texts, scalars)
        start = [np.asarray(value) for value in learned.values()]
        assert value == pytest.approx(at(*start), abs=1e-9)
        assert_gradient([slopes[key] for key in learned], at, *start)
        assert {key: float(metrics[key]) for key in shown} == pytest.approx(shown)
        assert LOSSES[name].initial_scalars(shown) == pytest.approx(learned)


@pytest.mark.parametrize(("filled", "hard_negatives"), [(0, 0), (7, 1), (10, 0)])
def test_a_queue_holds_negatives_of_every_anchor(filled: int, hard_negatives: int) -> None:
    """Also where the texts of a pair differ: a queued text equal to either is left out."""
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, 8)
        rng = np.random.default_rng(5)
        vectors, their_texts = rng.normal(size=(10, WIDTH)), rng.integers(0, 12, 10).astype(np.int32)
        equal_to = [(their_texts[None, :filled] == row[:, None]).any(1) for row in texts[:2]]
        assert not filled or ((equal_to[0] & ~equal_to[1]).any() and (equal_to[1] & ~equal_to[0]).any())

        def at(anchors: np.ndarray, candidates: np.ndarray) -> float:
            older = vectors[:filled], their_texts[:filled]
            return expected("info_nce", NCE, anchors, candidates, texts, older=older)

        queue = Queue(*map(jnp.asarray, (vectors, their_texts, filled)))
        for devices, tile in (ONE_TILE, TILES_ON_DEVICES):
            objective = make_contrastive(LOSSES["info_nce"], make_mesh(devices), tile=tile, **NCE)
            value, (_, *gradients), _ = value_and_gradients(objective, anchors, candidates, texts, queue=queue)
            assert value == pytest.approx(at(anchors, candidates), abs=1e-9)
            assert_gradient(gradients, at, anchors, candidates)


def test_a_step_queues_the_positives_with_their_own_texts() -> None:
    """Not with their anchors' texts, which differ: a later anchor must not be pushed away from its own text."""
    anchors, candidates, texts = (jnp.asarray(x, jnp.float32) for x in inputs(1))
    z = jnp.concatenate([anchors[None], candidates]).reshape(3, GROUPS, SIZE, WIDTH)
    loss = make_loss(
        lambda trees, batch, keys: Encoded(z, None), make_contrastive(LOSSES["info_nce"], make_mesh(1), **NCE)
    )
    queue = Queue(jnp.zeros((30, WIDTH)), jnp.full(30, -7, jnp.int32), jnp.asarray(2))
    batch: Any = Batch(None, texts.astype(jnp.int32))  # pyright: ignore[reportArgumentType]
    _, (_, extra) = jax.jit(lambda: loss({}, {QUEUE: queue}, batch, jnp.zeros((1, 2), jnp.uint32)))()
    np.testing.assert_array_equal(extra[QUEUE].texts, [*texts[1].astype(int), *[-7] * 6])
    np.testing.assert_array_equal(extra[QUEUE].z[:BATCH], candidates[0])
    assert int(extra[QUEUE].filled) == BATCH + 2


@pytest.mark.medium
@pytest.mark.parametrize(("devices", "tile"), [ONE_TILE, TILES_ON_DEVICES])
def test_matryoshka_is_the_mean_over_widths(devices: int, tile: int) -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(1, 8)
        widths = (2, WIDTH, 4)

        def of_width(width: int, anchors: np.ndarray, candidates: np.ndarray) -> float:
            return expected("info_nce", NCE, anchors[..., :width], candidates[..., :width], texts)

        def at(anchors: np.ndarray, candidates: np.ndarray) -> float:
            return float(np.mean([of_width(width, anchors, candidates) for width in widths]))

        plain, nested = (
            make_contrastive(LOSSES["info_nce"], make_mesh(devices), tile=tile, widths=w, **NCE) for w in ((), widths)
        )
        value, (_, *gradients), metrics = value_and_gradients(nested, anchors, candidates, texts)
        assert value == pytest.approx(at(anchors, candidates), abs=1e-9)
        assert_gradient(gradients, at, anchors, candidates)
        for width in widths:
            assert float(metrics[f"loss_{width}"]) == pytest.approx(of_width(width, anchors, candidates), abs=1e-9)
        widest = value_and_gradients(plain, anchors, candidates, texts)[2]
        assert float(metrics["uniformity"]) == pytest.approx(float(widest["uniformity"]), rel=1e-9)


CONTRASTIVE = LOSSES.keys() - {*graded_losses()}  # test_graded.py has the others


def test_every_loss_has_an_equation_here() -> None:
    assert CONTRASTIVE == EQUATIONS.keys() == {name for name, *_ in CASES}


@pytest.mark.parametrize("name", sorted(CONTRASTIVE))
def test_an_anchor_without_negatives(name: str) -> None:
    """All texts equal: nothing to push away, whatever the tile, and no NaN where whole tiles are masked."""
    anchors, candidates, _ = inputs(1)
    given = {"temperature": 0.1, "hard_negative_weight": 1.0, "margin": 0.3, "mining": "semi_hard", "bias": -1.0}
    given |= {"hardness": 2.0, "hardness_of": "all", "hardness_normalized": True}
    options = {key: given[key] for key in LOSSES[name].options}
    texts = np.zeros((3, BATCH), np.int32)
    for devices, tile in ((1, 5), (2, 1)):
        objective = make_contrastive(LOSSES[name], make_mesh(devices), tile=tile, **options)
        value, (_, *gradients), metrics = value_and_gradients(objective, anchors, candidates, texts)
        assert value == pytest.approx(expected(name, options, anchors, candidates, texts), abs=1e-5)
        assert all(np.isfinite(g).all() for g in gradients)
        assert float(metrics["masked"]) == BATCH * (2 * BATCH - 1)


def test_a_loss_from_outside_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md says: a plain function and one line in the table."""

    def softplus(scores: Scores, *, temperature: float, margin: float) -> jax.Array:
        gaps = (scores.candidates - scores.positive[:, None] + margin) / temperature
        return jnp.where(scores.is_negative, jax.nn.softplus(gaps), 0).sum(1)

    monkeypatch.setitem(LOSSES, "softplus", PairwiseLoss(softplus))
    keys: Any = {"objective__loss": "softplus", "objective__margin": 0.1, "objective__temperature": 0.2}
    run = train_small(tmp_path / "run", tmp_path / "cache", **keys)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in line for line in lines) == 4

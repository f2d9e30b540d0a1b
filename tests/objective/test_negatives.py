"""Which negatives count, and how much: limits, guides and hardness against float64 NumPy and sentence-transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.group import NO_TEXT
from simcse_jax.objective.contrastive import Queue, make_contrastive
from simcse_jax.objective.false_negatives import Limit
from simcse_jax.objective.losses import LOSSES
from simcse_jax.training.mesh import make_mesh
from tests.objective.test_losses import BATCH, GROUPS, SIZE, WIDTH, assert_gradient, inputs, value_and_gradients

TEMPERATURE = 0.2


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def is_too_similar(kind: str, margin: float, cosines: np.ndarray, positive: float) -> np.ndarray:
    limits = {"absolute": positive - margin, "relative": positive - margin * abs(positive), "fixed": margin}
    return cosines > limits[kind]


def expected(
    anchors: np.ndarray,
    candidates: np.ndarray,
    texts: np.ndarray,
    held: tuple[np.ndarray, np.ndarray],
    limit: Limit | None = None,
    guide: np.ndarray | None = None,
    hardness: float = 0.0,
    hardness_of: str = "all",
    hardness_normalized: bool = True,
    hard_negative_weight: float = 1.0,
    symmetric: bool = False,
) -> float:
    """Return the mean InfoNCE over anchors [B, D] of candidates [K, B, D].

    held: the anchors and candidates from which weights and limits are computed, which have no gradient. guide:
    [K + 1, B, D'] in place of these for the limits.
    """
    everyone = unit(candidates.reshape(-1, candidates.shape[-1]))
    similarities = unit(anchors) @ everyone.T
    cosines = unit(held[0]) @ unit(held[1].reshape(-1, held[1].shape[-1])).T
    guided = cosines if guide is None else unit(guide[0]) @ unit(guide[1:].reshape(-1, guide.shape[-1])).T
    place, their_texts, losses = np.arange(len(everyone)), texts[1:].ravel(), []
    for i in range(BATCH):
        negative = (place != i) & (their_texts != NO_TEXT)
        negative &= (their_texts != texts[0, i]) & (their_texts != texts[1, i])
        if limit is not None:
            negative &= ~is_too_similar(limit.kind, limit.margin, guided[i], guided[i, i])
        is_own = place % BATCH == i
        weights = np.where(is_own, hard_negative_weight, 1.0)
        if hardness:
            harder = negative & {"all": place >= 0, "own": is_own, "batch": ~is_own}[hardness_of]
            factors = np.exp(hardness * cosines[i])
            if hardness_normalized and harder.any():
                factors = factors / factors[harder].mean()
            weights = weights * np.where(harder, factors, 1)
        terms = np.exp(similarities[i] / TEMPERATURE)
        losses.append(-np.log(terms[i] / (terms[i] + (weights * terms)[negative].sum())))
    loss = float(np.mean(losses))
    if symmetric:
        swapped = (held[1][0], held[0][None])
        guide = None if guide is None else guide[[1, 0]]
        rest: Any = (limit, guide, hardness, hardness_of, hardness_normalized)
        loss = (loss + expected(candidates[0], anchors[None], texts[[1, 0]], swapped, *rest)) / 2
    return loss


CASES: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"limit": Limit("absolute", 0.0)}, {}, 1),
    ({"limit": Limit("absolute", 0.3), "symmetric": True}, {"hard_negative_weight": 3.0}, 2),
    ({"limit": Limit("absolute", -0.2)}, {}, 0),
    ({"limit": Limit("relative", 0.4)}, {}, 2),
    ({"limit": Limit("fixed", 0.25), "symmetric": True}, {}, 1),
    ({"limit": Limit("absolute", 0.2), "is_guided": True, "symmetric": True}, {}, 2),
    ({"limit": Limit("relative", 0.1), "is_guided": True}, {"hardness": 1.0}, 1),
    ({"symmetric": True}, {"hardness": 2.0}, 1),
    ({}, {"hardness": 5.0, "hardness_of": "own", "hard_negative_weight": 0.5}, 2),
    ({}, {"hardness": 5.0, "hardness_of": "batch", "hardness_normalized": False}, 2),
    ({}, {"hardness": 40.0}, 0),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("devices", "tile"), [(1, 0), (4, 5)])
def test_loss_and_gradient_are_those_of_the_equation(case: Any, devices: int, tile: int) -> None:
    settings, options, hard_negatives = case
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, distinct_texts=60)
        if hard_negatives:
            texts[-1, ::3] = NO_TEXT
        vectors = (
            np.random.default_rng(7).normal(size=(2 + hard_negatives, BATCH, 9)) if "is_guided" in settings else None
        )
        shown = {key: settings[key] for key in settings if key != "is_guided"}

        def at(a: np.ndarray, c: np.ndarray) -> float:
            return expected(a, c, texts, (anchors, candidates), guide=vectors, **shown, **options)

        loss = make_contrastive(
            LOSSES["info_nce"],
            make_mesh(devices),
            tile=tile,
            temperature=TEMPERATURE,
            **{"hard_negative_weight": 1.0} | options,
            **settings,
        )
        guide = None if vectors is None else jnp.moveaxis(vectors.reshape(-1, GROUPS, SIZE, 9), 0, 1)

        def guided(*given: Any) -> Any:
            return loss(*given, guide=guide)

        value, (_, *gradients), metrics = value_and_gradients(guided, anchors, candidates, texts)
        assert value == pytest.approx(at(anchors, candidates), abs=1e-9)
        assert_gradient(gradients, at, anchors, candidates)
        plain = expected(anchors, candidates, texts, (anchors, candidates), symmetric="symmetric" in settings)
        assert abs(value - plain) > 1e-4  # the case is one
        assert not shown.get("limit") or float(metrics["masked"]) > BATCH


def test_queued_positives_may_be_too_similar_too() -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(0, 1000)
        queue = Queue(jnp.asarray(anchors[:4] * 3), jnp.arange(2000, 2004, dtype=jnp.int32), jnp.int32(4))
        options: Any = {"temperature": TEMPERATURE, "hard_negative_weight": 1.0, "hardness": 1.0}
        losses = {
            kind: value_and_gradients(
                make_contrastive(LOSSES["info_nce"], make_mesh(2), limit=Limit("fixed", margin), **options),
                *(anchors, candidates, texts, None, given),
            )[0]
            for kind, margin, given in (("own", 0.99999, queue), ("without", 0.99999, None), ("all", 2.0, queue))
        }
        # Without their own copies in the queue, these four anchors still have those of the others.
        assert losses["all"] > losses["own"] > losses["without"]


@pytest.mark.parametrize("name", ["triplet", "margin_ranking", "sigmoid"])
def test_other_losses_leave_out_the_same(name: str) -> None:
    """As if the texts of what is left out were the anchor's."""
    given = {"temperature": 0.1, "margin": 0.5, "mining": "all", "bias": -1.0}
    options: Any = {key: given[key] for key in LOSSES[name].options}
    anchors, candidates, texts = (jnp.asarray(x) for x in inputs(1, 1000))
    cosines = unit(np.asarray(anchors)) @ unit(np.asarray(candidates).reshape(-1, WIDTH)).T
    assert (cosines > 0.9).sum() < BATCH / 2  # the positives aside, few or none
    limited = make_contrastive(LOSSES[name], make_mesh(1), limit=Limit("fixed", -1.1), **options)
    value, _, metrics = value_and_gradients(limited, anchors, candidates, np.asarray(texts))
    assert float(metrics["masked"]) == BATCH * (2 * BATCH - 1)
    alone = make_contrastive(LOSSES[name], make_mesh(1), **options)
    assert value == pytest.approx(
        value_and_gradients(alone, anchors, candidates, np.zeros_like(np.asarray(texts)))[0], rel=1e-5
    )


class Vectors:
    """Stand for a model of sentence-transformers: it returns the vectors that it is given."""

    def __new__(cls) -> Any:
        torch = pytest.importorskip("torch")

        class Given(torch.nn.Module):
            def forward(self, features: dict[str, Any]) -> dict[str, Any]:
                return features

        return Given()


def features(z: np.ndarray) -> list[dict[str, Any]]:
    """Return columns [V, B, D] as sentence-transformers has them."""
    torch = pytest.importorskip("torch")
    return [{"sentence_embedding": torch.tensor(column)} for column in z]


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [("all_negatives", "all"), ("in_batch_negatives", "batch"), ("hard_negatives", "own")],
)
def test_hardness_is_that_of_sentence_transformers(theirs: str, mine: str) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    anchors, candidates, _ = inputs(2)
    texts = np.arange(4 * BATCH, dtype=np.int32).reshape(4, BATCH)
    of_st = losses.MultipleNegativesRankingLoss(
        Vectors(), scale=1 / TEMPERATURE, hardness_mode=theirs, hardness_strength=3.0
    )(features(np.concatenate([anchors[None], candidates])), None)
    options: Any = {"hardness": 3.0, "hardness_of": mine, "hardness_normalized": False, "hard_negative_weight": 1.0}
    loss = make_contrastive(LOSSES["info_nce"], make_mesh(1), temperature=TEMPERATURE, **options)
    value, *_ = value_and_gradients(loss, jnp.float32(anchors), jnp.float32(candidates), texts)
    assert value == pytest.approx(float(of_st), rel=1e-5)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_guide_leaves_out_what_gist_does(kind: str) -> None:
    """GISTEmbedLoss without its further contrasts, computed by its own `forward` on given vectors."""
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    anchors, candidates, _ = inputs(1)
    z = np.concatenate([anchors[None], candidates])
    vectors = np.random.default_rng(7).normal(size=(3, BATCH, 9)) + np.random.default_rng(8).normal(size=(BATCH, 9))
    texts = np.arange(3 * BATCH, dtype=np.int32).reshape(3, BATCH)
    gist = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)
    torch = pytest.importorskip("torch")
    torch.nn.Module.__init__(gist)

    class Guide(torch.nn.Module):
        def forward(self, given: dict[str, Any]) -> dict[str, Any]:
            return {"sentence_embedding": given["guide"]}

    gist.model, gist.guide, gist.must_retokenize = Vectors(), Guide(), False
    gist.temperature, gist.similarity_fct = TEMPERATURE, torch.nn.CosineSimilarity(dim=-1)
    gist.margin_strategy, gist.margin, gist.gather_across_devices = kind, 0.1, False
    gist.contrast_anchors = gist.contrast_positives = False
    gist.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    columns = [column | {"guide": torch.tensor(guide)} for column, guide in zip(features(z), vectors, strict=True)]
    of_st = float(gist(columns, None))
    options: Any = {"temperature": TEMPERATURE, "hard_negative_weight": 1.0}
    loss = make_contrastive(LOSSES["info_nce"], make_mesh(2), limit=Limit(kind, 0.1), is_guided=True, **options)
    guide = jnp.moveaxis(jnp.float32(vectors).reshape(3, GROUPS, SIZE, 9), 0, 1)
    given = (jnp.float32(anchors), jnp.float32(candidates), texts)
    value, _, metrics = value_and_gradients(lambda *x: loss(*x, guide=guide), *given)
    assert float(metrics["masked"]) > 5
    assert value == pytest.approx(of_st, rel=1e-5)

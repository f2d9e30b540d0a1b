"""InfoNCE against a direct float64 computation, one example at a time."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.objective.contrastive import Queue, make_info_nce, matryoshka
from simcse_jax.training.mesh import make_mesh

GROUPS, SIZE, WIDTH = 8, 3, 7
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


def exact(
    anchors: np.ndarray,
    candidates: np.ndarray,
    texts: np.ndarray,
    temperature: float = 0.05,
    hard_negative_weight: float = 1.0,
    symmetric: bool = False,
    mask_duplicates: bool = True,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss and gradients for anchors [B, D] and candidates [K, B, D], all at once, derived by hand."""
    count = len(anchors)
    lengths = [np.linalg.norm(z, axis=-1, keepdims=True) for z in (anchors, candidates)]
    a, c = anchors / lengths[0], candidates / lengths[1]
    own = np.eye(count, dtype=bool)[:, None]  # [B, 1, B]

    def one_way(queries: np.ndarray, keys: np.ndarray, key_texts: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        positive = own & (np.arange(len(keys)) == 0)[None, :, None]
        equal = (key_texts == texts[0][:, None, None]) | (key_texts == texts[1][:, None, None])
        weights = np.where(own & ~positive, hard_negative_weight, 1.0)
        weights = np.where(equal & ~positive & mask_duplicates, 0.0, weights)
        logits = np.einsum("id,kjd->ikj", queries, keys) / temperature
        terms = weights * np.exp(logits)
        shares = terms / terms.sum((1, 2), keepdims=True)
        slopes = (shares - positive) / temperature / count
        loss = -np.log(shares[positive]).mean()
        return loss, np.einsum("ikj,kjd->id", slopes, keys), np.einsum("ikj,id->kjd", slopes, queries)

    loss, to_a, to_c = one_way(a, c, texts[1:])
    if symmetric:
        back, to_first, to_anchors = one_way(c[0], a[None], texts[:1])
        loss, to_a, to_c = (loss + back) / 2, (to_a + to_anchors[0]) / 2, to_c / 2
        to_c[0] += to_first / 2
    # Through z / |z|: what is along z changes nothing.
    to_anchors, to_candidates = (
        (to - (to * z).sum(-1, keepdims=True) * z) / length
        for to, z, length in zip((to_a, to_c), (a, c), lengths, strict=True)
    )
    return float(loss), to_anchors, to_candidates


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


def loss_and_gradients(
    devices: int, anchors: np.ndarray, candidates: np.ndarray, texts: np.ndarray, **options: Any
) -> tuple[float, np.ndarray, np.ndarray]:
    def loss(a: jax.Array, c: jax.Array) -> jax.Array:
        return ours(devices, a, c, texts, **options)[0]

    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.asarray(anchors), jnp.asarray(candidates))
    return float(value), np.asarray(slopes[0]), np.asarray(slopes[1])


OPTIONS = [
    (0, 1000, {}),
    (2, 8, {"temperature": 0.2, "hard_negative_weight": 3.0}),
    (1, 8, {"temperature": 0.1, "hard_negative_weight": 0.5, "symmetric": True}),
    (1, 8, {"mask_duplicates": False}),
]


# Of 24 examples, 24, 12 or 3 a device: one tile, tiles that do not divide, that do, of one, of more than there are.
@pytest.mark.parametrize(
    ("tile", "hard_negatives", "distinct", "options"),
    [(tile, *case) for tile in (0, 5) for case in OPTIONS] + [(tile, *OPTIONS[1]) for tile in (3, 1, 1024)],
)
def test_every_tile_gives_the_exact_loss_and_gradients(
    tile: int, hard_negatives: int, distinct: int, options: dict
) -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, distinct)
        expected = exact(anchors, candidates, texts, **options)
        assert min(np.abs(slopes).max() for slopes in expected[1:]) > 1e-3
        for devices in (1, 2, 8):
            found = loss_and_gradients(devices, anchors, candidates, texts, tile=tile, **options)
            for mine, reference in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-9)


def test_the_last_tile_counts() -> None:
    """The negative case: were the last of 24, which tiles of 5 reach with padding, left out, the numbers would tell."""
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(0)
        found = loss_and_gradients(1, anchors, candidates, texts, tile=5)
        candidates[0, -1] += 1e-4
        for mine, reference in zip(found, exact(anchors, candidates, texts), strict=True):
            assert np.abs(mine - reference).max() > 1e-7


def test_metrics_are_those_of_one_block_whatever_the_tile() -> None:
    """With equal candidates, too: of these the first ranks first, positives before hard negatives."""
    anchors, candidates, texts = inputs(2, 8)
    candidates[0, 4] = candidates[0, 20] = anchors[4]  # a tie of positives: 4 has the lower place, 20 the same vector
    anchors[20] = anchors[4]
    candidates[1, 2] = candidates[0, 9] = anchors[9]  # a tie with a hard negative of lower place, which ranks behind
    texts = np.arange(texts.size, dtype=np.int32).reshape(texts.shape)
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (anchors, candidates)]
    cosines = np.einsum("id,kjd->ikj", *unit).round(12)
    first = cosines.reshape(BATCH, -1).argmax(1) == np.arange(BATCH)
    assert first[4]
    assert first[9]
    assert not first[20]
    expected = ours(1, anchors, candidates, texts, tile=0)[1]
    assert float(expected["accuracy"]) == pytest.approx(first.mean())
    for devices, tile in ((1, 5), (1, 1), (2, 5), (8, 2)):
        metrics = ours(devices, anchors, candidates, texts, tile=tile)[1]
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(float(value), abs=1e-6), (name, devices, tile)


def test_tiles_in_which_everything_is_masked() -> None:
    """Whole tiles without a candidate, the first ones among them, are no NaN."""
    anchors, candidates, _ = inputs(1)
    candidates[1] = candidates[0]
    texts = np.zeros((3, BATCH), np.int32)
    for devices, tile in ((1, 5), (2, 1)):
        found = loss_and_gradients(devices, anchors, candidates, texts, tile=tile)
        for value in found:
            np.testing.assert_allclose(value, 0, atol=1e-5)


def test_zero_vectors_have_finite_gradients_in_every_tile() -> None:
    anchors, candidates, texts = inputs(0)
    anchors[0], candidates[0, 23] = 0, 0
    for tile in (0, 5):
        assert all(np.isfinite(value).all() for value in loss_and_gradients(1, anchors, candidates, texts, tile=tile))


def compiled(batch: int, width: int, tile: int) -> Any:
    """Loss and gradients for one device, compiled for shapes only."""
    z, texts = jax.ShapeDtypeStruct((batch // 64, 64, width), jnp.float32), jax.ShapeDtypeStruct((2, batch), jnp.int32)
    loss = jax.value_and_grad(make_info_nce(make_mesh(1), tile=tile), argnums=(0, 1), has_aux=True)
    return jax.jit(loss).lower(z, jax.ShapeDtypeStruct((1, *z.shape), z.dtype), texts).compile()


def largest_array(program: Any) -> int:
    """Elements of the largest array of any type in a compiled program."""
    shapes = re.findall(r"\b(?:f32|f64|bf16|pred|[su]\d+)\[([\d,]+)\]", program.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_no_array_holds_the_cosines_of_a_batch() -> None:
    batch, width = 4096, 32
    embeddings = batch * width  # 131,072 elements; a tile has 65,536, and all cosines are 16.8 million
    assert largest_array(compiled(batch, width, 256)) == embeddings
    assert largest_array(compiled(batch, width, 0)) == batch * batch


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_not_with_its_square() -> None:
    def temporaries(tile: int) -> list[int]:
        return [compiled(batch, 64, tile).memory_analysis().temp_size_in_bytes for batch in (4096, 8192, 16384)]

    tiled, whole = temporaries(256), temporaries(0)
    assert [tiled[1] / tiled[0], tiled[2] / tiled[1]] == pytest.approx([1.9, 1.9], abs=0.15)  # a line, and a tile
    assert [whole[1] / whole[0], whole[2] / whole[1]] == pytest.approx([4, 4], abs=0.05)  # a parabola
    assert tiled[0] < whole[0] / 50


def test_products_instead_of_cosines() -> None:
    """Loss and gradients of raw products; the figures stay cosines."""
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(2, 8)
        anchors, candidates = 0.3 * anchors, 2 * candidates

        def exact_loss(anchors: np.ndarray, candidates: np.ndarray) -> float:
            logits = np.einsum("id,kjd->ikj", anchors, candidates) / 0.7
            own = np.eye(BATCH, dtype=bool)[:, None] & (np.arange(3) == 0)[None, :, None]
            equal = (texts[1:] == texts[0][:, None, None]) | (texts[1:] == texts[1][:, None, None])
            terms = np.exp(logits) * (own | ~equal)
            return float(np.mean(np.log(terms.sum((1, 2))) - logits[own]))

        plain = ours(1, anchors, candidates, texts)[1]
        for devices, tile in ((1, 0), (4, 5)):
            options: Any = {"similarity": "dot", "temperature": 0.7, "tile": tile}
            value, to_anchors, to_candidates = loss_and_gradients(devices, anchors, candidates, texts, **options)
            assert value == pytest.approx(exact_loss(anchors, candidates), abs=1e-9)
            for i, d in ((0, 0), (23, 6)):
                step, both = np.zeros_like(anchors), np.zeros_like(candidates)
                step[i, d] = both[1, i, d] = 1e-6
                slope = (exact_loss(anchors + step, candidates) - exact_loss(anchors - step, candidates)) / 2e-6
                assert to_anchors[i, d] == pytest.approx(slope, rel=1e-5, abs=1e-7)
                slope = (exact_loss(anchors, candidates + both) - exact_loss(anchors, candidates - both)) / 2e-6
                assert to_candidates[1, i, d] == pytest.approx(slope, rel=1e-5, abs=1e-7)
            metrics = ours(devices, anchors, candidates, texts, **options)[1]
            for name in ("positive_cosine", "negative_cosine", "alignment", "uniformity", "masked"):
                assert float(metrics[name]) == pytest.approx(float(plain[name]), abs=1e-9), name


def test_a_learned_temperature_is_the_one_that_counts() -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(1, 8)
        options: Any = {"hard_negative_weight": 2.0, "symmetric": True}

        def exact_loss(log_temperature: float) -> float:
            return exact(anchors, candidates, texts, temperature=math.exp(log_temperature), **options)[0]

        log = math.log(0.3)
        slope = (exact_loss(log + 1e-6) - exact_loss(log - 1e-6)) / 2e-6
        expected = exact(anchors, candidates, texts, temperature=0.3, **options)
        for devices, tile in ((1, 0), (1, 5), (4, 0)):
            objective = make_info_nce(make_mesh(devices), temperature=9.0, tile=tile, **options)

            def loss(log_temperature: Any, a: Any, objective: Any = objective) -> Any:
                shaped = a.reshape(GROUPS, SIZE, -1), jnp.asarray(candidates).reshape(2, GROUPS, SIZE, -1)
                return objective(*shaped, texts, {"log_temperature": log_temperature})

            run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
            (value, metrics), (to_log, to_anchors) = run(jnp.asarray(log), jnp.asarray(anchors))
            assert float(value) == pytest.approx(expected[0], abs=1e-9)
            assert float(to_log) == pytest.approx(slope, rel=1e-6)
            np.testing.assert_allclose(to_anchors, expected[1], atol=1e-9)
            assert float(metrics["temperature"]) == pytest.approx(0.3)


@pytest.mark.parametrize("hard_negatives", [0, 1])
@pytest.mark.parametrize("filled", [0, 7, 10])
def test_a_queue_holds_negatives_of_everybody(filled: int, hard_negatives: int) -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(hard_negatives, 8)
        rng = np.random.default_rng(5)
        older, older_texts = rng.normal(size=(10, WIDTH)), rng.integers(0, 12, 10).astype(np.int32)
        repeated = (older_texts[None] == texts[0][:, None]) | (older_texts[None] == texts[1][:, None])
        assert repeated.any()
        assert not repeated.all()
        own = np.eye(BATCH, dtype=bool)[:, None] & (np.arange(len(candidates)) == 0)[None, :, None]
        equal = (texts[1:] == texts[0][:, None, None]) | (texts[1:] == texts[1][:, None, None])

        def wanted(anchors: np.ndarray, candidates: np.ndarray) -> float:
            a, c, q = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (anchors, candidates, older[:filled]))
            logits = np.einsum("id,kjd->ikj", a, c) / 0.2
            of_queue = (np.exp(a @ q.T / 0.2) * ~repeated[:, :filled]).sum(1)
            return float(np.mean(np.log((np.exp(logits) * (own | ~equal)).sum((1, 2)) + of_queue) - logits[own]))

        def slope(argument: int, place: tuple[int, ...]) -> float:
            """Of `wanted`, by central differences."""
            moved = [[anchors.copy(), candidates.copy()] for _ in range(2)]
            for given, by in zip(moved, (1e-5, -1e-5), strict=True):
                given[argument][place] += by
            return (wanted(*moved[0]) - wanted(*moved[1])) / 2e-5

        queue = Queue(*map(jnp.asarray, (older, older_texts, filled)))
        for devices, tile in ((1, 0), (4, 5)):
            objective = make_info_nce(make_mesh(devices), temperature=0.2, tile=tile)

            def loss(anchors: jax.Array, candidates: jax.Array, objective: Any = objective) -> jax.Array:
                shaped = anchors.reshape(GROUPS, SIZE, -1), candidates.reshape(len(candidates), GROUPS, SIZE, -1)
                return objective(*shaped, texts, None, queue)[0]

            value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(anchors, candidates)
            assert float(value) == pytest.approx(wanted(anchors, candidates), abs=1e-9)
            for argument, place in ((0, (0, 0)), (0, (11, 6)), (0, (23, 3)), (1, (0, 5, 2)), (1, (-1, 17, 4))):
                assert float(gradients[argument][place]) == pytest.approx(slope(argument, place), abs=1e-8)


def test_loss_and_gradient_over_widths_are_those_of_the_definition() -> None:
    with jax.enable_x64(True):
        anchors, candidates, texts = inputs(1, 8)
        widths = (2, WIDTH, 4)
        expected, to_anchors, to_candidates = 0.0, np.zeros_like(anchors), np.zeros_like(candidates)
        for width in widths:
            loss, to_a, to_c = exact(anchors[..., :width], candidates[..., :width], texts)
            expected += loss / len(widths)
            to_anchors[..., :width] += to_a / len(widths)
            to_candidates[..., :width] += to_c / len(widths)
        for devices in (1, 4):
            nested = matryoshka(make_info_nce(make_mesh(devices)), widths)

            def loss_of(anchors: jax.Array, candidates: jax.Array, nested: Any = nested) -> jax.Array:
                return nested(anchors.reshape(GROUPS, SIZE, -1), candidates.reshape(2, GROUPS, SIZE, -1), texts)[0]

            value, gradients = jax.jit(jax.value_and_grad(loss_of, (0, 1)))(anchors, candidates)
            assert float(value) == pytest.approx(expected, abs=1e-9)
            np.testing.assert_allclose(gradients[0], to_anchors, atol=1e-9)
            np.testing.assert_allclose(gradients[1], to_candidates, atol=1e-9)


def test_matryoshka_is_the_mean_over_widths() -> None:
    anchors, candidates, texts = inputs(1, 8)
    each = {w: float(ours(1, anchors[..., :w], candidates[..., :w], texts)[0]) for w in (WIDTH, 4, 2)}
    assert len({round(value, 3) for value in each.values()}) == 3
    for devices in (1, 4):
        nested = jax.jit(matryoshka(make_info_nce(make_mesh(devices)), (2, WIDTH, 4)))
        shaped = anchors.reshape(GROUPS, SIZE, -1), candidates.reshape(2, GROUPS, SIZE, -1)
        loss, metrics = nested(*shaped, texts)
        assert float(loss) == pytest.approx(np.mean(list(each.values())), rel=1e-5)
        assert {w: float(metrics[f"loss_{w}"]) for w in each} == pytest.approx(each, rel=1e-5)
        plain = ours(1, anchors, candidates, texts)[1]
        assert float(metrics["uniformity"]) == pytest.approx(float(plain["uniformity"]), rel=1e-5)

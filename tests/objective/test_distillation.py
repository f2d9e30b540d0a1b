"""The teacher's losses against their equations in float64 NumPy, and against PyTorch's and sentence-transformers'."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.group import NO_TEXT
from simcse_jax.objective.distillation import DISTILLATIONS, NEED_PAIRS, make_distillation
from simcse_jax.training.mesh import make_mesh
from tests.objective.test_losses import BATCH, GROUPS, SIZE, WIDTH, assert_gradient

WIDER = 11
TEMPERATURES: dict[str, Any] = {"temperature": 0.2, "student_temperature": 0.5}


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def mse(z: np.ndarray, t: np.ndarray, texts: np.ndarray, kernel: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    return ((unit(z @ kernel) - unit(t)) ** 2).sum(-1)


def kl(z: np.ndarray, t: np.ndarray, texts: np.ndarray, kernel: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    found = np.zeros(len(z))
    for i in range(len(z)):
        others = (texts != texts[i]) & (texts != NO_TEXT)
        p, q = (
            np.exp(unit(x)[others] @ unit(x)[i] / options[key])
            for x, key in ((t, "temperature"), (z, "student_temperature"))
        )
        p, q = p / p.sum(), q / q.sum()
        found[i] = (p * np.log(p / q)).sum()
    return found


EQUATIONS = {f.__name__: f for f in (mse, kl)}


def margin_mse(z: np.ndarray, t: np.ndarray, texts: np.ndarray) -> float:
    """Return the mean over the anchors that have negatives; z [K, B, D], t [K, B, D'], texts [K, B]."""
    z, t, losses = unit(z), unit(t), []
    for i in range(BATCH):
        negatives = [(k, i) for k in range(2, len(z)) if texts[k, i] != NO_TEXT]
        if not negatives:
            negatives = [(1, j) for j in range(BATCH) if j != i and texts[1, j] not in texts[:2, i]]
        margins = [[v[0, i] @ v[1, i] - v[0, i] @ v[k, j] for k, j in negatives] for v in (z, t)]
        if negatives:
            losses.append(np.mean((np.array(margins[0]) - margins[1]) ** 2))
    return float(np.mean(losses))


def expected(name: str, z: np.ndarray, t: np.ndarray, texts: np.ndarray, kernel: np.ndarray, **options: Any) -> float:
    """Return the mean over the texts there are; z [K, B, D], t [V, B, D'], texts [K, B]."""
    t = np.broadcast_to(t, (len(z), *t.shape[1:]))
    if name == "margin_mse":
        return margin_mse(z, t, texts)
    t = t.reshape(-1, t.shape[-1])
    losses = EQUATIONS[name](z.reshape(-1, z.shape[-1]), t, texts.ravel(), kernel, options)
    return float(losses[texts.ravel() != NO_TEXT].mean())


def inputs(views: int, texts_of_an_example: int) -> tuple[np.ndarray, ...]:
    """Return embeddings [K, B, D], teacher's vectors [V, B, D'], texts [K, B], some equal, some missing, a kernel."""
    rng = np.random.default_rng(3)
    z, kernel = rng.normal(size=(views, BATCH, WIDTH)), rng.normal(size=(WIDTH, WIDER))
    texts = rng.integers(0, 30, (views, BATCH)).astype(np.int32)
    if texts_of_an_example == 1:
        texts[:] = texts[0]
    if texts_of_an_example > 2:
        texts[-1, ::3] = NO_TEXT
    return z, rng.normal(size=(texts_of_an_example, BATCH, WIDER)), texts, kernel


def grouped(x: Any) -> Any:
    return x.reshape(len(x), GROUPS, SIZE, -1)


@pytest.mark.parametrize("name", DISTILLATIONS)
@pytest.mark.parametrize(("views", "texts_of_an_example"), [(1, 1), (2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize(("devices", "tile"), [(1, 0), (4, 5)])
def test_loss_and_gradient_are_those_of_the_equation(
    name: str, views: int, texts_of_an_example: int, devices: int, tile: int
) -> None:
    if name == "margin_mse" and views == 1:
        pytest.skip("there are no pairs")
    with jax.enable_x64(True):
        z, t, texts, kernel = inputs(views, texts_of_an_example)
        loss = make_distillation(make_mesh(devices), {name: 2.5}, tile, **TEMPERATURES)

        def at(z: np.ndarray, kernel: np.ndarray) -> float:
            return 2.5 * expected(name, z, t, texts, kernel, **TEMPERATURES)

        def of(z: jax.Array, kernel: jax.Array) -> Any:
            return loss(grouped(z), jnp.moveaxis(grouped(t), 0, 1), texts, kernel)

        run = jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))
        (value, metrics), (to_z, to_kernel) = run(jnp.asarray(z), jnp.asarray(kernel))
        assert float(value) == pytest.approx(at(z, kernel), abs=1e-9)
        assert float(metrics[f"teacher_{name}"]) == pytest.approx(at(z, kernel) / 2.5, abs=1e-9)
        if name == "mse":
            assert_gradient((to_z, to_kernel), at, z, kernel)
        else:
            assert_gradient((to_z,), lambda z: at(z, kernel), z)
            assert not np.asarray(to_kernel).any()
        assert not np.asarray(to_z)[texts == NO_TEXT].any()


def test_a_loss_of_pairs_is_named_as_one() -> None:
    assert {"mse", "kl", *NEED_PAIRS} == DISTILLATIONS.keys()


def test_without_a_temperature_of_its_own_the_student_has_the_teacher_s() -> None:
    z, t, texts, kernel = inputs(1, 1)
    given: Any = grouped(jnp.float32(z)), jnp.moveaxis(grouped(jnp.float32(t)), 0, 1), texts, jnp.float32(kernel)
    value, _ = jax.jit(make_distillation(make_mesh(1), {"kl": 1.0}, temperature=0.3, student_temperature=0.0))(*given)
    same = {"temperature": 0.3, "student_temperature": 0.3}
    assert float(value) == pytest.approx(expected("kl", z, t, texts, kernel, **same), rel=1e-5)


def test_losses_add_up_by_weight_and_equal_widths_need_no_projection() -> None:
    with jax.enable_x64(True):
        z, _, texts, _ = inputs(1, 1)
        t = np.random.default_rng(4).normal(size=z.shape)
        loss = make_distillation(make_mesh(2), {"mse": 0.5, "kl": 3.0}, **TEMPERATURES)
        value, _ = jax.jit(loss)(grouped(z), jnp.moveaxis(grouped(t), 0, 1), texts, None)
        alone = {name: expected(name, z, t, texts, np.eye(WIDTH), **TEMPERATURES) for name in EQUATIONS}
        assert float(value) == pytest.approx(0.5 * alone["mse"] + 3 * alone["kl"], abs=1e-9)


def test_a_batch_of_equal_texts_has_no_divergence() -> None:
    z, t, texts, kernel = inputs(1, 1)
    loss = make_distillation(make_mesh(1), {"kl": 1.0}, **TEMPERATURES)

    def of(z: jax.Array) -> Any:
        return loss(grouped(z), jnp.moveaxis(grouped(jnp.float32(t)), 0, 1), np.zeros_like(texts), jnp.float32(kernel))[
            0
        ]

    value, gradient = jax.jit(jax.value_and_grad(of))(jnp.float32(z))
    assert float(value) == 0
    assert not np.asarray(gradient).any()


def test_they_are_those_of_sentence_transformers() -> None:
    """Its losses take vectors through a model; here the model returns what it is given."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    z, _, _, _ = inputs(1, 1)
    t = np.random.default_rng(4).normal(size=z.shape)
    texts = np.arange(BATCH, dtype=np.int32)[None]

    class Given(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features

    def found(name: str, **options: Any) -> float:
        loss = make_distillation(make_mesh(1), {name: 1.0}, **options)
        given: Any = (grouped(jnp.float32(z)), jnp.moveaxis(grouped(jnp.float32(t)), 0, 1), texts, None)
        return float(jax.jit(loss)(*given)[0])

    mine, theirs = (torch.tensor(unit(x[0])) for x in (z, t))
    of_st = losses.MSELoss(Given())([{"sentence_embedding": mine}], theirs)  # a mean over features
    assert found("mse") == pytest.approx(float(of_st) * WIDTH, rel=1e-5)
    # Each text as a query with all others as its documents.
    others = [[j for j in range(BATCH) if j != i] for i in range(BATCH)]
    features = [{"sentence_embedding": mine}] + [
        {"sentence_embedding": mine[[row[k] for row in others]]} for k in range(BATCH - 1)
    ]
    similarities = (theirs @ theirs.T).gather(1, torch.tensor(others))
    of_st = losses.DistillKLDivLoss(Given(), temperature=0.3)(features, similarities)
    assert found("kl", temperature=0.3, student_temperature=0.3) == pytest.approx(float(of_st) / 0.3**2, rel=1e-5)


def test_margins_are_those_of_sentence_transformers() -> None:
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

    class Given(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features

    z, t, *_ = inputs(4, 4)
    texts = np.arange(4 * BATCH, dtype=np.int32).reshape(4, BATCH)
    features = [{"sentence_embedding": torch.tensor(column)} for column in unit(z)]
    scores = [(unit(t)[0] * unit(t)[k]).sum(-1) for k in (1, 2, 3)]
    margins = torch.tensor(np.stack([scores[0] - scores[1], scores[0] - scores[2]], axis=1))
    of_st = float(losses.MarginMSELoss(Given())(features, margins))
    loss = make_distillation(make_mesh(2), {"margin_mse": 1.0})
    given = grouped(jnp.float32(z)), jnp.moveaxis(grouped(jnp.float32(t)), 0, 1), texts, None
    assert float(jax.jit(loss)(*given)[0]) == pytest.approx(of_st, rel=1e-5)

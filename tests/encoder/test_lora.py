"""Adapters of an encoder: their start, their gradients, and the merged model that computes the same."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder.adapted_params import is_frozen, join_params, merge_params, split_params
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.lora import DOWN, UP, Lora, make_lora
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.group import Group
from tests.packed import pack

BERT = Architecture("bert", 50, 16, 2, 2, 24, max_position_embeddings=32, dropout=0.0, initializer_range=0.3)
ALL = ("attention/qkv", "attention/out", "ffn/up", "ffn/down")
JOINED = dataclasses.replace(BERT, family="modernbert", gated=True, rope_theta=1e3, type_vocab_size=0)
GATED = dataclasses.replace(JOINED, family="nomic_bert")
SHARED = dataclasses.replace(BERT, family="albert", shared_layers=True)


def sentences() -> Group:
    rng = np.random.default_rng(0)
    return pack([rng.integers(5, 50, n) for n in (5, 3, 9, 4)], row_length=16)


def moved(params: Any) -> Any:
    """Return parameters whose B is no longer 0."""

    def one(path: Any, x: Any) -> Any:
        return x + 0.3 * np.sin(np.arange(x.size)).reshape(x.shape) if path[-1].key == UP else x

    return jax.tree_util.tree_map_with_path(one, params)


def adapted(of: Architecture, targets: str = "all", **layout: Any) -> tuple[Encoder, Any, Lora]:
    lora = make_lora(of, 3, 5.0, targets)
    dtype = jnp.result_type(float)
    encoder = Encoder(of, dtype, dtype, lora=lora, has_head=True, **layout)
    return encoder, jax.jit(lambda: init_params(encoder, 0))(), lora


@pytest.mark.parametrize(
    ("of", "parts"),
    [(BERT, (3, 1, 1, 1)), (JOINED, (1, 1, 1, 1)), (GATED, (3, 1, 2, 1))],
    ids=["apart", "joined", "gated"],
)
def test_each_matrix_of_transformers_has_its_own_adapter(of: Architecture, parts: tuple[int, ...]) -> None:
    assert make_lora(of, 4, 8.0, "all").parts == tuple(zip(ALL, parts, strict=True))
    assert make_lora(of, 4, 8.0, "attention").parts == tuple(zip(ALL[:2], parts[:2], strict=True))
    assert make_lora(of, 4, 8.0, "all").scale == 2


def test_adapters_start_as_those_of_peft_and_change_nothing() -> None:
    with jax.enable_x64(True):
        encoder, params, _ = adapted(BERT)
        trained, frozen = split_params(params)
        at_start = embed(encoder, params, sentences(), "avg")
        np.testing.assert_array_equal(at_start, embed(encoder.clone(lora=None), frozen, sentences(), "avg"))
    down, up = (np.asarray(trained["layers"]["ffn"]["down"][name]) for name in (DOWN, UP))
    assert down.shape == (2, 24, 1, 3)
    assert up.shape == (2, 1, 3, 16)
    assert not np.any(up)
    assert 0.9 < np.abs(down).max() * 24**0.5 <= 1  # Kaiming's uniform with a = sqrt(5)
    assert np.std(down) * 24**0.5 == pytest.approx(3**-0.5, rel=0.15)
    assert np.abs(down[0] - down[1]).max() > 0.01


def test_what_is_trained_and_what_is_frozen() -> None:
    _, params, _ = adapted(BERT, "attention")
    trained, frozen = split_params(params)
    of_trained = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(trained)
    }
    factors = {f"layers/attention/{part}/{name}" for part in ("qkv", "out") for name in (DOWN, UP)}
    assert of_trained == factors | {"head/kernel", "head/bias"}
    joined = join_params(trained, frozen)
    jax.tree.map(np.testing.assert_array_equal, joined, params)
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(step.key for step in path)
        assert is_frozen(names) == ("/".join(names) not in of_trained)


def reference_gradients(encoder: Encoder, params: Any, lora: Lora, loss: Any) -> Any:
    """Return the factors' gradients by the chain rule in NumPy, from those of the merged model's kernels."""
    whole = merge_params(jax.device_get(params), lora, np)
    plain = jax.device_get(jax.jit(jax.grad(lambda p: loss(encoder.clone(lora=None), p)))(whole))
    found: dict[str, Any] = {}
    for place, parts in lora.parts:
        block, part = place.split("/")
        dense = params["layers"][block][part]
        shape = encoder.architecture.layer_products[place].sizes
        down, up = np.array(dense[DOWN]), np.array(dense[UP])
        of_down, of_up = np.zeros_like(down), np.zeros_like(up)
        for n in range(len(down)):
            gradient = plain["layers"][block][part]["kernel"][n].reshape(shape)
            for p, own in enumerate(np.split(gradient, parts, axis=1)):
                of_down[n, :, p] = lora.scale * own @ up[n, p].T
                of_up[n, p] = lora.scale * down[n, :, p].T @ own
        found[place] = of_down, of_up
    return found, plain["head"]


@pytest.mark.medium
@pytest.mark.parametrize("of", [BERT, GATED, SHARED], ids=["bert", "gated", "shared"])
@pytest.mark.parametrize("unroll", [False, True])
def test_gradients_are_those_of_the_merged_model(of: Architecture, unroll: bool) -> None:
    with jax.enable_x64(True):
        encoder, params, lora = adapted(of, unroll=unroll)
        params = moved(params)
        aim = np.random.default_rng(1).normal(size=(4, 16))

        def loss(encoder: Encoder, params: Any) -> jax.Array:
            return jnp.sum((embed(encoder, params, sentences(), "cls") - aim) ** 2)

        value, found = jax.jit(jax.value_and_grad(lambda p: loss(encoder, p)))(params)
        expected, head = reference_gradients(encoder, params, lora, loss)
        merged = merge_params(params, lora)
        assert float(loss(encoder.clone(lora=None), merged)) == pytest.approx(float(value), rel=1e-12)
    for place, (of_down, of_up) in expected.items():
        block, part = place.split("/")
        dense = found["layers"][block][part]
        assert np.abs(of_down).max() > 1e-3
        np.testing.assert_allclose(dense[DOWN], of_down, rtol=0, atol=1e-10 * np.abs(of_down).max())
        np.testing.assert_allclose(dense[UP], of_up, rtol=0, atol=1e-10 * np.abs(of_up).max())
        assert not np.any(dense["kernel"])  # frozen
    np.testing.assert_allclose(found["head"]["kernel"], head["kernel"], rtol=1e-10)

"""The encoder: names of parameters, sentences that do not see each other, unused slots, precision, misuse.

Its numbers are in test_training_mode.py and test_parity.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.group import Group
from tests.packed import pack

# A wide initialiser: at 0.02 a tiny model is nearly the identity, and mistakes would hide.
CONFIG = Architecture("bert", 100, 32, 2, 4, 48, max_position_embeddings=24, initializer_range=0.3)
MODEL = Encoder(CONFIG, has_head=True)
COUNT, ROW = 10, 24


@pytest.fixture(scope="module")
def tokens() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 100, n).astype(np.int32) for n in (24, 3, 7, 12, 5, 2, 20, 9, 4, 11)]


@pytest.fixture(scope="module")
def packed(tokens: list[np.ndarray]) -> Group:
    group = pack(tokens, ROW)
    assert group.ids.shape[0] < COUNT
    assert group.segments.max() > 2
    return group


@pytest.fixture(scope="module")
def params(packed: Group) -> Any:
    """Random everywhere, norms and biases included."""
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), packed, "cls"))["params"]
    rng = np.random.default_rng(1)

    def leaf(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.2 * rng.normal(size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def test_parameters_are_named_and_stacked() -> None:
    group = pack([np.arange(3)], 4)
    variables = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), group, "cls"))
    shapes = jax.tree.map(lambda x: x.shape, variables["params"])
    norm, norms = {"scale": (32,), "bias": (32,)}, {"scale": (2, 32), "bias": (2, 32)}
    assert shapes == {
        "embeddings": {"word": (100, 32), "position": (24, 32), "token_type": (2, 32), "norm": norm},
        "layers": {
            "attention": {
                "qkv": {"kernel": (2, 32, 3, 4, 8), "bias": (2, 3, 4, 8)},
                "out": {"kernel": (2, 4, 8, 32), "bias": (2, 32)},
                "norm": norms,
            },
            "ffn": {
                "up": {"kernel": (2, 32, 48), "bias": (2, 48)},
                "down": {"kernel": (2, 48, 32), "bias": (2, 32)},
                "norm": norms,
            },
        },
        "head": {"kernel": (32, 32), "bias": (32,)},
    }


@pytest.fixture(scope="module")
def evaluate(params: Any) -> Any:
    """Return a function of a group that gives every pooler's embeddings, compiled once per shape."""
    run = jax.jit(lambda group: {pooler: MODEL.apply({"params": params}, group, pooler) for pooler in POOLERS})
    return lambda group: jax.device_get(run(group))


def test_sentences_do_not_see_each_other(evaluate: Any, tokens: list[np.ndarray], packed: Group) -> None:
    before = evaluate(packed)
    changed = 3
    others = [n for n in range(COUNT) if n != changed]
    altered = [ids if n != changed else 104 - ids for n, ids in enumerate(tokens)]
    after = evaluate(pack(altered, ROW))
    padding = packed.segments == 0
    assert padding.any()
    noisy = evaluate(
        packed._replace(ids=np.where(padding, 77, packed.ids), positions=np.where(padding, 9, packed.positions))
    )
    for pooler in POOLERS:
        np.testing.assert_array_equal(after[pooler][others], before[pooler][others])
        assert np.abs(after[pooler][changed] - before[pooler][changed]).max() > 1e-2
        np.testing.assert_array_equal(noisy[pooler], before[pooler])


def test_empty_slots_and_rows_change_nothing(evaluate: Any, tokens: list[np.ndarray], packed: Group) -> None:
    more = pack(tokens, ROW, rows=packed.ids.shape[0] + 1)
    more = more._replace(
        first_tokens=np.concatenate([more.first_tokens, np.zeros(2, np.int32)]),
        lengths=np.concatenate([more.lengths, np.zeros(2, np.int32)]),
    )
    vectors, expected = evaluate(more), evaluate(packed)
    for pooler in POOLERS:
        np.testing.assert_allclose(vectors[pooler][:COUNT], expected[pooler], atol=2e-6)
        assert np.isfinite(vectors[pooler]).all()
    assert not vectors["avg"][COUNT:].any()


def test_misuse_raises(params: Any, packed: Group) -> None:
    def apply(model: Encoder, *args: Any, **kwargs: Any) -> None:
        jax.eval_shape(lambda: model.apply({"params": params}, packed, *args, **kwargs))

    with pytest.raises(ValueError, match=r"needs a dropout key"):
        apply(MODEL, "cls", train=True)
    with pytest.raises(ValueError, match=r"'cls' needs a head"):
        apply(Encoder(CONFIG), "cls")
    with pytest.raises(ValueError, match=r"unknown pooler 'mean'; known: cls, cls_before_pooler, avg"):
        apply(MODEL, "mean")
    apply(Encoder(dataclasses.replace(CONFIG, dropout=0.0), has_head=True), "cls", train=True)  # nothing to drop


def test_an_unrolled_last_layer_computes_only_what_first_tokens_need(params: Any, packed: Group) -> None:
    def operations(encoder: Encoder, pooler: str) -> float:
        compiled = jax.jit(lambda params: embed(encoder, params, packed, pooler)).lower(params).compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        return costs["flops"]

    unrolled = MODEL.clone(unroll=True)
    assert operations(unrolled, "cls") < 0.9 * operations(unrolled, "avg")


def test_gradients_in_bfloat16_or_of_its_products_are_near_those_in_float32(params: Any, packed: Group) -> None:
    def gradient(dtype: Any, products: str = "float32") -> Any:
        model = Encoder(CONFIG, dtype, products=products, has_head=True, unroll=True)
        weights = np.random.default_rng(2).normal(size=(COUNT, CONFIG.hidden_size)).astype(np.float32)
        found = jax.jit(jax.grad(lambda params: jnp.sum(weights * embed(model, params, packed, "cls"))))(params)
        return jax.device_get(found)

    exact = gradient(jnp.float32)
    for rounded in (gradient(jnp.bfloat16), gradient(jnp.float32, "bfloat16")):
        for path, a in jax.tree_util.tree_leaves_with_path(exact):
            b = functools.reduce(lambda tree, step: tree[step.key], path, rounded)
            assert 1e-5 < np.linalg.norm(b - a) / np.linalg.norm(a) < 0.05, jax.tree_util.keystr(path)

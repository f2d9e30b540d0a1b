"""The encoder: layouts change no number, poolers are what they say, sentences do not see each other."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.data.packing import pack
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.model import Encoder, embed, unstack_layers
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.group import Group

# A wide initialiser: at 0.02 a tiny model is nearly the identity, and mistakes would hide.
CONFIG = Architecture("bert", 100, 32, 3, 4, 48, max_position_embeddings=24, initializer_range=0.3)
MODEL = Encoder(CONFIG, has_head=True)
COUNT, ROW = 10, 24
KEY = np.array([5, 6], np.uint32)


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
    norm, norms = {"scale": (32,), "bias": (32,)}, {"scale": (3, 32), "bias": (3, 32)}
    assert shapes == {
        "embeddings": {"word": (100, 32), "position": (24, 32), "token_type": (2, 32), "norm": norm},
        "layers": {
            "attention": {
                "qkv": {"kernel": (3, 32, 3, 4, 8), "bias": (3, 3, 4, 8)},
                "out": {"kernel": (3, 4, 8, 32), "bias": (3, 32)},
                "norm": norms,
            },
            "ffn": {
                "up": {"kernel": (3, 32, 48), "bias": (3, 48)},
                "down": {"kernel": (3, 48, 32), "bias": (3, 32)},
                "norm": norms,
            },
        },
        "head": {"kernel": (32, 32), "bias": (32,)},
    }


def _loss_and_gradient(model: Encoder, params: Any, group: Group) -> tuple[float, Any]:
    """A loss that looks at every embedding, of two views with different dropout."""
    weights = np.random.default_rng(2).normal(size=(COUNT, CONFIG.hidden_size)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def run(params: Any) -> jax.Array:
        a, b = embed(model, params, group, "cls", jnp.stack([KEY, KEY + 1]))
        return jnp.sum(weights * a) + jnp.mean(a * b)

    loss, gradient = run(params)
    return float(loss), jax.device_get(gradient)


@pytest.fixture(scope="module")
def padded_result(tokens: list[np.ndarray], params: Any) -> tuple[float, Any]:
    """Loss and gradient of the plainest layout: one sentence a row, layers in a loop, everything kept."""
    return _loss_and_gradient(MODEL, params, pack(tokens, ROW, one_per_row=True))


@pytest.mark.parametrize(
    ("one_per_row", "unroll", "remat"),
    [(False, False, False), (True, True, False), (True, False, True), (False, True, True)],
)
def test_layout_changes_neither_loss_nor_gradient_with_dropout_on(
    tokens: list[np.ndarray],
    params: Any,
    padded_result: tuple[float, Any],
    one_per_row: bool,
    unroll: bool,
    remat: bool,
) -> None:
    model = Encoder(CONFIG, has_head=True, unroll=unroll, remat=remat)
    # A wider row for one of the padded layouts, so that the amount of padding is seen not to matter either.
    row_length = 32 if remat else ROW
    loss, gradient = _loss_and_gradient(model, params, pack(tokens, row_length, one_per_row=one_per_row))
    expected_loss, expected = padded_result
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = functools.reduce(lambda tree, step: tree[step.key], path, expected)
        assert np.abs(leaf - other).max() <= 1e-5 * largest, jax.tree_util.keystr(path)


def test_dropout_is_on_and_differs_by_key(params: Any, packed: Group) -> None:
    run = jax.jit(lambda key: MODEL.apply({"params": params}, packed, "avg", key, train=True))
    first, again, other = run(KEY), run(KEY), run(KEY + 1)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 0.1


@pytest.fixture(scope="module")
def evaluate(params: Any) -> Any:
    """A function of a group that gives every pooler's vectors and the hidden states, compiled once per shape."""

    @jax.jit
    def run(group: Group) -> tuple[dict[str, Any], Any]:
        poolers = {pooler: MODEL.apply({"params": params}, group, pooler) for pooler in POOLERS}
        return poolers, MODEL.apply({"params": params}, group, method=MODEL.hidden_states)

    return lambda group: jax.device_get(run(group))


def test_poolers_against_hidden_states(evaluate: Any, params: Any, packed: Group) -> None:
    vectors, hidden = evaluate(packed)
    assert hidden.shape == (4, *packed.ids.shape, 32)
    flat = hidden.reshape(4, -1, 32).astype(np.float64)
    for n in range(COUNT):
        first = packed.first_tokens[n]
        means = flat[:, first : first + packed.lengths[n]].mean(axis=1)
        cls = flat[-1, first]
        expected = {
            "cls": np.tanh(cls @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])),
            "cls_before_pooler": cls,
            "avg": means[-1],
            "avg_top2": (means[-1] + means[-2]) / 2,
            "avg_first_last": (means[1] + means[-1]) / 2,
            "avg_embedding_last": (means[0] + means[-1]) / 2,
        }
        assert set(expected) == set(POOLERS)
        for pooler, vector in expected.items():
            np.testing.assert_allclose(vectors[pooler][n], vector, atol=3e-6, err_msg=pooler)


def test_sentences_do_not_see_each_other(evaluate: Any, tokens: list[np.ndarray], packed: Group) -> None:
    before, _ = evaluate(packed)
    changed = 3
    others = [n for n in range(COUNT) if n != changed]
    altered = [ids if n != changed else 104 - ids for n, ids in enumerate(tokens)]
    after, _ = evaluate(pack(altered, ROW))
    padding = packed.segments == 0
    assert padding.any()
    noisy, _ = evaluate(
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
    vectors, expected = evaluate(more)[0], evaluate(packed)[0]
    for pooler in POOLERS:
        np.testing.assert_allclose(vectors[pooler][:COUNT], expected[pooler], atol=2e-6)
        assert np.isfinite(vectors[pooler]).all()
    assert not vectors["avg"][COUNT:].any()


def test_bfloat16_is_near_float32(evaluate: Any, params: Any, packed: Group) -> None:
    model = Encoder(CONFIG, has_head=True, dtype=jnp.bfloat16)
    near = jax.jit(lambda: model.apply({"params": params}, packed, "avg_first_last"))()
    exact = evaluate(packed)[0]["avg_first_last"]
    assert near.dtype == jnp.float32  # pooled and handed out in float32
    error = np.linalg.norm(np.asarray(near) - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 1e-5 < error.max() < 0.05


def test_roberta_positions_start_after_the_padding_id(params: Any, tokens: list[np.ndarray]) -> None:
    config = dataclasses.replace(CONFIG, family="roberta", pad_token_id=1)
    assert (CONFIG.position_offset, CONFIG.max_length) == (0, 24)
    assert (config.position_offset, config.max_length) == (2, 22)
    group = pack(tokens[1:3], ROW)
    # The same table moved down by two rows gives BERT's result.
    embeddings = params["embeddings"]
    moved = {**params, "embeddings": {**embeddings, "position": np.roll(embeddings["position"], 2, axis=0)}}
    bert, roberta = jax.jit(
        lambda: (
            Encoder(CONFIG).apply({"params": params}, group, "avg"),
            Encoder(config).apply({"params": moved}, group, "avg"),
        )
    )()
    np.testing.assert_array_equal(np.asarray(bert), np.asarray(roberta))


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


@pytest.mark.parametrize("pooler", POOLERS)
def test_unrolled_layers_give_every_pooler(params: Any, packed: Group, pooler: str) -> None:
    unrolled = MODEL.clone(unroll=True)
    expected = jax.jit(lambda: embed(MODEL, params, packed, pooler))()
    np.testing.assert_allclose(
        jax.jit(lambda: embed(unrolled, params, packed, pooler))(), expected, rtol=1e-5, atol=2e-6
    )
    own = unstack_layers(params)
    assert sorted(own) == ["embeddings", "head", "layer_0", "layer_1", "layer_2"]
    np.testing.assert_array_equal(own["layer_2"]["ffn"]["up"]["bias"], params["layers"]["ffn"]["up"]["bias"][2])


def test_an_unrolled_last_layer_computes_only_what_first_tokens_need(params: Any, packed: Group) -> None:
    def operations(encoder: Encoder, pooler: str) -> float:
        compiled = jax.jit(lambda params: embed(encoder, params, packed, pooler)).lower(params).compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        return costs["flops"]

    unrolled = MODEL.clone(unroll=True)
    assert operations(unrolled, "cls") < 0.9 * operations(unrolled, "avg")


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("pooler", POOLERS)
def test_stacked_groups_and_views_are_those_one_by_one(
    params: Any, tokens: list[np.ndarray], pooler: str, unroll: bool
) -> None:
    model = MODEL.clone(unroll=unroll)
    groups = [pack(some, ROW, rows=4) for some in (tokens[:4], tokens[4:8], tokens[6:])]
    groups[1].lengths[3] = groups[1].first_tokens[3] = 0  # a slot that nobody has
    keys = jnp.stack([KEY, KEY + 1])
    stacked: Any = jax.tree.map(lambda *x: np.stack(x), *groups)
    run = jax.jit(lambda group, key: embed(model, params, group, pooler, key))
    found = run(stacked, keys)
    assert found.shape == (2, 3, 4, CONFIG.hidden_size)
    for v, g in np.ndindex(2, 3):
        np.testing.assert_allclose(found[v, g], run(groups[g], keys[v]), rtol=1e-5, atol=3e-6)
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_allclose(run(stacked, None)[1], run(groups[1], None), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("unroll", [False, True])
def test_gradients_in_bfloat16_are_near_those_in_float32(params: Any, packed: Group, unroll: bool) -> None:
    def gradient(dtype: Any) -> Any:
        model = Encoder(CONFIG, dtype, has_head=True, unroll=unroll)
        weights = np.random.default_rng(2).normal(size=(COUNT, CONFIG.hidden_size)).astype(np.float32)
        found = jax.jit(jax.grad(lambda params: jnp.sum(weights * embed(model, params, packed, "cls"))))(params)
        return jax.device_get(found)

    exact, rounded = gradient(jnp.float32), gradient(jnp.bfloat16)
    for path, a in jax.tree_util.tree_leaves_with_path(exact):
        b = functools.reduce(lambda tree, step: tree[step.key], path, rounded)
        assert np.linalg.norm(b - a) < 0.05 * np.linalg.norm(a), jax.tree_util.keystr(path)

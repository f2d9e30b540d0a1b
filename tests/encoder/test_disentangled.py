"""Disentangled attention: against its definition, PyTorch's buckets, and itself in other layouts and dtypes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.disentangled import buckets, by_distance, table_rows, with_distances
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder, embed
from tests.packed import pack

B, H, D = 2, 3, 4
OF = Architecture("deberta-v2", 60, 16, 2, 2, 24, max_position_embeddings=40, dropout=0, disentangled_buckets=6)


# Of the published models, of longer ones, and with an odd number; the last has a bucket for every distance.
@pytest.mark.parametrize(("count", "farthest"), [(256, 512), (256, 4096), (12, 40), (7, 100), (2, 9), (256, 100)])
def test_every_distance_is_in_pytorchs_bucket(count: int, farthest: int) -> None:
    distances = np.arange(1 - farthest, farthest)
    theirs = make_log_bucket_position(torch.tensor(distances), count, farthest).long()
    np.testing.assert_array_equal(buckets(distances, count, farthest), theirs.numpy())
    rows = torch.clamp(theirs + count, 0, 2 * count - 1)
    np.testing.assert_array_equal(table_rows(distances, count, farthest), rows.numpy())


def test_tokens_of_other_sentences_have_a_row_of_the_table_too() -> None:
    """Rows of a batch may be longer than a sentence may be."""
    rows = table_rows(np.arange(-5000, 5001), 256, 512)
    assert (rows.min(), rows.max()) == (0, 511)
    assert (np.diff(rows) >= 0).all()


def given(tokens: int) -> tuple[jax.Array, jax.Array]:
    """Return random qkv and a table."""
    rng = np.random.default_rng(0)
    shapes = (B, tokens, 3 * H * D), (12, 3 * H * D)
    qkv, table = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return qkv, table


def definition(qkv: jax.Array, table: jax.Array) -> jax.Array:
    """Return the sum over both pairs, with a vector looked up for every query and key."""
    places = np.arange(qkv.shape[1])
    of_pairs = table.reshape(12, 3, H, D)[table_rows(places[:, None] - places[None], 6, 40)]  # [T, T, 3, H, D]
    of_tokens = qkv.reshape(B, -1, 3, H, D)
    of_queries = jnp.einsum("bthd,tshd->bhts", of_tokens[:, :, 0], of_pairs[:, :, 1])
    of_keys = jnp.einsum("bshd,tshd->bhts", of_tokens[:, :, 1], of_pairs[:, :, 0])
    return (of_queries + of_keys) / np.sqrt(3 * D)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_scores_and_their_gradients_are_those_of_the_definition(tokens: int) -> None:
    qkv, table = given(tokens)

    def ours(qkv: jax.Array, table: jax.Array) -> jax.Array:
        return with_distances(qkv, by_distance(table, tokens, 40), H)[1]

    expected, theirs = jax.vjp(definition, qkv, table)
    found, backward = jax.vjp(ours, qkv, table)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=found.shape), jnp.float32)
    for one, other in zip((found, *backward(gradient)), (expected, *theirs(gradient)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    queries, others = np.split(np.asarray(qkv), [H * D], axis=-1)
    scaled = with_distances(qkv, by_distance(table, tokens, 40), H)[0]
    np.testing.assert_allclose(scaled, np.concatenate([queries / np.sqrt(3), others], -1), rtol=1e-6)


@functools.cache
def value_and_gradients(**changes: Any) -> Any:
    """Return the embeddings of two views, and the gradients of all parameters."""
    rng = np.random.default_rng(1)
    group = jax.tree.map(jnp.asarray, pack([rng.integers(5, 60, n).astype(np.int32) for n in (30, 4, 11, 2)], 34))
    plain = Encoder(OF)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32), init_params(plain, 0))
    direction = jnp.asarray(rng.normal(size=(2, 4, 16)), jnp.float32)
    keys = jnp.arange(4, dtype=jnp.uint32).reshape(2, 2)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        z = embed(plain.clone(**changes), params, group, "cls_before_pooler", keys)
        return (z * direction).sum(), z

    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()
    (_, z), of_params = program(params)
    return jax.device_get((z, of_params))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"remat": True}, 1e-5),
        ({"unroll": True}, 1e-5),  # also skips all but the first tokens of the last layer
        ({"products": "bfloat16"}, 4e-2),
        ({"dtype": jnp.bfloat16}, 8e-2),
    ],
    ids=str,
)
def test_layouts_agree_and_half_precision_nearly(changes: dict[str, Any], tolerance: float) -> None:
    expected, found = value_and_gradients(), value_and_gradients(**changes)
    assert np.abs(expected[1]["relative"]).max() > 1e-2
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-1)

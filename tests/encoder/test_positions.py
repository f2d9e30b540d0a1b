"""Rotary positions and biases by distance: against their definitions, and against PyTorch's models."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GteConfig
from transformers.models.gte.modeling_gte import GteRotaryEmbedding
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from simcse_jax.encoder import rotary
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.relative import buckets, relative_bias

OF = Architecture("gte", 100, 16, 2, 2, 32, rope_theta=1e4, rope_scale=0.5, local_rope_theta=10.0)


def test_every_distance_is_in_pytorchs_bucket() -> None:
    distances = np.arange(-8192, 8193)
    theirs = MPNetEncoder.relative_position_bucket(torch.tensor(distances), num_buckets=32)
    np.testing.assert_array_equal(buckets(distances, 32), theirs.numpy())


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_bias_is_the_tables_row_for_each_distance(tokens: int) -> None:
    table = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    of_pairs = np.arange(tokens)[None] - np.arange(tokens)[:, None]  # keys from queries
    expected = np.moveaxis(table[buckets(of_pairs, 32)], -1, 0)
    np.testing.assert_allclose(relative_bias(jnp.asarray(table), tokens), expected, rtol=1e-6)


@pytest.mark.parametrize("is_local", [False, True])
def test_rotation_is_that_of_complex_numbers(is_local: bool) -> None:
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 5, 3, 2, 8)).astype(np.float32)
    positions = rng.integers(0, 50, (2, 5)).astype(np.int32)
    base = OF.local_rope_theta if is_local else OF.rope_theta
    turns = 0.5 * positions[..., None] * base ** (-np.arange(4) / 4)
    pairs = (qkv[..., :4] + 1j * qkv[..., 4:]) * np.exp(1j * turns)[:, :, None, None]
    expected = np.concatenate([pairs.real, pairs.imag], -1)
    expected[:, :, 2] = qkv[:, :, 2]
    by = rotary.angles(OF, jnp.asarray(positions), jnp.asarray(is_local), jnp.float32)
    found = rotary.rotate(jnp.asarray(qkv.reshape(2, 5, -1)), 2, by)
    np.testing.assert_allclose(found, expected.reshape(2, 5, -1), rtol=1e-5, atol=1e-5)


def test_rates_are_pytorchs_to_the_last_bit_or_nearly() -> None:
    """A rate's rounding is multiplied by positions of up to 8,191."""
    for theta in (1e3, 1e4, 160_000.0):
        of = dataclasses.replace(OF, hidden_size=128, rope_scale=1.0)
        config = GteConfig(hidden_size=128, num_attention_heads=2, rope_parameters={"rope_theta": theta})
        theirs = GteRotaryEmbedding(config).inv_freq.numpy()
        np.testing.assert_allclose(rotary.rates(of, theta), theirs, rtol=2.4e-7)

"""Dropout: the right share, independent in every direction, recomputed rather than kept."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from simcse_jax.encoder import dropout as drop

RATE = 0.1
SENTENCES, POSITIONS, FEATURES = 64, 32, 384
DRAWS = SENTENCES * POSITIONS * FEATURES
SIGMAS = 4.5  # a few hundred statistics are looked at; the bits are fixed, so what passes once always passes


def _step_key(step: int, view: int) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(jax.random.key(3), step), view))


@jax.jit
def _kept(key: jax.Array, layer: Any, site: Any) -> Any:
    """bool[SENTENCES, POSITIONS, FEATURES]: what one site keeps."""
    sentences, positions = jnp.meshgrid(jnp.arange(SENTENCES), jnp.arange(POSITIONS), indexing="ij")
    keys = drop.token_keys(drop.site_key(key, layer, site), sentences, positions)
    feature = jnp.arange(FEATURES, dtype=jnp.uint32)[None, None]
    out: Any = drop.dropout(jnp.ones((SENTENCES, POSITIONS, FEATURES)), keys[:, :, None], feature, RATE)
    return out > 0


@pytest.fixture(scope="module")
def masks() -> dict[tuple[int, int, int, int], np.ndarray]:
    """float32 masks, centred to unit variance, by (step, view, layer, site): 12 of 786,432 draws."""
    wanted = [(0, view, layer, site) for view in (0, 1) for layer, site in ((0, 0), (1, 1), (1, 2), (1, 3), (2, 1))]
    wanted += [(1, 0, 0, 0), (1, 0, 1, 1)]
    scale = np.float32(np.sqrt(RATE * (1 - RATE)))
    return {
        (step, view, layer, site): (
            np.asarray(_kept(_step_key(step, view), np.uint32(layer), np.uint32(site)), np.float32)
            - np.float32(1 - RATE)
        )
        / scale
        for step, view, layer, site in wanted
    }


def _check(products: np.ndarray, what: object) -> None:
    """Check that the mean of products of independent centred draws is 0; its standard error is 1 / sqrt(n)."""
    sigmas = float(np.mean(products, dtype=np.float64)) * np.sqrt(products.size)
    assert abs(sigmas) < SIGMAS, f"{what}: {sigmas:.1f} sigma"


def test_kept_share_of_independent_sites_layers_views_and_steps(masks: dict) -> None:
    for name, mask in masks.items():
        _check(mask, name)
    _check(np.stack(list(masks.values())), "all")
    for (a, first), (b, second) in itertools.combinations(masks.items(), 2):
        _check(first * second, (a, b))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sentences", "positions", "features"])
def test_neighbours_are_independent(masks: dict, axis: int) -> None:
    for name in itertools.islice(masks, 4):
        for distance in (1, 2, 3, 4, 8, 16, POSITIONS):  # POSITIONS features on: the same key position of the next head
            if distance >= masks[name].shape[axis]:
                continue
            mask = np.moveaxis(masks[name], axis, 0)
            _check(mask[distance:] * mask[:-distance], (name, axis, distance))


def test_places_with_equal_sums_are_independent(masks: dict) -> None:
    mask = masks[0, 0, 1, 2]
    _check(mask[1:, :-1] * mask[:-1, 1:], "sentence + position")
    _check(mask[:, 1:, :-1] * mask[:, :-1, 1:], "position + feature")
    _check(mask[1:, :, :-1] * mask[:-1, :, 1:], "sentence + feature")
    square = mask[:POSITIONS]
    _check((square * square.swapaxes(0, 1))[~np.eye(POSITIONS, dtype=bool)] / np.sqrt(2), "transposed")


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sentences", "positions", "features"])
def test_counts_scatter_like_independent_draws(masks: dict, axis: int) -> None:
    for name, mask in masks.items():
        sums = np.sum(mask, axis=axis, dtype=np.float64) / np.sqrt(mask.shape[axis])  # variance 1 if independent
        # A binomial's excess kurtosis is small here, so the variance of n sums has standard error sqrt(2 / n).
        sigmas = (np.mean(sums**2) - 1) / np.sqrt(2 / sums.size)
        assert abs(sigmas) < SIGMAS, f"{name}, summed over axis {axis}: {sigmas:.1f} sigma"


@pytest.mark.slow
def test_a_hundred_million_draws_are_those_of_a_fair_coin() -> None:
    """16 steps, 2 views, 4 sites: the share kept, chi-square of eight neighbours, correlation of all masks."""
    names = list(itertools.product(range(16), range(2), [(0, 0), (1, 1), (1, 2), (12, 3)]))
    draws = np.stack(
        [
            np.asarray(_kept(_step_key(step, view), np.uint32(layer), np.uint32(site)), np.uint8)
            for step, view, (layer, site) in names
        ]
    )
    assert draws.size > 10**8
    share = draws.mean(dtype=np.float64)
    assert abs(share - (1 - RATE)) * np.sqrt(draws.size / (RATE * (1 - RATE))) < SIGMAS
    assert abs(share - (1 - RATE)) < 1e-4

    ones = np.array([pattern.bit_count() for pattern in range(256)])
    chances = (1 - RATE) ** ones * RATE ** (8 - ones)
    for axis, neighbours in enumerate(("masks", "sentences", "positions", "features")):
        eights = np.moveaxis(draws, axis, -1).reshape(-1, 8)
        counts = np.bincount(np.packbits(eights, axis=1)[:, 0], minlength=256)
        expected = chances * len(eights)
        often = expected >= 10
        observed = [*counts[often], counts[~often].sum()]
        chance = stats.chisquare(observed, [*expected[often], expected[~often].sum()]).pvalue
        assert chance > 1e-4, f"eight neighbouring {neighbours}: {chance:.1e}"

    masks = (draws.reshape(len(draws), -1) - np.float32(1 - RATE)) / np.float32(np.sqrt(RATE * (1 - RATE)))
    sigmas = (masks @ masks.T) / np.sqrt(masks.shape[1])
    np.fill_diagonal(sigmas, 0)
    assert np.abs(sigmas).max() < 5.5  # of 8,128 pairs


@pytest.fixture(scope="module")
def operands() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return x [4, 8, 64], and the keys and indices that broadcast against it."""
    x = np.random.default_rng(0).normal(size=(4, 8, 64)).astype(np.float32)
    sentences, positions = np.mgrid[:4, :8]
    keys = jax.jit(drop.token_keys)(np.array([1, 2], np.uint32), sentences, positions)
    return jnp.asarray(x), keys[:, :, None], jnp.arange(64, dtype=jnp.uint32)[None, None]


def test_bfloat16_keeps_the_mean(operands: tuple) -> None:
    """The scale 1 / 0.9 itself must not be rounded to bfloat16: that would lose 0.16 % at every site."""
    x, keys, feature = operands
    half = x.astype(jnp.bfloat16)
    out: Any = drop.dropout(half, keys, feature, 0.1)
    assert out.dtype == jnp.bfloat16
    wide, kept = np.asarray(half, np.float64), np.asarray(out, np.float64) != 0
    assert np.abs(np.asarray(out, np.float64)[kept]).sum() / np.abs(wide[kept]).sum() == pytest.approx(
        1 / 0.9, rel=3e-4
    )


def test_backward_uses_the_mask_of_the_forward_and_keeps_none(operands: tuple) -> None:
    x, keys, feature = operands
    out, backward = jax.vjp(lambda x: drop.dropout(x, keys, feature, RATE), x)
    (gradient,) = backward(jnp.ones_like(x))
    np.testing.assert_allclose(np.asarray(gradient), np.where(np.asarray(out) != 0, 1 / (1 - RATE), 0), rtol=1e-6)
    saved = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert saved <= keys.size + feature.size < x.size

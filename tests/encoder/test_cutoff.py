"""Cutoff: what is zeroed, how much, and that a run without it is what it was."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.cutoff import cut
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.layer import Dropout, flatten_rows
from simcse_jax.encoder.mlm import mlm_scores
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.group import MaskedGroup
from tests.packed import pack

CONFIG = Architecture("bert", 100, 32, 2, 4, 64, max_position_embeddings=64, dropout=0.0)
WIDTH = 512
LENGTHS = np.random.default_rng(0).integers(3, 40, 400)
TOKENS = [np.random.default_rng(n).integers(5, 100, length).astype(np.int32) for n, length in enumerate(LENGTHS)]
KEYS = jnp.array([[1, 2], [3, 4]], jnp.uint32)


def zeroed(kind: str, rate: float, row_length: int = 64, **packing: Any) -> list[list[np.ndarray]]:
    """[views][sentences] bool[length, WIDTH]: what is cut of ones."""
    group = pack(TOKENS, row_length, **packing)
    rows = flatten_rows(group, 2)
    dropout = Dropout(dataclasses.replace(CONFIG, cutoff=kind), rows, KEYS, True)
    x = jnp.ones((*rows.segments.shape, WIDTH))
    out = np.asarray(jax.jit(lambda x: cut(x, kind, rate, dropout, rows))(x)).reshape(2, -1, WIDTH)
    return [[view[at : at + n] == 0 for at, n in zip(group.first_tokens, LENGTHS, strict=True)] for view in out]


@pytest.mark.parametrize("rate", [0.1, 0.4])
@pytest.mark.parametrize("kind", ["token", "feature"])
def test_tokens_are_cut_whole_and_features_of_all_tokens_of_a_sentence(kind: str, rate: float) -> None:
    views = zeroed(kind, rate)
    for sentence in views[0]:
        alike = sentence.T if kind == "token" else sentence
        assert (alike == alike[:1]).all()
    if kind == "token":
        one, two = (np.concatenate(view)[:, 0] for view in views)
    else:
        one, two = (np.stack([sentence[0] for sentence in view]) for view in views)
        assert np.abs(one.mean(0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / len(one))  # no feature is favoured
    spread = np.sqrt(rate * (1 - rate) / one.size)
    assert abs(one.mean() - rate) < 4 * spread
    assert abs((one & two).mean() - rate**2) < 4 * spread  # views are independent


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_spans_are_contiguous(rate: float) -> None:
    shares, places = [], []
    for sentence in zeroed("span", rate)[0]:
        gone = np.flatnonzero(sentence.all(1))
        assert (sentence.any(1) == sentence.all(1)).all()
        size = rate * len(sentence)
        assert size - 1 < len(gone) <= size + 1
        shares.append(len(gone) - size)
        if len(gone):
            assert gone[-1] - gone[0] == len(gone) - 1
            places.append(gone[0] / max(len(sentence) - len(gone), 1))
    assert abs(np.mean(shares)) < 0.1
    assert np.mean(places) == pytest.approx(0.5, abs=0.06)
    assert min(places) == 0
    assert max(places) == 1


@pytest.mark.parametrize("kind", ["token", "feature", "span"])
def test_the_layout_cuts_nothing_else(kind: str) -> None:
    one, two = zeroed(kind, 0.3), zeroed(kind, 0.3, 40, one_per_row=True)
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_array_equal(a, b)


def made(kind: str) -> tuple[Encoder, Any, Any]:
    encoder = Encoder(dataclasses.replace(CONFIG, cutoff=kind, cutoff_rate=0.3), has_mlm_head=True)
    return encoder, jax.jit(lambda: init_params(encoder, 0))(), pack(TOKENS[:8], 64)


def test_an_encoder_without_dropout_has_two_views_by_cutoff_alone() -> None:
    encoder, params, group = made("token")
    run = jax.jit(lambda keys: embed(encoder, params, group, "avg", keys))
    plain, views = run(None), run(KEYS)
    assert np.abs(views[0] - views[1]).max() > 1e-3
    assert np.abs(views[0] - plain).max() > 1e-3
    np.testing.assert_array_equal(run(KEYS), views)
    with pytest.raises(ValueError, match="needs a dropout key"):
        encoder.apply({"params": params}, group, "avg", None, True)


def test_masked_copies_are_not_cut() -> None:
    encoder, params, group = made("token")
    group = jax.tree.map(lambda x: x[None], group)
    places = np.arange(4, dtype=np.int32)[None]
    masked = MaskedGroup(group.ids, places, places)
    run = jax.jit(lambda key: mlm_scores(encoder, params, group, masked, key))
    np.testing.assert_allclose(run(KEYS[0]), run(None), atol=1e-6)

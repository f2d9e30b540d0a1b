"""The encoder against an independent definition: values and all gradients, with every dropout site, and every pooler.

test_topology.py compares layouts with each other; this says that their common result is right.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import mlm_scores
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.encoder.pooling import POOLERS
from simcse_jax.group import Group, MaskedGroup
from tests.encoder import reference
from tests.packed import pack

ARCHITECTURE = Architecture("bert", 50, 8, 2, 2, 12, max_position_embeddings=16, layer_norm_eps=1e-5, dropout=0.3)
SIZES = reference.Sizes(2, 2, 16, 1e-5, 0.3)
LENGTHS = np.array([5, 3, 9, 2])
FIRST = 6  # the place of the first sentence in the global batch
KEYS = np.array([[1, 2], [3, 4]], np.uint32)
VIEWS, COUNT, LONGEST, WIDTH = len(KEYS), len(LENGTHS), int(LENGTHS.max()), 8


def tokens() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 50, length).astype(np.int32) for length in LENGTHS]


def stacked_groups(one_per_row: bool = False) -> Group:
    """Return the sentences as two groups of two."""
    all_tokens = tokens()
    groups = [pack(some, 12, one_per_row=one_per_row) for some in (all_tokens[:2], all_tokens[2:])]
    numbered = [g._replace(sentences=g.sentences + FIRST + 2 * n) for n, g in enumerate(groups)]
    return Group(*(np.stack(arrays) for arrays in zip(*numbered, strict=True)))


def random_params(encoder: Encoder) -> Any:
    """Return float64 parameters, random everywhere, norms and biases included."""
    rng = np.random.default_rng(1)
    shapes = parameter_shapes(encoder)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (path[-1].key == "scale") + 0.4 * rng.normal(size=x.shape), shapes
    )


def states_of(params: Any, keep: Any) -> tuple[list[jax.Array], np.ndarray]:
    """Return the reference's hidden states [V * N, T, D], and lengths[V * N]."""
    ids = np.stack([np.pad(row, (0, LONGEST - len(row))) for row in tokens()])
    lengths = np.tile(LENGTHS, VIEWS)
    return reference.hidden_states(params, SIZES, np.tile(ids, (VIEWS, 1)), lengths, keep), lengths


def reference_embeddings(params: Any, pooler: str, keep: Any) -> jax.Array:
    states, lengths = states_of(params, keep)
    first, means = states[-1][:, 0], [reference.mean(state, lengths) for state in states]
    match pooler:
        case "cls":
            z = jnp.tanh(reference.dense(first, **params["head"]))
        case "cls_before_pooler":
            z = first
        case "avg":
            z = means[2]
        case "avg_top2" | "avg_first_last":  # of a model of two layers
            z = (means[1] + means[2]) / 2
        case "avg_embedding_last":
            z = (means[0] + means[2]) / 2
        case "mean_sqrt_len":
            z = means[2] * np.sqrt(lengths)[:, None]
        case "max":
            z = jnp.stack([state[:length].max(0) for state, length in zip(states[-1], lengths, strict=True)])
        case "weighted_mean":
            z = sum_of_tokens(states[-1], lengths) / (lengths * (lengths + 1) / 2)[:, None]
        case "last_token":
            z = states[-1][np.arange(len(lengths)), lengths - 1]
        case _:
            raise ValueError(pooler)
    return z.reshape(VIEWS, COUNT, WIDTH)


def sum_of_tokens(states: jax.Array, lengths: np.ndarray) -> jax.Array:
    """Return [N, D]: the sum over each sentence's tokens, with the weights 1, 2, 3 ..."""
    weights = np.arange(1, states.shape[1] + 1) * (np.arange(states.shape[1]) < lengths[:, None])
    return jnp.einsum("nt,ntd->nd", weights, states)


def all_masks() -> dict[tuple[int, int], np.ndarray]:
    return reference.masks(SIZES, KEYS, FIRST + np.arange(COUNT), LONGEST, WIDTH)


def check_values_and_gradients(ours: Callable, theirs: Callable, params: Any) -> None:
    """Compare two functions of the parameters, and the gradients of a loss that looks at every entry."""

    def with_loss(function: Callable) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            z = function(params)
            direction = np.random.default_rng(2).normal(size=z.shape)
            return jnp.sum(direction * z + z**2), z

        return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))

    (gradient, z), (expected_gradient, expected) = with_loss(ours), with_loss(theirs)
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected_gradient):
        other = gradient
        for step in path:
            other = other[step.key]
        assert np.abs(other - leaf).max() <= 1e-12 * largest, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("pooler", "layout"),
    [("avg_embedding_last", {}), ("cls", {"unroll": True}), ("cls", {"remat": True})],
    ids=["loop", "unrolled", "recomputed and padded"],
)
def test_embeddings_and_gradients_are_those_of_the_definition(pooler: str, layout: dict[str, Any]) -> None:
    """For stacked groups and two views at once; an unrolled last layer runs on first tokens alone."""
    with jax.enable_x64(True):
        encoder = Encoder(ARCHITECTURE, jnp.float64, jnp.float64, has_head=pooler == "cls", **layout)
        params, keep = random_params(encoder), all_masks()
        group = stacked_groups(one_per_row="remat" in layout)
        check_values_and_gradients(
            lambda params: embed(encoder, params, group, pooler, jnp.asarray(KEYS)).reshape(VIEWS, COUNT, WIDTH),
            lambda params: reference_embeddings(params, pooler, keep),
            params,
        )


@pytest.mark.parametrize("unroll", [False, True])
def test_every_pooler_is_that_of_the_definition(unroll: bool) -> None:
    """Without dropout, for stacked groups; also of all hidden states, weighted, and of several in one."""
    weighted, joined = "avg@0.25,-0.5,1.25", "max+cls_before_pooler+avg"
    with jax.enable_x64(True):
        encoder = Encoder(ARCHITECTURE, jnp.float64, jnp.float64, has_head=True, unroll=unroll)
        params, group = random_params(encoder), stacked_groups()
        every = (*POOLERS, weighted, joined)
        found = jax.jit(lambda: {pooler: embed(encoder, params, group, pooler) for pooler in every})()
        expected = jax.jit(lambda: {pooler: reference_embeddings(params, pooler, {})[0] for pooler in POOLERS})()
        for pooler in POOLERS:
            np.testing.assert_allclose(
                found[pooler].reshape(COUNT, WIDTH), expected[pooler], atol=1e-12, err_msg=pooler
            )
        parts = [found[part] for part in joined.split("+")]
        np.testing.assert_array_equal(found[joined], np.concatenate(parts, -1))
        states, lengths = states_of(params, {})
        of_layers = [reference.mean(state, lengths)[:COUNT] for state in states]
        mean = 0.25 * of_layers[0] - 0.5 * of_layers[1] + 1.25 * of_layers[2]
        np.testing.assert_allclose(found[weighted].reshape(COUNT, WIDTH), mean, atol=1e-12)


def test_predictions_of_masked_tokens_are_those_of_the_definition() -> None:
    with jax.enable_x64(True):
        encoder = Encoder(ARCHITECTURE, jnp.float64, jnp.float64, has_mlm_head=True, unroll=True)
        params, group = random_params(encoder), stacked_groups()
        at = [[(0, 1), (0, 3), (1, 2)], [(2, 0), (2, 8), (3, 1)]]  # (sentence, position), for each group
        places = [[int(group.first_tokens[g, s - 2 * g]) + p for s, p in some] for g, some in enumerate(at)]
        masked = MaskedGroup(group.ids, np.array(places, np.int32), np.zeros((2, 3), np.int32))
        keep = {site: mask[:COUNT] for site, mask in all_masks().items()}
        keep = {site: np.concatenate([mask] * VIEWS) for site, mask in keep.items()}  # of the first view

        def theirs(params: Any) -> jax.Array:
            last = states_of(params, keep)[0][-1]
            x = jnp.stack([jnp.stack([last[s, p] for s, p in some]) for some in at])
            head = params["mlm"]
            x = reference.norm(reference.gelu(reference.dense(x, **head["dense"])), head["norm"], SIZES.epsilon)
            return reference.dense(x, params["embeddings"]["word"].T, head["bias"])

        check_values_and_gradients(
            lambda params: mlm_scores(encoder, params, group, masked, jnp.asarray(KEYS[0])), theirs, params
        )


def test_the_comparison_feels_every_site() -> None:
    """Were a single mask of a single layer left out, the embeddings would be others."""
    with jax.enable_x64(True):
        params, keep = random_params(Encoder(ARCHITECTURE, jnp.float64, jnp.float64, has_head=True)), all_masks()
        run = jax.jit(lambda keep: reference_embeddings(params, "cls", keep))
        whole = run(keep)
        for site in keep:
            without = run(keep | {site: np.ones_like(keep[site])})
            assert np.abs(without - whole).max(axis=-1).min() > 1e-4, site

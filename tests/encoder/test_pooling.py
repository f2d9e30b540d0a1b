"""Poolers against their definition: values and gradients in every packing, and parts of a sentence."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder import pooling
from simcse_jax.group import Group
from tests.packed import pack

LENGTHS, WIDTH, ROW = (5, 1, 9, 2, 7), 6, 12
# Of one sentence's tokens [T, D], and the position of the first.
DEFINED: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "avg": lambda tokens, first: tokens.mean(0),
    "max": lambda tokens, first: tokens.max(0),
    "mean_sqrt_len": lambda tokens, first: tokens.sum(0) / len(tokens) ** 0.5,
    "weighted_mean": lambda tokens, first: jnp.average(tokens, 0, jnp.arange(first + 1, first + 1 + len(tokens))),
    "last_token": lambda tokens, first: tokens[-1],
}


def pooled(name: str, hidden: jax.Array, group: Group) -> jax.Array:
    where = hidden, jnp.asarray(group.first_tokens), jnp.asarray(group.lengths)
    match name:
        case "avg":
            return pooling.mean(*where)
        case "mean_sqrt_len":
            return pooling.mean_sqrt_len(pooling.mean(*where), where[2])
        case "weighted_mean":
            return pooling.weighted_mean(*where, jnp.asarray(group.positions))
        case "max":
            return pooling.largest(*where)
    return pooling.last_token(*where)


@pytest.mark.parametrize("left_out", [0, 1])
@pytest.mark.parametrize("one_per_row", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("name", DEFINED)
def test_values_and_gradients_are_those_of_the_definition(name: str, one_per_row: bool, left_out: int) -> None:
    """Also where the first tokens of each sentence are left out; a sentence that has no others gives zeros."""
    group = pack([np.arange(length) for length in LENGTHS], ROW, one_per_row=one_per_row)
    kept = group._replace(first_tokens=group.first_tokens + left_out, lengths=group.lengths - left_out)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        hidden = jnp.asarray(rng.normal(size=(*group.ids.shape, WIDTH)))
        direction = rng.normal(size=(len(LENGTHS), WIDTH))

        def defined(hidden: jax.Array) -> jax.Array:
            tokens = hidden.reshape(-1, WIDTH)
            found = []
            for first, length in zip(kept.first_tokens, kept.lengths, strict=True):
                some = tokens[first : first + length]
                found.append(DEFINED[name](some, left_out) if length else jnp.zeros(WIDTH))
            return jnp.stack(found)

        ours, theirs = (
            jax.jit(jax.value_and_grad(lambda hidden, pool=pool: (direction * pool(hidden)).sum()))(hidden)
            for pool in (lambda hidden: pooled(name, hidden, kept), defined)
        )
        used = np.array(kept.lengths) > 0
        found = np.asarray(pooled(name, hidden, kept))
        np.testing.assert_allclose(found[used], defined(hidden)[used], rtol=0, atol=1e-13)
        assert np.isfinite(found).all()
        if used.all():
            np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-13)


def test_names_of_poolers() -> None:
    assert all(map(pooling.is_pooler, (*pooling.POOLERS, "max+avg", "avg@1,0.5,1e+20", "avg@1,-2+mean_sqrt_len@1,2")))
    assert not any(map(pooling.is_pooler, ("", "mean", "avg+", "cls+avg", "max@1,2", "avg@", "avg@x")))
    assert not any(map(pooling.is_pooler, ("avg@nan,1", "avg@1,inf", "avg@inf,-inf", "avg@0,0", "max+avg@1,-1")))
    assert pooling.parts_of("avg@1e+2,2+max") == (pooling.Part("avg", (100.0, 2.0)), pooling.Part("max"))
    assert pooling.width_of("max+avg", 8) == 16

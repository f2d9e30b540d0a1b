"""LayerNorm against PyTorch's: values and gradients, and what it keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from simcse_jax.encoder.norm import layer_norm

ROWS, WIDTH, EPSILON = (3, 5), 32, 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-6), (jnp.bfloat16, 2e-2)])
def test_values_and_gradients_are_pytorchs(dtype: Any, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(3 + rng.normal(size=(*ROWS, WIDTH)), dtype) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=WIDTH), jnp.float32) for _ in range(2))
    run: Any = lambda *given: layer_norm(*given, EPSILON)  # noqa: E731
    out, backward = jax.vjp(run, x, scale, bias)
    found: list[Any] = [out, *backward(gradient)]
    assert [each.dtype for each in found] == [dtype, dtype, jnp.float32, jnp.float32]

    given = [torch.tensor(np.asarray(each, np.float64), requires_grad=True) for each in (x, scale, bias)]
    theirs = functional.layer_norm(given[0], (WIDTH,), given[1], given[2], EPSILON)
    theirs.backward(torch.tensor(np.asarray(gradient, np.float64)))
    expected = [theirs.detach(), *(each.grad for each in given)]
    for name, a, b in zip(("out", "x", "scale", "bias"), found, expected, strict=True):
        assert b is not None
        assert np.abs(np.asarray(a, np.float64) - b.numpy()).max() <= tolerance * np.abs(b.numpy()).max(), name


def test_little_is_kept() -> None:
    x = jnp.ones((*ROWS, WIDTH))
    _, backward = jax.vjp(lambda x: layer_norm(x, jnp.ones(WIDTH), jnp.zeros(WIDTH), EPSILON), x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept <= x.size + 2 * np.prod(ROWS) + WIDTH

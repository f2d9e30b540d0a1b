"""Activations against PyTorch's, in value and slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder.activations import ACTIVATIONS, gelu

torch = pytest.importorskip("torch")
from transformers.activations import ACT2FN  # noqa: E402

X = np.concatenate([np.linspace(-12, 12, 4801), [0.0, -0.0, 1e-30, -1e-30]])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_values_and_slopes_are_those_of_pytorch(name: str) -> None:
    x = torch.tensor(X, dtype=torch.float32, requires_grad=True)
    y = ACT2FN[name](x)
    y.sum().backward()
    ours, slopes = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(X, jnp.float32))
    assert x.grad is not None
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-6, atol=5e-6)
    np.testing.assert_allclose(slopes, x.grad.numpy(), rtol=1e-6, atol=5e-6)


def test_gelu_rounds_once_in_bfloat16() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    exact = torch.nn.functional.gelu(torch.tensor(np.asarray(x, np.float64))).numpy()
    assert gelu(x).dtype == jnp.bfloat16
    # Half a unit in the last of 8 bits; the tail, where Phi is a small difference, to float32's precision.
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), exact, rtol=2**-8, atol=1e-6)
    slopes = jax.vmap(jax.grad(gelu))(x)
    assert slopes.dtype == jnp.bfloat16
    wide = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    torch.nn.functional.gelu(wide).sum().backward()
    np.testing.assert_allclose(np.asarray(slopes, np.float64), wide.grad.numpy(), rtol=2**-8, atol=1e-6)


def test_gelu_keeps_one_array_for_the_backward_pass() -> None:
    _, backward = jax.vjp(gelu, jnp.ones(1000))
    kept = [x for x in jax.tree.leaves(backward) if getattr(x, "size", 1) > 1]
    assert len(kept) == 1

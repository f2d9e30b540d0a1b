"""Products of 8 bits: equal to their definition in NumPy, near float32 in a model, and only for encoding on CPUs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcse_jax.encoder import int8, products
from simcse_jax.encoder.architecture import ENCODING_PRODUCTS, PRODUCTS, Architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder, unstack_layers
from simcse_jax.system.errors import UserError
from tests.packed import pack

CONFIG = Architecture("bert", 100, 32, 1, 4, 48, max_position_embeddings=24, initializer_range=0.3)
KINDS = ("float32", "bfloat16", "int8")


def codes_of(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return integers as float64, and their scales."""
    scale = np.abs(x).max(axis, keepdims=True).astype(np.float64) / 127
    return np.round(np.divide(x, scale, where=scale > 0, out=np.zeros(x.shape))), scale


def test_a_product_is_that_of_integers_and_scales() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((20, 48), (48, 24)))
    x[3] *= 1000  # a row does not touch the others'
    x[5], w[:, 7] = 0, 0
    codes, scales = int8.quantise(jnp.asarray(w), 0)
    found = np.asarray(jax.jit(int8.product)(x, codes, scales[0]))
    of_x, of_w = codes_of(x, 1), codes_of(w, 0)
    assert codes.dtype == jnp.int8
    np.testing.assert_array_equal(codes, of_w[0])
    assert np.abs(of_w[0]).max(0).tolist() == [127.0 if n != 7 else 0.0 for n in range(24)]
    expected = (of_x[0] @ of_w[0]) * of_x[1] * of_w[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found[0] - (x @ w)[0]).max() < 0.02 * np.abs((x @ w)[0]).max()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(broken: float) -> None:
    x, w = np.ones((2, 8), np.float32), np.ones((8, 3), np.float32)
    x[0, 2] = w[1, 2] = broken
    codes, scales = int8.quantise(jnp.asarray(w), 0)
    finite = np.isfinite(np.asarray(int8.product(jnp.asarray(x), codes, scales[0])))
    assert finite.tolist() == [[False] * 3, [True, True, False]]


def test_an_encoder_of_8_bits_is_near_its_original() -> None:
    rng = np.random.default_rng(0)
    group = pack([rng.integers(5, 100, n).astype(np.int32) for n in (24, 3, 7, 12, 5, 20)], 24)
    exact = Encoder(CONFIG, has_head=True, unroll=True)
    split = jax.jit(lambda: unstack_layers(init_params(exact, 0)))()

    def vectors(kind: str, held: Any) -> np.ndarray:
        encoder = exact.clone(products=kind)
        return np.asarray(jax.jit(lambda params: encoder.apply({"params": params}, group, "cls"))(held))

    held = {kind: jax.jit(functools.partial(int8.prepared, products=kind))(split) for kind in KINDS}
    z, rounded, quantised = (vectors(kind, held[kind]) for kind in KINDS)
    error = {name: np.linalg.norm(found - z) / np.linalg.norm(z) for name, found in (("8", quantised), ("16", rounded))}
    assert 1e-4 < error["16"] < error["8"] < 0.05
    kernels: Any = held["int8"]["layer_0"]["attention"]
    assert (kernels["out"]["kernel"].dtype, kernels["out"]["kernel"].shape) == (jnp.int8, (4, 8, 32))
    assert (kernels["out"]["scale"].shape, kernels["qkv"]["scale"].shape) == ((32,), (96,))
    # Rounded before or within the call, the numbers are the same.
    np.testing.assert_array_equal(rounded, vectors("bfloat16", split))


def test_int8_is_for_encoding_on_cpus() -> None:
    assert products.resolve_products("int8", "float32", "cpu", "products", ENCODING_PRODUCTS) == "int8"
    assert products.precision("float32", "int8") == "float32, products of int8"
    with pytest.raises(UserError, match=r"model\.products=int8 is unknown\. Known: float32, bfloat16, auto"):
        products.resolve_products("int8", "float32", "cpu", "model.products", PRODUCTS)
    with pytest.raises(UserError, match="is for CPUs, and this device is a GPU"):
        products.resolve_products("int8", "float32", "gpu", "products", ENCODING_PRODUCTS)
    with pytest.raises(UserError, match="would round the factors of float64"):
        products.resolve_products("int8", "float64", "cpu", "products", ENCODING_PRODUCTS)

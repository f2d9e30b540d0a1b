"""Products with factors of bfloat16: their numbers and gradients, the forms that CPUs multiply fast, and "auto"."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from simcse_jax.encoder import dropout as drop
from simcse_jax.encoder import products
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.attention import AttentionMask, attend
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import mlm_scores
from simcse_jax.encoder.model import Encoder, embed
from simcse_jax.group import Group, MaskedGroup
from simcse_jax.system.errors import UserError
from tests.packed import pack

CONFIG = Architecture("bert", 100, 32, 1, 4, 48, max_position_embeddings=24, initializer_range=0.3)
FORM = re.compile(
    r"stablehlo\.dot_general .*?(?:batching_dims = \[(?P<batch>[\d, ]*)\] x \[(?P<other>[\d, ]*)\], )?"
    r"contracting_dims = \[(?P<left>\d)\] x \[(?P<right>\d)\].*: \(tensor<(?P<a>\S+)>, tensor<(?P<b>\S+)>\) -> "
    r"tensor<(?P<out>\S+)>"
)


def half(x: Any) -> np.ndarray:
    """Return x rounded to bfloat16, as float64."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def require_near(found: Any, expected: np.ndarray, within: float) -> None:
    """Require arrays to differ by at most this share of the largest entry."""
    assert np.abs(np.asarray(found, np.float64) - expected).max() <= within * np.abs(expected).max()


@pytest.mark.parametrize("inputs", [16, 80])  # the weights' gradient copies x, or the gradient, as its transpose
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_and_its_gradients_are_those_of_rounded_factors(dtype: Any, rows: bool, inputs: int) -> None:
    rng = np.random.default_rng(0)
    shapes = (90, inputs), (inputs, 8), (90, 8), (8,)
    x, w, gradient, bias = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    bias = half(bias).astype(np.float32)
    multiply: Any = functools.partial(products.product, by_rows=rows)
    given = jnp.asarray(x, dtype), jnp.asarray(w.T if rows else w, dtype), jnp.asarray(bias, dtype)
    out, backward = jax.vjp(multiply, *given)
    of_x, of_w, of_bias = backward(jnp.asarray(gradient))
    assert (out.dtype, of_x.dtype, of_w.dtype, of_bias.dtype) == (jnp.float32, dtype, dtype, dtype)
    require_near(out, half(x) @ half(w) + bias, 1e-6)
    require_near(multiply(*given[:2]), half(x) @ half(w), 1e-6)
    within = 1e-6 if dtype == jnp.float32 else 2**-8
    require_near(of_x, half(gradient) @ half(w).T, within)
    require_near(of_w.T if rows else of_w, half(x).T @ half(gradient), within)
    require_near(of_bias, half(gradient).sum(0), within)


def test_rounding_is_to_the_nearest_and_to_even() -> None:
    rng = np.random.default_rng(0)
    near = (rng.integers(0, 2**16, 3000, np.uint32) << 16) + rng.choice(
        np.array([0, 1, 0x7FFF, 0x8000, 0x8001], np.uint32), 3000
    )
    special = np.array(
        [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001, 0x7F7FFFFF, 1], np.uint32
    )
    x = np.concatenate([near, special]).view(np.float32)
    found = np.asarray(jax.jit(products.rounded)(x)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_attention_rounds_the_factors_of_every_product() -> None:
    rng = np.random.default_rng(0)
    shape, rate = (2, 16, 2, 8), 0.2
    q, k, v, gradient = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
    segments = np.repeat([[1] * 6 + [2] * 8 + [0] * 2], 2, axis=0)
    keys = rng.integers(0, 2**32, (2, 1, 16, 1), np.uint32)
    pairs = np.arange(2 * 2 * 16, dtype=np.uint32).reshape(2, 2, 1, 16)
    mask = AttentionMask(jnp.asarray(segments, jnp.int32), jnp.asarray(keys), jnp.asarray(pairs))

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array) -> Any:
        out, backward = jax.vjp(lambda q, k, v: attend(q, k, v, mask, rate, "bfloat16"), q, k, v)
        return out, *backward(gradient)

    found = run(q, k, v, gradient)

    scale, kept = 8**-0.5, np.asarray(drop.dropout(jnp.ones((2, 2, 16, 16)), mask.keys, mask.pairs, rate), np.float64)
    q, k, v, gradient = (half(x).transpose(0, 2, 1, 3) for x in (q, k, v, gradient))
    same = segments[:, None, :, None] == segments[:, None, None, :]
    scores = np.where(same, q @ k.swapaxes(2, 3) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    context = half(weights * kept) @ v / total
    weights = weights / total
    of_weights = gradient @ v.swapaxes(2, 3) * kept
    of_scores = half(weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) * scale)
    of_v = half(weights * kept).swapaxes(2, 3) @ gradient
    expected = (context, of_scores @ k, of_scores.swapaxes(2, 3) @ q, of_v)
    for ours, theirs in zip(found, expected, strict=True):
        # A weight that float32 and float64 round to two neighbours in bfloat16 moves a number by less than this.
        require_near(ours, theirs.transpose(0, 2, 1, 3), 5e-4)


@pytest.fixture(scope="module")
def packed() -> tuple[Group, MaskedGroup]:
    """One group of six sentences, stacked, and places to predict in it."""
    rng = np.random.default_rng(0)
    group = pack([rng.integers(5, 100, n).astype(np.int32) for n in (24, 3, 7, 12, 5, 20)], 24)
    masked = MaskedGroup(group.ids, np.array([1, 5, 30], np.int32), np.array([7, 8, -1], np.int32))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], (group, masked))


def loss_of(encoder: Encoder, params: Any, packed: tuple[Group, MaskedGroup]) -> jax.Array:
    """Return a number that depends on all of an encoder with both heads."""
    group, masked = packed
    z = embed(encoder, params, group, "cls", jnp.ones((2, 2), jnp.uint32))
    return jnp.sum(z * jnp.sin(jnp.arange(z.size)).reshape(z.shape)) + jnp.sum(
        jax.nn.softmax(mlm_scores(encoder, params, group, masked))[..., :7]
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_product_of_a_step_has_a_fast_form(dtype: Any, packed: Any) -> None:
    encoder = Encoder(CONFIG, dtype, products="bfloat16", has_head=True, has_mlm_head=True, unroll=True)
    step = jax.jit(jax.grad(lambda params: loss_of(encoder, params, packed)))
    text = step.lower(parameter_shapes(encoder)).as_text()
    forms = [form.groupdict() for form in FORM.finditer(text)]
    # A layer twice (with and without masks) with four products and attention's two, and three products of heads;
    # backward twice as many, and attention's scores again.
    assert len(forms) == text.count("stablehlo.dot_general") == 3 * (2 * 6 + 3) + 2
    for form in forms:
        axes = len(form["a"].split("x")) - 1
        front = ", ".join(map(str, range(axes - 2)))
        assert (form["batch"] or "", form["other"] or "") == (front, front), form
        assert int(form["left"]) == axes - 1, form
        assert int(form["right"]) in (axes - 2, axes - 1), form
        assert form["a"].endswith("bf16"), form
        assert form["b"].endswith("bf16"), form
        assert form["out"].endswith("xf32"), form


def test_auto_follows_the_processor_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(asked: str, flags: set[str], dtype: str = "float32", platform: str = "cpu") -> str:
        monkeypatch.setattr(products, "_cpu_flags", lambda: frozenset(flags))
        return products.resolve_products(asked, dtype, platform, "products")

    amx = {"avx2", "amx_bf16"}
    assert resolved("auto", amx) == resolved("auto", {"avx512_bf16"}) == "bfloat16"
    assert resolved("auto", amx, "bfloat16") == "bfloat16"
    assert resolved("auto", {"avx2"}) == resolved("auto", set()) == "float32"
    assert resolved("auto", amx, platform="gpu") == resolved("auto", amx, "float64") == "float32"
    assert [resolved(asked, flags) for asked in ("float32", "bfloat16") for flags in (amx, set())] == [
        *["float32"] * 2,
        *["bfloat16"] * 2,
    ]
    with pytest.raises(UserError, match="products=float16 is unknown"):
        resolved("float16", amx)
    with pytest.raises(UserError, match="would round"):
        resolved("bfloat16", amx, "float64")
    monkeypatch.setattr(products, "_missing", lambda: "UNIMPLEMENTED: BF16 x BF16 = F32")
    assert resolved("auto", amx) == "float32"
    with pytest.raises(UserError, match="UNIMPLEMENTED"):
        resolved("bfloat16", set())

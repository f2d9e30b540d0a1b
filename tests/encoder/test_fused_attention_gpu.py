"""The kernels of fused attention through XLA's GPU compiler, for an H100 that need not be there."""

import re
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simcse_jax.encoder.attention import AttentionMask
from simcse_jax.encoder.fused_attention import fused_attention
from simcse_jax.planning.topologies import topology_chips

pytestmark = [
    pytest.mark.slow,  # 5 to 30 s a kernel
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not any(find_spec(f"jax_cuda{cuda}_plugin") for cuda in (13, 12)), reason="the extra gpu-plan is not installed"
    ),
]
ROWS, HEADS = 4, 3


def compiled(tokens: int, size: int, dtype: str, rate: float) -> Any:
    """Compile the forward and the backward pass."""

    def run(qkv: jax.Array, gradient: jax.Array, mask: AttentionMask) -> Any:
        context, backward = jax.vjp(lambda qkv: fused_attention(qkv, HEADS, mask, rate), qkv)
        return context, backward(gradient)[0]

    mesh = Mesh(np.array(topology_chips("h100:1").devices), ("data",))
    place = NamedSharding(mesh, PartitionSpec())

    def shape(*axes: int, dtype: Any = jnp.uint32) -> Any:
        return jax.ShapeDtypeStruct(axes, dtype, sharding=place)

    mask = AttentionMask(shape(ROWS, tokens, dtype=jnp.int32), shape(ROWS, 1, tokens, 1), shape(ROWS, HEADS, 1, tokens))
    qkv = shape(ROWS, tokens, 3 * HEADS * size, dtype=dtype)
    gradient = shape(ROWS, tokens, HEADS * size, dtype=dtype)
    return jax.jit(run, out_shardings=place).lower(qkv, gradient, mask).compile()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("tokens", "size"), [(64, 64), (512, 32), (512, 64), (512, 80), (512, 128), (8192, 64), (100, 48)]
)
def test_both_passes_compile_and_copy_nothing(tokens: int, size: int, dtype: str) -> None:
    """Beside the two kernels, only small arrays: the span of each block, and a number for each token and head."""
    made = compiled(tokens, size, dtype, 0.1)
    text = made.as_text()
    assert len(re.findall(r'custom_call_target="__gpu\$xla\.gpu\.triton"', text)) == 2
    assert made.memory_analysis().temp_size_in_bytes < ROWS * tokens * HEADS * size

"""What a compiled program costs: by hand, and beside XLA's own count."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from simcse_jax.planning.hlo import Array
from simcse_jax.planning.hlo_costs import memory_space, padded_bytes, parts
from simcse_jax.planning.topologies import topology_chips
from tests.planning.made_step import TEXT


def test_bytes_and_flops_by_hand() -> None:
    found = {part.name: part for part in parts(TEXT, chip_memory=True)}
    stacking = found["f"]
    # The number of the turn, the input, one of three matrices; of the stack only the update is written.
    assert stacking.accessed == pytest.approx(4 + 8 * 128 * 4 + 128 * 128 * 2 + 8 * 128 * 4)
    assert stacking.hbm == pytest.approx(4 + 128 * 128 * 2 + 8 * 128 * 4)  # the input lies on the chip
    assert stacking.flops == 2 * 8 * 128 * 128
    assert (stacking.times, stacking.group, stacking.exact_flops) == (3, "ffn", 0)
    assert (found["go"].accessed, found["go"].hbm) == (64 * 100 * 4, 64 * 128 * 4)
    assert (found["gone"].accessed, found["gone"].hbm) == (64 * 100 * 4, 0)
    assert found["go"].group == "copies"
    assert set(found) == {"f", "next", "lt", "go", "gone"}
    everywhere = {part.name: part for part in parts(TEXT, chip_memory=False)}
    assert everywhere["gone"].hbm == 64 * 128 * 4


def products(x: jax.Array, w: jax.Array) -> Any:
    """Multiply by the matrices of w in a loop, and stack the results."""

    def turn(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jnp.tanh(x @ w)
        return y, y

    return jax.lax.scan(turn, x, w)


@pytest.mark.parametrize("length", [3, 7])
def test_xla_takes_a_loop_once_and_we_take_each_turn(length: int) -> None:
    shapes = jax.ShapeDtypeStruct((128, 64), jnp.float32), jax.ShapeDtypeStruct((length, 64, 64), jnp.float32)
    compiled = jax.jit(products).lower(*shapes).compile()
    found = parts(compiled.as_text() or "", chip_memory=False)
    once = 2 * 128 * 64 * 64
    assert sum(part.flops for part in found) == once
    assert sum(part.flops * part.runs for part in found) == length * once
    cost: Any = compiled.cost_analysis()
    assert once <= cost["flops"] < 1.1 * once
    assert sum(part.accessed for part in found) == pytest.approx(cost["bytes accessed"], rel=0.05)


def test_a_kernel_reads_an_array_once_that_it_is_handed_for_each_of_its_parts() -> None:
    text = """
ENTRY %main (x: f32[8,128], y: f32[8]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  ROOT %k = f32[8,128]{1,0} custom-call(%x, %x, %x, %y), custom_call_target="__gpu$xla.gpu.triton"
}
"""
    [kernel] = parts(text, chip_memory=False)
    assert kernel.hbm == 2 * 8 * 128 * 4 + 8 * 4


@pytest.mark.slow
def test_copies_of_a_tpu_are_all_that_xla_counts_otherwise() -> None:
    pytest.importorskip("libtpu")
    chip = SingleDeviceSharding(topology_chips("v5e:2x2").devices[0])
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=chip) for shape in ((1024, 1024), (4, 1024, 1024))]
    compiled = jax.jit(products).lower(*shapes).compile()
    found = parts(compiled.as_text() or "", chip_memory=True)
    assert sum(part.flops * part.runs for part in found) == 4 * 2 * 1024**3
    assert {part.times for part in found} == {1, 4}
    again = sum(2 * part.accessed for part in found if part.opcode == "copy-done")
    again += sum(part.accessed for part in found if part.opcode == "slice-done")
    cost: Any = compiled.cost_analysis()
    assert sum(part.accessed for part in found) + again == pytest.approx(cost["bytes accessed"], rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "shape", "layout", "size", "padded", "space"),
    [
        ("f32", (8, 128), "1,0:T(8,128)", 4096, 4096, 0),
        ("f32", (3, 9, 64), "2,1,0:T(8,128)S(1)", 3 * 9 * 64 * 4, 3 * 16 * 128 * 4, 1),
        ("bf16", (9, 64, 200), "1,0,2:T(8,128)(2,1)", 9 * 64 * 200 * 2, 200 * 16 * 128 * 2, 0),
        ("u32", (5,), "0:T(128)S(6)", 20, 512, 6),
        ("f32", (), ":T(128)", 4, 4, 0),
        ("f32", (3, 5), "1,0", 60, 60, 0),
    ],
)
def test_a_tpu_fills_up_tiles(
    dtype: str, shape: tuple[int, ...], layout: str, size: int, padded: int, space: int
) -> None:
    array = Array(dtype, shape, layout)
    assert (array.bytes, padded_bytes(array), memory_space(array)) == (size, padded, space)

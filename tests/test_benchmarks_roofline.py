"""What a compiled step costs: by hand, by formula, and beside XLA's own count."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from benchmarks import roofline
from benchmarks.compiled_step import ENCODERS
from benchmarks.scaling_model import UNSUPERVISED, Model, encoder_flops, loss_flops
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.planning import least_time
from simcse_jax.planning.chips import CHIPS
from simcse_jax.planning.collectives import Collective
from simcse_jax.planning.hlo import Array
from simcse_jax.planning.hlo_costs import Part, memory_space, padded_bytes, parts
from simcse_jax.planning.topologies import topology_chips
from simcse_jax.training.mesh import make_mesh

# A step in miniature, as a TPU writes it: a stack is made in a loop of three, a copy comes in beside it.
TEXT = """
%fused_stack (a: f32[3,8,128], b: s32[], c: f32[8,128], d: bf16[3,128,128]) -> f32[3,8,128] {
  %a = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  %c = f32[8,128]{1,0:T(8,128)S(1)} parameter(2)
  %d = bf16[3,128,128]{2,1,0:T(8,128)(2,1)} parameter(3)
  %taken = bf16[1,128,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%d, %b), dynamic_slice_sizes={1,128,128}
  %w = bf16[128,128]{1,0:T(8,128)(2,1)} bitcast(%taken)
  %y = f32[8,128]{1,0:T(8,128)} convolution(%c, %w), dim_labels=bf_io->bf, metadata={op_name="jit(f)/layers/ffn/up/dot"}
  %update = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%y)
  ROOT %stacked = f32[3,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%a, %update, %b)
}

%test (p: (s32[], f32[3,8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %p = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

%body (q: (s32[], f32[3,8,128])) -> (s32[], f32[3,8,128]) {
  %q = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}) parameter(0)
  %m = s32[]{:T(128)} get-tuple-element(%q), index=0
  %s = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%q), index=1
  %x = f32[8,128]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %ws = bf16[3,128,128]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %f = f32[3,8,128]{2,1,0:T(8,128)} fusion(%s, %m, %x, %ws), kind=kOutput, calls=%fused_stack
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%m, %one)
  ROOT %t = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}) tuple(%next, %f)
}

ENTRY %main (k: f32[64,100]) -> (s32[], f32[3,8,128]) {
  %k = f32[64,100]{1,0:T(8,128)} parameter(0)
  %go = (f32[64,100]{1,0:T(8,128)S(1)}, f32[64,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%k)
  %gone = f32[64,100]{1,0:T(8,128)S(1)} copy-done(%go)
  %zero = s32[]{:T(128)} constant(0)
  %stack = f32[3,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}) tuple(%zero, %stack)
  ROOT %w = (s32[]{:T(128)}, f32[3,8,128]{2,1,0:T(8,128)}) while(%start), condition=%test, body=%body
}
"""


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


def work(**changes: Any) -> least_time.Work:
    """Return a Work of zeros with these changes."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("flops", "exact_flops", "accessed", "hbm", "unknown_loops", "xla_flops", "xla_accessed", "accessed_once"), 0
    )
    return least_time.Work(**(nothing | {"memory": {}, "sent": [], "parts": []} | changes))


def test_the_longest_side_binds() -> None:
    chip = CHIPS["v5e"]
    found = least_time.bound(work(flops=197e9, hbm=819e6), chip, (2, 4), 8)
    assert (found.arithmetic, found.hbm, found.links) == (pytest.approx(1e-3), pytest.approx(1e-3), 0)
    assert least_time.bound(work(flops=197e9, hbm=900e6), chip, (2, 4), 8).binds == "HBM"
    exact = least_time.bound(work(flops=197e9, exact_flops=197e9, hbm=900e6), chip, (2, 4), 8)
    assert (exact.binds, exact.seconds) == ("arithmetic", pytest.approx(6e-3))


def test_a_reduction_is_a_scatter_and_a_gather() -> None:
    """Over two lines of a v5e, 2 and 4 long: two of a chip's four links, 100 GB/s."""
    chip = CHIPS["v5e"]
    whole = Collective("all-reduce", 1_000_000_000, 1)
    part = Collective("reduce-scatter", 125_000_000, 2)
    gather = Collective("all-gather", 1_000_000_000, None)
    sent = [least_time.sent_by(one, chip, (2, 4), 8) for one in (whole, part, gather)]
    assert [one.inner for one in sent] == [pytest.approx(size) for size in (1.75e9, 1.75e9, 0.875e9)]
    assert sent[0].seconds == pytest.approx(1.75e9 / 100e9, rel=1e-3)
    slice_of_v5p = least_time.sent_by(whole, CHIPS["v5p"], (2, 2, 2), 8)
    assert slice_of_v5p.seconds == pytest.approx(1.75e9 / 300e9, rel=1e-2)  # three of six links


def test_the_breakdown_sums_to_all() -> None:
    found = parts(TEXT, chip_memory=True)
    lines = "\n".join(roofline.breakdown(found, 2)).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:5] for line in lines if line}
    assert cells["all"][2].strip() == "100.0%"
    assert sum(float(cells[group][2].strip(" %")) for group in roofline.GROUPS) == pytest.approx(100, abs=0.5)
    assert lines[-2].startswith("| 0.000 | 0.000 | 3 | ffn | f |")
    unknown = Part("x", "add", "", "f32[]", "other", None, 0, 0, 4, 4)
    assert "| ? | other | x |" in "\n".join(roofline.breakdown([unknown], 1))


TINY = Architecture("bert", 1000, 64, 2, 2, 128, max_position_embeddings=64)
TINY_MODEL = Model(2, 64, 128, 1000, 64)


@pytest.mark.slow
def test_the_step_on_a_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as the scaling model counts them from shapes; of the loss's four, XLA makes two one here."""
    monkeypatch.setitem(ENCODERS, "tiny", TINY)
    case, found = roofline.measure(make_mesh(1), (), "tiny", "float32", 64, {"model.unroll": "off"})
    loss = loss_flops(TINY_MODEL, UNSUPERVISED, 64, 64)
    assert case["work"]["flops"] == encoder_flops(TINY_MODEL, UNSUPERVISED, 64, 1) + loss * 3 / 4
    assert case["work"]["accessed_once"] == pytest.approx(case["work"]["xla_accessed"], rel=0.05)
    assert (case["bound"], case["work"]["sent"], case["work"]["unknown_loops"]) == (None, [], 0)
    assert {part.group for part in found} >= {"embeddings", "attention", "ffn", "norm", "head", "loss", "optimizer"}
    assert roofline.row(case).count("|") == roofline.HEADER.splitlines()[0].count("|")
    json.dumps(case)


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


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_step_for_chips_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libtpu")
    monkeypatch.setitem(ENCODERS, "tiny", TINY)
    chips = topology_chips("v5e:2x2").devices
    case, found = roofline.measure(make_mesh(4, devices=chips), (2, 2), "tiny", "bfloat16", 256, {})
    done, model = case["work"], TINY_MODEL
    assert done["flops"] == encoder_flops(model, UNSUPERVISED, 64, 1) + loss_flops(model, UNSUPERVISED, 64, 256)
    assert done["exact_flops"] == loss_flops(model, UNSUPERVISED, 64, 256)
    assert done["unknown_loops"] == 0
    assert 0 < done["hbm"] < done["accessed"]
    assert done["hbm"] == sum(part.hbm * part.runs for part in found)
    # Each gradient once: reduced as a whole, or scattered into the parts of 4 chips; and the embeddings'.
    times = {"all-reduce": 1, "reduce-scatter": 4}
    once = sum(one["bytes"] * times.get(one["kind"], 0) for one in done["sent"])
    embeddings = 256 * model.width * 4
    assert 4 * model.parameters <= once <= 4 * model.parameters + embeddings + 1024
    assert case["bound"]["sentences"] == 256 / case["bound"]["seconds"]


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

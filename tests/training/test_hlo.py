"""XLA's text is read: loops, arrays in memory, and each collective once, with the size of its result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from simcse_jax.training.hlo import Module, collectives

# A loop as a TPU's compiler leaves it: nothing notes how often it turns.
COUNTED = """
%test (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = s32[]{:T(128)} constant(1)
  %q = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %m = s32[]{:T(128)} get-tuple-element(%q), index=0
  %copied = s32[]{:T(128)S(6)} copy(%m)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %next = s32[]{:T(128)} add(%copied, %one)
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}) tuple(%next, %x)
}

ENTRY %main (x: f32[8]) -> (s32[], f32[8]) {
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %x = f32[8]{0} parameter(0)
  %t = (s32[]{:T(128)}, f32[8]{0}) tuple(%start, %x)
  ROOT %w = (s32[]{:T(128)}, f32[8]{0}) while(%t), condition=%test, body=%body, metadata={op_name="jit(f)/while"}
}
"""


def test_a_counter_shows_how_often_a_loop_turns() -> None:
    module = Module(COUNTED)
    assert module.times("body") == 12
    assert module.times("main") == 1
    assert module.in_loop("body")
    loop = module.root("main")
    assert loop
    assert (loop.op_name, loop.called("body"), module.trip_count(loop)) == ("jit(f)/while", "body", 12)


@pytest.mark.parametrize(
    ("was", "other"),
    [
        ("direction=LT", "direction=LE"),
        ("constant(0)", "constant(3)"),
        ("constant(1)", "constant(2)"),
        ("add(%copied", "multiply(%copied"),
        ("compare(%n, %limit)", "compare(%limit, %n)"),
        ("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} parameter(1)"),
    ],
)
def test_another_loop_is_of_unknown_length(was: str, other: str) -> None:
    assert was in COUNTED
    assert Module(COUNTED.replace(was, other)).times("body") is None


# One line of each kind, as the CPU and TPU compilers write it: (line, kind, dtype, shapes, bytes).
LINES = [
    (
        "  %all_gather.3 = f32[1,32,32]{2,0,1} all-gather(%copy), channel_id=1, dimensions={1}",
        ("all-gather", "f32", ((1, 32, 32),), 4096),
    ),
    (
        "  %reduce_scatter.7 = f32[1,4,32]{2,0,1:T(8,128)S(1)} reduce-scatter(%copy.3), dimensions={1}, to_apply=%add",
        ("reduce-scatter", "f32", ((1, 4, 32),), 512),
    ),
    (
        "  ROOT %all-reduce.92 = (f32[32]{0}, f32[6,4]{1,0:T(8,128)}, /*index=2*/f32[]) all-reduce(%a, %b, %c), "
        "replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%add",
        ("all-reduce", "f32", ((32,), (6, 4), ()), 4 * (32 + 24 + 1)),
    ),
    (
        "  %all-reduce.5 = (bf16[1,8]{1,0:T(2,128)(2,1)S(1)}, f32[2]{0:T(128)}) all-reduce(%a, %b), to_apply=%add",
        ("all-reduce", "bf16, f32", ((1, 8), (2,)), 16 + 8),
    ),
    (
        "  %all-to-all.1 = (u32[1,4]{1,0}, u32[1,4]{1,0}) all-to-all(%a, %b), channel_id=2",
        ("all-to-all", "u32", ((1, 4), (1, 4)), 32),
    ),
    (
        "  cp = s8[3,5]{1,0} collective-permute(x), source_target_pairs={{0,1},{1,0}}",
        ("collective-permute", "s8", ((3, 5),), 15),
    ),
    ("  %g = f8e4m3fn[7]{0} all-gather(%x)", ("all-gather", "f8e4m3fn", ((7,),), 7)),
    ("  %g = s4[7]{0:E(4)} all-gather(%x)", ("all-gather", "s4", ((7,),), 4)),
    ("  %g = pred[<=7]{0} all-gather(%x)", ("all-gather", "pred", ((7,),), 7)),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[f"{e[0]} of {e[1]}" for _, e in LINES])
def test_a_line_of_each_kind(line: str, expected: tuple) -> None:
    (found,) = collectives(line)
    assert (found.kind, found.dtype, found.shapes, found.bytes) == expected
    assert (found.in_loop, found.times) == (False, 1)


def test_what_is_none() -> None:
    text = """
  %fusion.1 = f32[8]{0} fusion(%all-gather.2), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/all-gather(x)"}
  %get.1 = f32[8]{0} get-tuple-element(%all-reduce.91), index=0
  %id = u32[] partition-id()
"""
    assert collectives(text) == []


@pytest.mark.parametrize(
    ("start", "done", "kind", "size"),
    [
        ("(f32[8]{0}, f32[64]{0}) all-gather-start(%x)", "f32[64]{0} all-gather-done(%s)", "all-gather", 256),
        ("f32[64]{0} all-reduce-start(%x), to_apply=%add", "f32[64]{0} all-reduce-done(%s)", "all-reduce", 256),
        (
            "((f32[64]{0}), f32[8]{0:T(128)S(1)}) reduce-scatter-start(%x), to_apply=%add",
            "f32[8]{0:T(128)S(1)} reduce-scatter-done(%s)",
            "reduce-scatter",
            32,
        ),
        (
            "(bf16[4]{0}, bf16[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)",
            "bf16[4]{0} collective-permute-done(%s)",
            "collective-permute",
            8,
        ),
        ("((s32[4]{0}), s32[4]{0}) all-to-all-start(%x)", "s32[4]{0} all-to-all-done(%s)", "all-to-all", 16),
    ],
)
def test_a_pair_counts_once_with_the_size_of_its_result(start: str, done: str, kind: str, size: int) -> None:
    (found,) = collectives(f"  %s = {start}, channel_id=1\n  %d = {done}\n")
    assert (found.kind, found.bytes) == (kind, size)


def test_an_asynchronous_computation_counts_once() -> None:
    text = """
%wrapped (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %rs = f32[8]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[64]) -> f32[8] {
  %x = f32[64]{0} parameter(0)
  %s = ((f32[64]{0}), f32[8]{0}, s32[]) async-start(%x), calls=%wrapped
  %u = ((f32[64]{0}), f32[8]{0}, s32[]) async-update(%s), calls=%wrapped
  ROOT %d = f32[8]{0} async-done(%u), calls=%wrapped
}
"""
    (found,) = collectives(text)
    assert (found.kind, found.bytes, found.times) == ("reduce-scatter", 32, 1)


def test_a_tpu_fuses_a_reduce_scatter() -> None:
    text = """
%all-reduce-scatter.3 (p: bf16[32,8192]) -> bf16[32,1024] {
  %p = bf16[32,8192]{1,0} parameter(0)
  %all-reduce.1 = bf16[32,8192]{1,0} all-reduce(%p), to_apply=%add
  ROOT %slice = bf16[32,1024]{1,0} dynamic-slice(%all-reduce.1, %i, %j), dynamic_slice_sizes={32,1024}
}

ENTRY %main (x: bf16[32,8192]) -> bf16[32,1024] {
  %x = bf16[32,8192]{1,0} parameter(0)
  ROOT %fusion.3 = bf16[32,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
    (found,) = collectives(text)
    assert (found.name, found.kind, found.bytes) == ("fusion.3", "reduce-scatter", 2 * 32 * 1024)


NESTED = """
%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ar = f32[4]{0} all-reduce(%x), to_apply=%add
}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %w = (s32[], f32[4]{0}) while(%t), condition=%c1, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %g = f32[8]{0} all-gather(%x), dimensions={0}
}

%called (p: f32[4]) -> f32[4] {
  %cp = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1}}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %v = (s32[], f32[4]{0}) while(%t), condition=%c2, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %a = f32[4]{0} call(%x), to_apply=%called
  %b = f32[4]{0} call(%a), to_apply=%called
  %rs = f32[4]{0} reduce-scatter(%x), dimensions={0}, to_apply=%add
}
"""


def test_loops_and_how_often_they_run() -> None:
    found = {c.kind: (c.in_loop, c.times) for c in collectives(NESTED)}
    assert found == {
        "all-reduce": (True, 15),
        "all-gather": (True, 5),
        "collective-permute": (False, 2),
        "reduce-scatter": (False, 1),
    }


def test_a_loop_of_unknown_length() -> None:
    text = NESTED.replace('"known_trip_count":{"n":"3"}', "")
    found = {c.kind: (c.in_loop, c.times) for c in collectives(text)}
    assert found["all-reduce"] == (True, None)
    assert found["all-gather"] == (True, 5)


def test_a_compiled_program() -> None:
    """A loop of three products with a matrix that is split over eight devices, and a sum over all of them."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def f(x: jax.Array) -> jax.Array:
        def local(x: jax.Array) -> jax.Array:
            y, _ = jax.lax.scan(lambda c, _: (c + jax.lax.all_gather(c, "x").sum(0), None), x, length=3)
            return jax.lax.psum(y, "x")

        return jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)(x)

    x = jax.device_put(jnp.asarray(np.ones((16, 4), np.float32)), NamedSharding(mesh, P("x")))
    text = jax.jit(f).lower(x).compile().as_text()
    assert text
    found = {c.kind: c for c in collectives(text)}
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert (gather.bytes, gather.in_loop, gather.times) == (8 * 2 * 4 * 4, True, 3)
    assert (reduce.bytes, reduce.in_loop, reduce.times) == (2 * 4 * 4, False, 1)


def test_a_collective_that_a_tpu_repeats_in_several_fusions_counts_once() -> None:
    gather = "all-gather(%p), channel_id=7, replica_groups={{0,1}}, dimensions={0}"
    wrapped = "\n".join(
        f"""
%fused.{n} (p: f32[4]) -> f32[8] {{
  %p = f32[4] parameter(0)
  ROOT %gather.{n} = f32[8] {gather.replace("channel_id=7", f"channel_id={channel}")}
}}"""
        for n, channel in enumerate((7, 7, 8))
    )
    text = f"""{wrapped}

ENTRY %main (a: f32[4]) -> f32[8] {{
  %a = f32[4] parameter(0)
  %start = f32[8] fusion(%a), kind=kCustom, calls=%fused.0
  %along = f32[8] fusion(%a), kind=kCustom, calls=%fused.1
  %other = f32[8] fusion(%a), kind=kCustom, calls=%fused.2
  %plain = f32[8] {gather.replace("%p", "%a")}
  ROOT %same = f32[8] {gather.replace("%p", "%a")}
}}
"""
    assert [one.name for one in collectives(text)] == ["gather.0", "gather.2", "plain", "same"]

"""Each collective in XLA's text counts once, with the bytes of its result and how often it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from simcse_jax.planning.collectives import Collective, collectives

# As the compilers for CPU and TPU write them: (text, kind, bytes).
TEXTS = [
    ("  %g = f32[1,32,32]{2,0,1} all-gather(%copy), channel_id=1, dimensions={1}", "all-gather", 4096),
    ("  %r = f32[1,4,32]{2,0,1:T(8,128)S(1)} reduce-scatter(%c), dimensions={1}, to_apply=%add", "reduce-scatter", 512),
    (
        "  ROOT %a.92 = (bf16[32]{0}, f32[6,4]{1,0:T(8,128)}, /*index=2*/f32[]) all-reduce(%a, %b, %c), "
        "replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%add",
        "all-reduce",
        64 + 4 * (24 + 1),
    ),
    ("  cp = s4[3,5]{1,0:E(4)} collective-permute(x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 8),
    ("  %g = f8e4m3fn[<=7]{0} all-gather(%x)", "all-gather", 7),
    ("  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%x)\n  %d = f32[64]{0} all-gather-done(%s)", "all-gather", 256),
    (
        """
%wrapped (p: f32[64]) -> f32[8] {
  ROOT %rs = f32[8]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[64]) -> f32[8] {
  %s = ((f32[64]{0}), f32[8]{0}, s32[]) async-start(%x), calls=%wrapped
  %u = ((f32[64]{0}), f32[8]{0}, s32[]) async-update(%s), calls=%wrapped
  ROOT %d = f32[8]{0} async-done(%u), calls=%wrapped
}
""",
        "reduce-scatter",
        32,
    ),
    (  # a TPU's reduce-scatter
        """
%all-reduce-scatter.3 (p: bf16[32,8192]) -> bf16[32,1024] {
  %all-reduce.1 = bf16[32,8192]{1,0} all-reduce(%p), to_apply=%add
  ROOT %slice = bf16[32,1024]{1,0} dynamic-slice(%all-reduce.1, %i, %j), dynamic_slice_sizes={32,1024}
}

ENTRY %main (x: bf16[32,8192]) -> bf16[32,1024] {
  ROOT %fusion.3 = bf16[32,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
""",
        "reduce-scatter",
        2 * 32 * 1024,
    ),
    (  # one that a TPU overlaps with other work, in each fusion's own layout
        """
%fused.1 (p: f32[4]) -> f32[8] {
  ROOT %g.1 = f32[8]{0} all-gather(%p), channel_id=5, dimensions={0}
}

%fused.2 (p: f32[4]) -> f32[8] {
  ROOT %g.2 = f32[8]{0:T(256)S(1)} all-gather(%p), channel_id=5, dimensions={0}
}

ENTRY %main (x: f32[4]) -> f32[8] {
  %f.1 = f32[8]{0} fusion(%x), kind=kOutput, calls=%fused.1
  ROOT %f.2 = f32[8]{0} fusion(%x), kind=kOutput, calls=%fused.2
}
""",
        "all-gather",
        32,
    ),
]


@pytest.mark.parametrize(("text", "kind", "size"), TEXTS)
def test_each_way_to_write_one(text: str, kind: str, size: int) -> None:
    assert collectives(text) == [Collective(kind, size, 1)]


def test_what_is_none() -> None:
    text = """
  %fusion.1 = f32[8]{0} fusion(%all-gather.2), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/all-gather(x)"}
  %get.1 = f32[8]{0} get-tuple-element(%all-reduce.91), index=0
"""
    assert collectives(text) == []


@pytest.mark.parametrize(("noted", "times"), [('"known_trip_count":{"n":"3"}', 15), ("", None)])
def test_how_often_each_runs(noted: str, times: int | None) -> None:
    text = f"""
%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %ar = f32[4]{{0}} all-reduce(%x), to_apply=%add
}}

%outer (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %w = (s32[], f32[4]{{0}}) while(%t), condition=%c1, body=%inner, backend_config={{{noted}}}
  %g = f32[8]{{0}} all-gather(%x), dimensions={{0}}
}}

%called (p: f32[4]) -> f32[4] {{
  %cp = f32[4]{{0}} collective-permute(%p), source_target_pairs={{{{0,1}}}}
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %v = (s32[], f32[4]{{0}}) while(%t), body=%outer, backend_config={{"known_trip_count":{{"n":"5"}}}}
  %a = f32[4]{{0}} call(%x), to_apply=%called
  %b = f32[4]{{0}} call(%a), to_apply=%called
}}
"""
    assert {one.kind: one.times for one in collectives(text)} == {
        "all-reduce": times,
        "all-gather": 5,
        "collective-permute": 2,
    }


def test_one_that_a_tpu_repeats_in_several_fusions_counts_once() -> None:
    gather = "all-gather(%p), channel_id={}, replica_groups={{{{0,1}}}}, dimensions={{0}}"
    fused = "\n".join(
        f"%fused.{n} (p: f32[4]) -> f32[8] {{\n  ROOT %gather.{n} = f32[8] {gather.format(channel)}\n}}\n"
        for n, channel in enumerate((7, 7, 8))
    )
    text = f"""
{fused}
ENTRY %main (a: f32[4]) -> f32[8] {{
  %start = f32[8] fusion(%a), kind=kCustom, calls=%fused.0
  %along = f32[8] fusion(%a), kind=kCustom, calls=%fused.1
  %other = f32[8] fusion(%a), kind=kCustom, calls=%fused.2
  %plain = f32[8] {gather.format(7)}
  ROOT %same = f32[8] {gather.format(7)}
}}
"""
    assert len(collectives(text)) == 4


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
    found = collectives(text)
    assert Collective("all-gather", 8 * 2 * 4 * 4, 3) in found
    assert Collective("all-reduce", 2 * 4 * 4, 1) in found

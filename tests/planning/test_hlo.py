"""XLA's text is read: how often a loop without a note of its length turns."""

import pytest

from simcse_jax.planning.hlo import Module

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

"""The text of a compiled step in miniature, for tests of what it costs."""

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

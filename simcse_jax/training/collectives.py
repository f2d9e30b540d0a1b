"""What a compiled step sends between devices, read from XLA's text."""

from __future__ import annotations

import dataclasses
import re

from simcse_jax.training.hlo import Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# A TPU writes a reduce-scatter as a fusion of this name, in which an all-reduce of the whole array stands.
_FUSED_REDUCE_SCATTER = re.compile(r"^all-reduce-scatter\b")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a compiled program, as each device sees it."""

    name: str  # the instruction's
    kind: str  # one of KINDS
    dtype: str  # XLA's name, such as "f32"; several, if the operands differ, in the order met: "f32, bf16"
    shapes: tuple[tuple[int, ...], ...]  # of the result on one device; several for a collective of several arrays
    bytes: int  # of the result on one device, all arrays, each time that it runs
    in_loop: bool  # stands in a loop's body
    times: int | None  # how often a run of the program comes past it; None where a loop's length is not in the text


def collectives(compiled_text: str) -> list[Collective]:
    """Every collective of a compiled program's text, in the order of the text; of an asynchronous pair, the end alone.

    The end (`all-gather-done`) has the result by itself, the start has buffers and operands beside it. A collective
    wrapped into a computation of its own (`async-start`, a fusion) is found there. A TPU that sends beside other work
    repeats the collective in each fusion that it goes along with: of those, a channel counts once. (Elsewhere a channel
    says nothing: all collectives of a `shard_map` have the same.) Text without a collective gives [].
    """
    module = Module(compiled_text)
    fusions = [one for one in module.instructions() if one.opcode == "fusion"]
    in_fusions = {called for fusion in fusions for _, called in fusion.calls}
    fused = {called for called in in_fusions if _FUSED_REDUCE_SCATTER.match(called)}
    scatters = {fusion.name for fusion in fusions if fusion.called("calls") in fused}

    found, channels = [], set()
    for instruction in module.instructions():
        if instruction.name in scatters:
            kind = "reduce-scatter"
        else:
            kind = instruction.opcode.removesuffix("-done")
            if kind not in KINDS or instruction.computation in fused:
                continue
        arrays = instruction.arrays
        dtype, shapes = ", ".join(dict.fromkeys(a.dtype for a in arrays)), tuple(a.shape for a in arrays)
        channel = _CHANNEL.search(instruction.attributes)
        if channel and instruction.computation in in_fusions:
            seen = (kind, channel[1], dtype, shapes)
            if seen in channels:
                continue
            channels.add(seen)
        where = instruction.computation
        size = sum(a.bytes for a in arrays)
        found.append(
            Collective(instruction.name, kind, dtype, shapes, size, module.in_loop(where), module.times(where))
        )
    return found

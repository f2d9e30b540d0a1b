"""List what the devices of a compiled program send to each other, from the text that XLA prints of it."""

from __future__ import annotations

import dataclasses
import re

from simcse_jax.planning.hlo import Module

_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# A TPU writes a reduce-scatter as a fusion of such a computation, which reduces the whole array.
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """Describe one collective of a compiled program, as each device sees it."""

    kind: str
    bytes: int  # of its result, each time that it runs
    times: int | None  # how often it runs in one run of the program; None where the length of a loop is not in the text


def collectives(text: str) -> list[Collective]:
    """Return every collective of `compiled.as_text()`, in the order of the text.

    Of an asynchronous pair the end counts (`all-gather-done`), which has the result alone. A TPU that overlaps a
    collective with other work repeats it in each fusion, on one channel, and it counts once.
    """
    module = Module(text)
    fused = {one.called("calls") for one in module.instructions() if one.opcode == "fusion"}
    listed, channels = [], set()
    for one in module.instructions():
        kind = one.opcode.removesuffix("-done")
        if one.opcode == "fusion" and one.called("calls").startswith(_FUSED_REDUCE_SCATTER):
            kind = "reduce-scatter"
        elif kind not in KINDS or one.computation.startswith(_FUSED_REDUCE_SCATTER):
            continue
        channel = _CHANNEL.search(one.attributes)
        if channel and one.computation in fused:
            once = (kind, channel[1], *((array.dtype, array.shape) for array in one.arrays))  # layouts may differ
            if once in channels:
                continue
            channels.add(once)
        listed.append(Collective(kind, sum(array.bytes for array in one.arrays), module.times(one.computation)))
    return listed

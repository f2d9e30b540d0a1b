"""List what the devices of a compiled program send to each other, from the text that XLA prints of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+).*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\((.*)$")  # type, opcode, the rest
_CALLED = re.compile(r"\b(body|calls|to_apply)=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]")  # the first number of a type's name is its bits
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
    instructions: list[tuple[str, str, str, str]] = []  # computation, type, opcode, the rest of the line
    callers: dict[str, list[tuple[str, int | None]]] = defaultdict(list)  # (computation, runs for each of its own)
    fused, computation = set(), ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif found := _INSTRUCTION.match(line):
            kind, opcode, rest = found.groups()
            instructions.append((computation, kind, opcode, rest))
            trips = _TRIPS.search(rest)
            for by, called in _CALLED.findall(rest):
                fused |= {called} if opcode == "fusion" else set()
                if opcode not in ("async-update", "async-done"):  # they name what their start runs
                    runs = 1 if by != "body" else int(trips[1]) if trips else None
                    callers[called].append((computation, runs))

    @functools.cache
    def times(computation: str) -> int | None:
        total = 0 if callers[computation] else 1
        for caller, runs in callers[computation]:
            if runs is None or (outer := times(caller)) is None:
                return None
            total += outer * runs
        return total

    listed, channels = [], set()
    for computation, kind, opcode, rest in instructions:
        name = opcode.removesuffix("-done")
        if opcode == "fusion" and re.search(rf"\bcalls=%?{_FUSED_REDUCE_SCATTER}\b", rest):
            name = "reduce-scatter"
        elif name not in KINDS or computation.startswith(_FUSED_REDUCE_SCATTER):
            continue
        channel = _CHANNEL.search(rest)
        if channel and computation in fused:
            once = (name, channel[1], *_ARRAY.findall(kind))  # without the layout, which may differ
            if once in channels:
                continue
            channels.add(once)
        listed.append(Collective(name, _bytes(kind), times(computation)))
    return listed


def _bytes(kind: str) -> int:
    """Return the bytes of the arrays in a type such as "(f32[8,4]{1,0}, pred[])"."""
    return sum(
        math.ceil(int(bits or 8) * math.prod(int(n.removeprefix("<=")) for n in sizes.split(",") if n) / 8)
        for _, bits, sizes in _ARRAY.findall(kind)
    )

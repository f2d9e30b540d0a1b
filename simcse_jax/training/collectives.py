"""What a compiled step sends between devices, read from XLA's text.

`jax.jit(f).lower(...).compile().as_text()` is the program of one device, so every size here is per device. The text
of the CPU, GPU and TPU compilers is read alike: layouts and memory spaces (`{1,0:T(8,128)S(1)}`) are passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Bits of an element where the name does not end in their number (f32, bf16, u8, s4, ...).
_BITS = {"pred": 8, "token": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    type: str
    computation: str
    calls: tuple[tuple[str, str], ...]  # (attribute, computation)
    trip_count: int | None
    channel: str | None  # the collective's number; None where it has none


def collectives(compiled_text: str) -> list[Collective]:
    """Every collective of a compiled program's text, in the order of the text; of an asynchronous pair, the end alone.

    The end (`all-gather-done`) has the result by itself, the start has buffers and operands beside it. A collective
    wrapped into a computation of its own (`async-start`, a fusion) is found there. A TPU that sends beside other work
    repeats the collective in each fusion that it goes along with: of those, a channel counts once. (Elsewhere a channel
    says nothing: all collectives of a `shard_map` have the same.) Text without a collective gives [].
    """
    instructions = _instructions(compiled_text)
    callers: dict[str, list[tuple[_Instruction, bool]]] = defaultdict(list)
    fused: dict[str, _Instruction] = {}  # the fusions that are a reduce-scatter, by what they call
    in_fusions: set[str] = set()
    for instruction in instructions:
        # The three steps of an asynchronous computation name the same one, which runs once.
        if instruction.opcode in ("async-update", "async-done"):
            continue
        for attribute, called in instruction.calls:
            callers[called].append((instruction, attribute in ("body", "condition")))
            if instruction.opcode == "fusion":
                in_fusions.add(called)
                if _FUSED_REDUCE_SCATTER.match(called):
                    fused[called] = instruction

    @functools.cache
    def in_loop(computation: str) -> bool:
        return any(loop or in_loop(caller.computation) for caller, loop in callers[computation])

    @functools.cache
    def times(computation: str) -> int | None:
        total = 0
        for caller, loop in callers[computation]:
            outer, trips = times(caller.computation), caller.trip_count if loop else 1
            if outer is None or trips is None:
                return None
            total += outer * trips
        return total if callers[computation] else 1

    found, channels, scatters = [], set(), {fusion.name for fusion in fused.values()}
    for instruction in instructions:
        if instruction.name in scatters:
            kind = "reduce-scatter"
        else:
            kind = instruction.opcode.removesuffix("-done")
            if kind not in KINDS or instruction.computation in fused:
                continue
        dtype, shapes, size = _sizes(instruction.type)
        if instruction.channel and instruction.computation in in_fusions:
            channel = (kind, instruction.channel, dtype, shapes)
            if channel in channels:
                continue
            channels.add(channel)
        where = instruction.computation
        found.append(Collective(instruction.name, kind, dtype, shapes, size, in_loop(where), times(where)))
    return found


def _instructions(text: str) -> list[_Instruction]:
    found, computation = [], ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header and " = " not in line.partition("(")[0]:
            computation = header[1]
            continue
        name = _INSTRUCTION.match(line)
        if not name:
            continue
        end = _end_of_type(line, name.end())
        opcode = _OPCODE.match(line, end)
        if not opcode:
            continue
        calls = []
        for attribute, several, one in _CALLED.findall(line[end:]):
            calls += [(attribute, called.strip().lstrip("%")) for called in (several or one).split(",")]
        trips, channel = _TRIP_COUNT.search(line), _CHANNEL.search(line)
        found.append(
            _Instruction(
                name=name[1],
                opcode=opcode[1],
                type=line[name.end() : end],
                computation=computation,
                calls=tuple(calls),
                trip_count=int(trips[1]) if trips else None,
                channel=channel[1] if channel else None,
            )
        )
    return found


def _end_of_type(line: str, start: int) -> int:
    """Where the type that begins at `start` ends: a tuple's closing bracket, or the first space."""
    depth = 0
    for n in range(start, len(line)):
        if line[n] in "({[":
            depth += 1
        elif line[n] in ")}]":
            depth -= 1
        elif line[n] == " " and depth == 0:
            return n
    return len(line)


def _sizes(of_type: str) -> tuple[str, tuple[tuple[int, ...], ...], int]:
    """The element types, the shapes and the bytes, together, of the arrays in a type."""
    dtypes, shapes, size = [], [], 0
    for dtype, sizes in _ARRAY.findall(of_type):
        shape = tuple(int(n.removeprefix("<=")) for n in sizes.split(",") if n)
        dtypes.append(dtype)
        shapes.append(shape)
        size += math.ceil(math.prod(shape) * _bits(dtype) / 8)
    return ", ".join(dict.fromkeys(dtypes)), tuple(shapes), size


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.search(r"\d+", dtype)  # f8e4m3fn: the first number is the width
    assert number, f"unknown element type {dtype!r}"
    return int(number[0])

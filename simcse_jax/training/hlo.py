"""Read the text of a program that XLA compiled: instructions, loops and collectives."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict

# Bits of an element where the name does not end in their number (f32, bf16, u8, s4, ...).
_BITS = {"pred": 8, "token": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? \{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'\bop_name="([^"]*)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result (or one of several)."""

    dtype: str  # XLA's name, such as "f32"
    shape: tuple[int, ...]
    layout: str  # what stands in braces: "1,0:T(8,128)S(1)"; empty where nothing does

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of the elements, without padding."""
        return math.ceil(self.size * _bits(self.dtype) / 8)

    @property
    def padded_bytes(self) -> int:
        """As it lies in memory: a TPU fills up the last axes, in the order of the layout, to whole tiles."""
        tile = _TILE.search(self.layout)
        if not tile or not self.shape:
            return self.bytes
        order = [int(n) for n in self.layout.partition(":")[0].split(",")]
        lengths = [self.shape[axis] for axis in order]  # from the axis whose neighbours lie side by side
        for n, length in enumerate(reversed(tile[1].split(","))):
            if n < len(lengths):
                lengths[n] = math.ceil(lengths[n] / int(length)) * int(length)
        return math.ceil(math.prod(lengths) * _bits(self.dtype) / 8)

    @property
    def space(self) -> int:
        """The number of its memory space; 0 is a device's main memory, 1 on a TPU what lies on the chip (VMEM)."""
        space = _SPACE.search(self.layout)
        return int(space[1]) if space else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    type: str
    computation: str
    is_root: bool
    operands: tuple[str, ...]  # names
    arguments: str  # what stands in the brackets: the number of a parameter, the value of a constant
    attributes: str  # the rest of the line
    calls: tuple[tuple[str, str], ...]  # (attribute, computation)

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of its result."""
        return tuple(
            Array(dtype, tuple(int(n.removeprefix("<=")) for n in sizes.split(",") if n), layout)
            for dtype, sizes, layout in _ARRAY.findall(self.type)
        )

    @property
    def op_name(self) -> str:
        """What of the Python program it comes from, scopes separated by slashes; "" where nothing is said."""
        name = _OP_NAME.search(self.attributes)
        return name[1] if name else ""

    def called(self, attribute: str) -> str:
        """The one computation of that attribute; "" for none."""
        return next((name for found, name in self.calls if found == attribute), "")


class Module:
    """The instructions of a program."""

    def __init__(self, text: str):
        """Any text will do; lines that are no instructions are passed over."""
        self.entry = ""
        self.computations: dict[str, dict[str, Instruction]] = defaultdict(dict)
        self._callers: dict[str, list[tuple[Instruction, bool]]] = defaultdict(list)
        self._times: dict[str, int | None] = {}
        computation = ""
        for line in text.splitlines():
            header = _COMPUTATION.match(line)
            if header and " = " not in line.partition("(")[0]:
                computation = header[2]
                self.entry = computation if header[1] else self.entry
                continue
            instruction = _instruction(line, computation)
            if instruction:
                self.computations[computation][instruction.name] = instruction
        for instruction in self.instructions():
            # The three steps of an asynchronous computation name the same one, which runs once.
            if instruction.opcode not in ("async-update", "async-done"):
                for attribute, called in instruction.calls:
                    self._callers[called].append((instruction, attribute in ("body", "condition")))

    def instructions(self) -> list[Instruction]:
        """All, in the order of the text."""
        return [one for lines in self.computations.values() for one in lines.values()]

    def root(self, computation: str) -> Instruction | None:
        """What a computation gives back; None for one that is not in the text."""
        return next((one for one in self.computations.get(computation, {}).values() if one.is_root), None)

    def in_loop(self, computation: str) -> bool:
        """Whether a computation stands in a loop, at any depth."""
        return any(loop or self.in_loop(caller.computation) for caller, loop in self._callers[computation])

    def times(self, computation: str) -> int | None:
        """How often a run of the program comes past a computation; None where a loop's length is not in the text."""
        if computation not in self._times:
            self._times[computation] = self._counted(computation)
        return self._times[computation]

    def _counted(self, computation: str) -> int | None:
        total = 0
        for caller, loop in self._callers[computation]:
            outer, trips = self.times(caller.computation), self.trip_count(caller) if loop else 1
            if outer is None or trips is None:
                return None
            total += outer * trips
        return total if self._callers[computation] else 1

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` turns: as the compiler notes it, or as a counter shows that goes from 0 up by ones.

        A TPU's compiler notes nothing, and leaves the counter as `lax.scan` and `fori_loop` make it.
        """
        noted = _TRIP_COUNT.search(loop.attributes)
        if noted:
            return int(noted[1])
        test = self.root(loop.called("condition"))
        if not test or test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, limit = (self._plain(test.computation, name) for name in test.operands)
        if not counter or counter.opcode != "get-tuple-element":
            return None
        place = _place(counter)
        before = self._plain(loop.computation, loop.operands[0])
        after = self.root(loop.called("body"))
        if not (before and after and before.opcode == after.opcode == "tuple"):
            return None
        start, more = self._plain(before.computation, before.operands[place]), self._step(after, place)
        return _whole(limit) if _whole(start) == 0 and more == 1 else None

    def _plain(self, computation: str, name: str) -> Instruction | None:
        """The instruction of that name, past copies of it."""
        found = self.computations[computation].get(name)
        while found and found.opcode in ("copy", "bitcast"):
            found = self.computations[computation].get(found.operands[0])
        return found

    def _step(self, after: Instruction, place: int) -> int | None:
        """What a loop's body adds to the counter at this place of its tuple."""
        added = self._plain(after.computation, after.operands[place])
        if not added or added.opcode != "add":
            return None
        parts = [self._plain(after.computation, name) for name in added.operands]
        same = [part for part in parts if part and part.opcode == "get-tuple-element" and _place(part) == place]
        constants = [_whole(part) for part in parts if part and part.opcode == "constant"]
        return constants[0] if same and constants else None


def _place(element: Instruction) -> int:
    """Which element a get-tuple-element takes."""
    index = _INDEX.search(element.attributes)
    assert index, f"{element.name} without an index"
    return int(index[1])


def _whole(constant: Instruction | None) -> int | None:
    """The value of a constant whole number."""
    if constant and constant.opcode == "constant" and re.fullmatch(r"-?\d+", constant.arguments):
        return int(constant.arguments)
    return None


def _instruction(line: str, computation: str) -> Instruction | None:
    name = _INSTRUCTION.match(line)
    if not name:
        return None
    end = _end_of_type(line, name.end())
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    attributes = line[close + 1 :]
    calls = []
    for attribute, several, one in _CALLED.findall(attributes):
        calls += [(attribute, called.strip().lstrip("%")) for called in (several or one).split(",")]
    arguments = line[opcode.end() : close]
    return Instruction(
        name=name[2],
        opcode=opcode[1],
        type=line[name.end() : end],
        computation=computation,
        is_root=bool(name[1]),
        operands=tuple(_OPERAND.findall(arguments)),
        arguments=arguments,
        attributes=attributes,
        calls=tuple(calls),
    )


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


def _closing(line: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for n in range(start, len(line)):
        depth += (line[n] in "({[") - (line[n] in ")}]")
        if depth == 0:
            return n
    return len(line)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.search(r"\d+", dtype)  # f8e4m3fn: the first number is the width
    assert number, f"unknown element type {dtype!r}"
    return int(number[0])


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

"""Read the text of a program that XLA compiled: its instructions, and how often each runs.

`jax.jit(f).lower(...).compile().as_text()` is the program of one device, so every size here is per device. The texts
of the CPU, GPU and TPU compilers are read alike.
"""

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


@dataclasses.dataclass(frozen=True)
class Array:
    """Describe one array of an instruction's result."""

    dtype: str  # XLA's name, such as "f32"
    shape: tuple[int, ...]
    layout: str  # the text in braces, such as "1,0:T(8,128)S(1)", or ""

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return the bytes of the elements, without padding."""
        return math.ceil(self.size * bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Describe one instruction, a line of the text."""

    name: str
    opcode: str
    type: str
    computation: str
    is_root: bool
    operands: tuple[str, ...]  # names
    arguments: str  # the text in brackets: the number of a parameter, the value of a constant
    attributes: str  # the rest of the line
    calls: tuple[tuple[str, str], ...]  # (attribute, computation)

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Return the arrays of its result."""
        return tuple(
            Array(dtype, tuple(int(n.removeprefix("<=")) for n in sizes.split(",") if n), layout)
            for dtype, sizes, layout in _ARRAY.findall(self.type)
        )

    @property
    def op_name(self) -> str:
        """Return the scopes of the Python program that it comes from, separated by slashes, or ""."""
        name = _OP_NAME.search(self.attributes)
        return name[1] if name else ""

    def called(self, attribute: str) -> str:
        """Return the computation that this attribute names, or ""."""
        return next((name for found, name in self.calls if found == attribute), "")


class Module:
    """Hold the instructions of a program, and tell how often each computation runs."""

    def __init__(self, text: str):
        """Read a text; lines that are no instructions are skipped."""
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
            # The start, update and done of an asynchronous computation name the same one, which runs once.
            if instruction.opcode not in ("async-update", "async-done"):
                for attribute, called in instruction.calls:
                    self._callers[called].append((instruction, attribute in ("body", "condition")))

    def instructions(self) -> list[Instruction]:
        """Return all instructions, in the order of the text."""
        return [one for lines in self.computations.values() for one in lines.values()]

    def root(self, computation: str) -> Instruction | None:
        """Return the instruction with a computation's result, None where the text does not hold the computation."""
        return next((one for one in self.computations.get(computation, {}).values() if one.is_root), None)

    def in_loop(self, computation: str) -> bool:
        """Return whether a computation runs in a loop, at any depth."""
        return any(loop or self.in_loop(caller.computation) for caller, loop in self._callers[computation])

    def times(self, computation: str) -> int | None:
        """Return how often a computation runs in one run of the program, None where a loop's length is unknown."""
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
        """Return the number of iterations of a `while` loop, None where the text does not tell.

        Compilers write it as an attribute, save the TPU's. There it is the limit of the counter that `lax.scan` and
        `fori_loop` make, which goes from 0 up by 1.
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
        """Return the instruction of that name; a copy's is the copied one."""
        found = self.computations[computation].get(name)
        while found and found.opcode in ("copy", "bitcast"):
            found = self.computations[computation].get(found.operands[0])
        return found

    def _step(self, after: Instruction, place: int) -> int | None:
        """Return what a loop's body adds to the counter at this place of its tuple, None for anything else."""
        added = self._plain(after.computation, after.operands[place])
        if not added or added.opcode != "add":
            return None
        parts = [self._plain(after.computation, name) for name in added.operands]
        same = [part for part in parts if part and part.opcode == "get-tuple-element" and _place(part) == place]
        constants = [_whole(part) for part in parts if part and part.opcode == "constant"]
        return constants[0] if same and constants else None


def _place(element: Instruction) -> int:
    """Return the index of a get-tuple-element."""
    index = _INDEX.search(element.attributes)
    assert index, f"{element.name} without an index"
    return int(index[1])


def _whole(constant: Instruction | None) -> int | None:
    """Return the value of a constant integer, None for anything else."""
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
    """Return where the type that begins at `start` ends: at the first space outside brackets."""
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
    """Return the place of the bracket that closes the one at `start`."""
    depth = 0
    for n in range(start, len(line)):
        depth += (line[n] in "({[") - (line[n] in ")}]")
        if depth == 0:
            return n
    return len(line)


def bits(dtype: str) -> int:
    """Return the bits of an element."""
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.search(r"\d+", dtype)  # f8e4m3fn: the first number is the width
    assert number, f"unknown element type {dtype!r}"
    return int(number[0])

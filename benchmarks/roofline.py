"""Bound the time of a training step by published figures of chips: arithmetic, memory and links of the compiled step.

    JAX_PLATFORMS=cpu python -m benchmarks.roofline --topology=v5e:2x4 --model=bert-base --batch=512
    JAX_PLATFORMS=cpu python -m benchmarks.roofline --dtype=bfloat16,float32 --breakdown --json=FILE
    python -m benchmarks.roofline --on=device --batch=64,512

The step is the real one (benchmarks/compiled_step.py). The TPU's own compiler compiles it for chips that need not be
present (pip install libtpu): minutes a step, and nothing runs. With --on=device, the compiler of one present device
does. All figures are of one chip and one step. benchmarks/hlo_costs.py explains what is counted, and how it differs
from XLA's own `cost_analysis()`, which counts a loop's body once. The published figures (benchmarks/chips.py) are
taken as fully reached, so no step can be faster. The longest of the three times is the bound, since the other two can
overlap with it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from jax.sharding import Mesh

from benchmarks.chips import CHIPS, Assumed, Chip, Sent, gathered
from benchmarks.compiled_step import ENCODERS, lower, memory_of
from benchmarks.hlo_costs import GROUPS, Part, parts
from benchmarks.scaling import whole_numbers
from simcse_jax import cli
from simcse_jax.system.errors import UserError
from simcse_jax.training.collectives import Collective, collectives
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.plan import topology_chips

FLAGS = flags.FLAGS

PUBLISHED = Assumed(peak_share=1.0, link_share=1.0, launch=0.0)
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Work:
    """Hold what one chip does in one step."""

    flops: float  # of products
    exact_flops: float  # the part in float32 at full precision
    accessed: float  # bytes, in whichever memory
    hbm: float  # bytes through main memory, padding included
    unknown_loops: int  # instructions in loops of unknown length, counted once
    xla_flops: float  # XLA's own counts, with a loop's body counted once
    xla_accessed: float
    accessed_once: float  # as `accessed`, with a loop's body counted once, to compare with XLA's
    memory: dict[str, int]
    sent: list[Collective]
    parts: list[Part]


def work(text: str, cost: dict[str, float], memory: dict[str, int], is_tpu: bool, chips: int) -> Work:
    """Return the work of a compiled program from its text, `cost_analysis()` and `memory_of`.

    One chip alone sends nothing.
    """
    found = parts(text, is_tpu)
    return Work(
        flops=sum(part.flops * part.runs for part in found),
        exact_flops=sum(part.exact_flops * part.runs for part in found),
        accessed=sum(part.accessed * part.runs for part in found),
        hbm=sum(part.hbm * part.runs for part in found),
        unknown_loops=sum(part.times is None for part in found),
        xla_flops=float(cost.get("flops", 0.0)),
        xla_accessed=float(cost.get("bytes accessed", 0.0)),
        accessed_once=sum(part.accessed for part in found),
        memory=memory,
        sent=collectives(text) if chips > 1 else [],
        parts=found,
    )


@dataclasses.dataclass(frozen=True)
class Bound:
    """Hold the seconds of one step that a chip's published figures allow, by resource."""

    arithmetic: float
    hbm: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.hbm, self.links)

    @property
    def binds(self) -> str:
        sides = {"arithmetic": self.arithmetic, "HBM": self.hbm, "links": self.links}
        return max(sides, key=lambda side: sides[side])


def bound(done: Work, chip: Chip, shape: tuple[int, ...], chips: int) -> Bound:
    """Return the bound of this work; shape: the axes of the chips in a torus.

    Products of float32 in full precision run at the chip's rate for those, all others at that of bfloat16, to which
    TPUs round factors by default.
    """
    sent = sum((sent_by(one, chip, shape, chips) for one in done.sent), Sent())
    arithmetic = (done.flops - done.exact_flops) / chip.peak + done.exact_flops / chip.float32_peak
    return Bound(arithmetic, done.hbm / chip.hbm, sent.seconds)


def sent_by(one: Collective, chip: Chip, shape: tuple[int, ...], chips: int) -> Sent:
    """Return what a collective over all chips sends; an all-reduce is a scatter and a gather."""
    size = one.bytes * chips if one.kind == "reduce-scatter" else one.bytes
    passes = 2 if one.kind == "all-reduce" else 1
    return gathered(chip, chips, size, PUBLISHED, shape) * (passes * (1 if one.times is None else one.times))


HEADER = (
    "| chips | model | compute | batch | TFLOP | GB accessed | GB through HBM | GiB needed | MB of collectives "
    "| ms arithmetic | ms HBM | ms links | binds | ms a step | sentences/s |\n" + "|---" * 15 + "|"
)


def row(case: dict[str, Any]) -> str:
    """Return one line of the table; without times for a device whose figures are not known here."""
    done = case["work"]
    cells = [
        f"{case['chips']} x {case['device']}",
        case["model"],
        case["dtype"],
        f"{case['batch']:,}",
        f"{done['flops'] / 1e12:,.3f}",
        f"{done['accessed'] / 1e9:,.2f}",
        f"{done['hbm'] / 1e9:,.2f}",
        f"{done['memory']['needed'] / 2**30:,.2f}",
        f"{sum(one['bytes'] * (one['times'] or 1) for one in done['sent']) / 1e6:,.1f}",
    ]
    if case["bound"] is None:
        return f"| {' | '.join(cells + [''] * 6)} |"
    times = case["bound"]
    cells += [f"{1e3 * times[side]:,.2f}" for side in ("arithmetic", "hbm", "links")]
    cells += [times["binds"], f"{1e3 * times['seconds']:,.2f}", f"{times['sentences']:,.0f}"]
    return f"| {' | '.join(cells)} |"


def notes(case: dict[str, Any]) -> Iterator[str]:
    """Return the lines under the table: collectives, and XLA's own counts."""
    done = case["work"]
    for kind in dict.fromkeys(one["kind"] for one in done["sent"]):
        same = [one for one in done["sent"] if one["kind"] == kind]
        count = sum(one["times"] or 1 for one in same)
        yield f"{count} x {kind}: {sum(one['bytes'] * (one['times'] or 1) for one in same) / 1e6:,.2f} MB of results"
    yield (
        f"XLA's own count, loops once: {done['xla_flops'] / 1e12:,.3f} TFLOP, {done['xla_accessed'] / 1e9:,.2f} GB; "
        f"counted here, loops once: {done['accessed_once'] / 1e9:,.2f} GB"
    )
    if done["unknown_loops"]:
        yield f"{done['unknown_loops']} instructions stand in loops of unknown length and are counted once"


def breakdown(found: list[Part], most: int) -> Iterator[str]:
    """Return a table of accessed bytes, by part of the step, and the instructions that access most."""
    total = sum(part.hbm * part.runs for part in found) or 1.0
    yield "| part | GB accessed | GB through HBM | share | TFLOP |\n" + "|---" * 5 + "|"
    of_group = {group: [part for part in found if part.group == group] for group in GROUPS}
    for group in sorted(GROUPS, key=lambda group: -sum(part.hbm * part.runs for part in of_group[group])):
        yield sums(group, of_group[group], total)
    yield sums("all", found, total)
    yield "\n| GB through HBM | GB accessed | times | part | instruction | result | operation |\n" + "|---" * 7 + "|"
    for part in sorted(found, key=lambda part: -part.hbm * part.runs)[:most]:
        times = "?" if part.times is None else part.times
        sizes = f"{part.hbm * part.runs / 1e9:,.3f} | {part.accessed * part.runs / 1e9:,.3f}"
        yield f"| {sizes} | {times} | {part.group} | {part.name} | {part.result[:60]} | {short(part.op_name)[:60]} |"


def sums(name: str, found: list[Part], total: float) -> str:
    """Return one line of the table of parts."""
    accessed, hbm, flops = (
        sum(getattr(part, field) * part.runs for part in found) for field in ("accessed", "hbm", "flops")
    )
    return f"| {name} | {accessed / 1e9:,.3f} | {hbm / 1e9:,.3f} | {hbm / total:.1%} | {flops / 1e12:,.3f} |"


def short(op_name: str) -> str:
    """Return the scopes of an operation without the common ones; `back` marks the backward pass."""
    scopes = [
        scope
        for scope in re.sub(r"\w+\((?:[^()]|\([^()]*\))*\)/?", "", op_name).split("/")
        if scope not in ("shard_map", "Encoder._run", "while", "body", "closed_call", "")
    ]
    name = "/".join(scopes).replace("|", " ")
    return f"back: {name}" if "transpose(jvp" in op_name else name


def measure(
    mesh: Mesh, shape: tuple[int, ...], model: str, dtype: str, batch: int, unroll: bool = False
) -> tuple[dict[str, Any], list[Part]]:
    """Return the figures of one step, ready for JSON, and its parts."""
    compiled = lower(mesh, ENCODERS[model], batch, dtype, {"model.unroll": "on" if unroll else "off"}).compile()
    device = mesh.devices.flat[0]
    cost, is_tpu = compiled.cost_analysis() or {}, device.platform == "tpu"
    done = work(compiled.as_text(), cost, memory_of(compiled), is_tpu, mesh.size)
    kind = KINDS.get(device.device_kind)
    times = None
    if kind:
        found = bound(done, CHIPS[kind], shape, mesh.size)
        times = dataclasses.asdict(found)
        times |= {"binds": found.binds, "seconds": found.seconds, "sentences": batch / found.seconds}
    figures = {
        "device": device.device_kind,
        "chips": mesh.size,
        "model": model,
        "dtype": dtype,
        "batch": batch,
        "unroll": unroll,
        "work": dataclasses.asdict(done),
        "bound": times,
    }
    return figures, done.parts


def meshes() -> Iterator[tuple[Mesh, tuple[int, ...]]]:
    """Yield (mesh, axes of its chips) for each set of chips that the flags name."""
    if FLAGS.on == "device":
        yield make_mesh(1), ()
        return
    for topology in FLAGS.topology:
        chips = topology_chips(topology).devices
        places = [chip.coords for chip in chips]
        shape = tuple(len(set(axis)) for axis in zip(*places, strict=True))
        yield make_mesh(len(chips), devices=chips), shape


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_enum("on", "topology", ["topology", "device"], "Chips that need not be there, or one that is.")
    flags.DEFINE_list("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"], "TPU topologies.")
    flags.DEFINE_list("model", ["bert-base"], f"Some of {', '.join(ENCODERS)}.")
    flags.DEFINE_list("dtype", ["bfloat16"], f"What the encoder computes in, some of {', '.join(DTYPES)}.")
    flags.DEFINE_list("batch", ["512"], "Global batch sizes.")
    flags.DEFINE_bool("unroll", False, "Layers as straight-line code (model.unroll).")
    flags.DEFINE_bool("breakdown", False, "Say what accesses the bytes.")
    flags.DEFINE_integer("most", 40, "How many instructions --breakdown lists.", 1)
    flags.DEFINE_string("json", "", "Write every figure there as well.")


def main() -> None:
    """Compile and print what the flags ask for."""
    for name, given, known in (("model", FLAGS.model, ENCODERS), ("dtype", FLAGS.dtype, DTYPES)):
        unknown = [value for value in given if value not in known]
        if unknown:
            raise UserError(f"--{name}={','.join(given)}: {unknown[0]!r} is not one of {', '.join(known)}.")
    batches = whole_numbers("batch", FLAGS.batch)
    cases = []
    for mesh, shape in meshes():
        for model in FLAGS.model:
            for dtype in FLAGS.dtype:
                for batch in batches:
                    case, found = measure(mesh, shape, model, dtype, batch, FLAGS.unroll)
                    cases.append(case)
                    print("\n".join([HEADER, row(case), "", *notes(case), ""]), flush=True)
                    if FLAGS.breakdown:
                        print("\n".join([*breakdown(found, FLAGS.most), ""]), flush=True)
    if len(cases) > 1:
        print("\n".join([HEADER, *map(row, cases)]))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

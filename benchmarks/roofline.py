"""Bound the time of a training step by published figures of chips: arithmetic, memory and links of the compiled step.

    JAX_PLATFORMS=cpu python -m benchmarks.roofline --topology=v5e:2x4,h100:8 --model=bert-base --batch=512
    JAX_PLATFORMS=cpu python -m benchmarks.roofline --topology=h100:1 --set=model.unroll=off --breakdown --json=FILE
    python -m benchmarks.roofline --on=device --batch=64,512

The step is the real one (benchmarks/compiled_step.py). The compiler of the TPU or GPU compiles it for chips that need
not be present (pip install '.[tpu-plan]' or '.[gpu-plan]'): minutes a step, and nothing runs. With --on=device, the
compiler of one present device does. All figures are of one chip and one step. simcse_jax/planning/hlo_costs.py explains
what is counted, and how it differs from XLA's own `cost_analysis()`, which counts a loop's body once. The published
figures (simcse_jax/planning/chips.py) are taken as fully reached, so no step can be faster. The longest of the three
times is the bound, since the other two can overlap with it.
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

from benchmarks.compiled_step import lower, memory_of
from benchmarks.scaling import whole_numbers
from benchmarks.sizes import ENCODERS
from simcse_jax import cli
from simcse_jax.config.schema import KEYS
from simcse_jax.planning.hlo_costs import GROUPS, Part
from simcse_jax.planning.least_time import bound, chip_of, work
from simcse_jax.planning.topologies import topology_chips
from simcse_jax.system.errors import UserError
from simcse_jax.training.mesh import make_mesh

FLAGS = flags.FLAGS

DTYPES = ("float32", "bfloat16")


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
    mesh: Mesh, shape: tuple[int, ...], model: str, dtype: str, batch: int, changes: dict[str, Any]
) -> tuple[dict[str, Any], list[Part]]:
    """Return the figures of one step, ready for JSON, and its parts.

    shape: the axes of the chips in a torus. changes: keys of the recipe by their full names.
    """
    compiled = lower(mesh, ENCODERS[model], batch, dtype, changes).compile()
    device = mesh.devices.flat[0]
    cost, is_tpu = compiled.cost_analysis() or {}, device.platform == "tpu"
    done = work(compiled.as_text(), cost, memory_of(compiled), is_tpu, mesh.size)
    chip = chip_of(device.device_kind)
    times = None
    if chip:
        found = bound(done, chip, shape, mesh.size)
        times = dataclasses.asdict(found)
        times |= {"binds": found.binds, "seconds": found.seconds, "sentences": batch / found.seconds}
    figures = {
        "device": device.device_kind,
        "chips": mesh.size,
        "model": model,
        "dtype": dtype,
        "batch": batch,
        "changes": changes,
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
        chips = topology_chips(topology)
        yield make_mesh(len(chips.devices), devices=chips.devices), chips.axes


def given_keys(settings: list[str]) -> dict[str, Any]:
    """Return the keys of a recipe that are given as `section.key=value`; UserError for others and for wrong types."""
    found = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or name not in KEYS:
            raise UserError(f"--set={setting}: must be section.key=value, with a key of `--help-config`.")
        kind = KEYS[name].type
        try:
            found[name] = {"True": True, "False": False}[value] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise UserError(
                f"--set={setting}: {name} takes {kind.__name__}, for example {KEYS[name].default}."
            ) from None
    return found


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_enum("on", "topology", ["topology", "device"], "Chips that need not be there, or one that is.")
    flags.DEFINE_list("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"], "Topologies of TPUs and GPUs.")
    flags.DEFINE_list("model", ["bert-base"], f"Some of {', '.join(ENCODERS)}.")
    flags.DEFINE_list("dtype", ["bfloat16"], f"What the encoder computes in, some of {', '.join(DTYPES)}.")
    flags.DEFINE_list("batch", ["512"], "Global batch sizes.")
    flags.DEFINE_list("set", [], "Keys of the recipe, such as model.unroll=off.")
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
    changes, cases = given_keys(FLAGS.set), []
    for mesh, shape in meshes():
        for model in FLAGS.model:
            for dtype in FLAGS.dtype:
                for batch in batches:
                    case, found = measure(mesh, shape, model, dtype, batch, changes)
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

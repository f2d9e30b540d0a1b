"""Plan a run: compile its step ahead of time, for devices that may not be there, and print what it needs."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from simcse_jax.config.schema import Config
from simcse_jax.data.batches import format_rows
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.data.vocabulary import id_count
from simcse_jax.encoder.products import precision
from simcse_jax.system.errors import UserError
from simcse_jax.training.collectives import Collective, collectives
from simcse_jax.training.feeding import batch_shapes, load_data
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.model import load_predictor, local_model, make_encoder, write_tokenizer
from simcse_jax.training.program import make_program

GIB = 2**30
SPARE = 0.03  # share of a device's memory that the largest batch leaves free, for compilers and allocators
ATTEMPTS = 4  # batch sizes that are compiled, at most, to find the largest that fits
# GiB that a program may use on each device, as the TPU compiler (libtpu 0.0.42) says when a program does not fit.
# Topologies of TPU v4 list two devices a chip.
TPU_MEMORY = {"TPU v4": 15.25, "TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25}


@dataclasses.dataclass(frozen=True)
class Chips:
    """Hold the devices to compile for, and the bytes of memory of each."""

    devices: tuple[Any, ...]
    memory: int


def visible_chips() -> Chips:
    """Return the devices of this machine. The virtual devices of a CPU share its memory equally."""
    devices = tuple(jax.devices())
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return Chips(devices, int(memory))


def topology_chips(topology: str) -> Chips:
    """Return the chips of a TPU topology such as "v5e:4x4", to compile for; no TPU is needed.

    UserError without libtpu, the TPU's compiler, and for a topology that it does not know.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs the TPU's compiler, the package libtpu in the release that suits this JAX.\n"
            "pip install 'jax[tpu]' (the extra tpu-plan)."
        )
    from jax.experimental import topologies

    try:
        devices = tuple(topologies.get_topology_desc(topology, "tpu").devices)
    except Exception as error:
        raise UserError(
            f"--topology={topology} is unknown to the TPU's compiler: {str(error).splitlines()[0][:200]}\n"
            "For example v4:2x2x1, v5e:2x2, v5e:4x4, v5p:2x2x2 or v6e:4x4; --config.mesh.data=1 plans for one chip."
        ) from error
    kind = devices[0].device_kind
    if kind not in TPU_MEMORY:
        raise UserError(f"The memory of a {kind!r} is not known here. Known: {', '.join(TPU_MEMORY)}.")
    return Chips(devices, int(TPU_MEMORY[kind] * 2**30))


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Hold what one compiled step needs on each device: bytes, and floating-point operations a step."""

    batch_size: int
    memory: dict[str, int]  # state, batch, temporaries, total
    flops: int = 0  # of matrix products, padding included
    xla_flops: float = 0.0  # the compiler's count, which counts a loop's body once
    sent: tuple[Collective, ...] = ()


class DoesNotFit(Exception):
    """Say that a device has too little memory, in the compiler's words."""


class Planner:
    """Compile steps of one recipe for a set of chips."""

    def __init__(self, config: Config, chips: Chips):
        """Read model sizes and data, but no weights; nothing is written but the cache of tokenised data."""
        self.config, self.chips = config, chips
        self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, chips.devices)
        folder = local_model(dataclasses.replace(config.model, init="random"))
        with tempfile.TemporaryDirectory() as draft:
            write_tokenizer(config, folder, Path(draft))
            tokenizer = load_tokenizer(draft)
        self.encoder = make_encoder(config, folder, id_count(tokenizer), chips.devices[0].platform)
        _, self.views, self.batches = load_data(config, tokenizer)
        self.predictor = load_predictor(config, self.encoder, folder, tokenizer, resumes=True)[0]
        self.rows = self.batches.planned_rows

    def compile(self, batch_size: int) -> StepPlan:
        """Return the plan of a step of this batch size; DoesNotFit where the compiler says so."""
        train = dataclasses.replace(self.config.train, batch_size=batch_size)
        config = dataclasses.replace(self.config, train=train)
        program = make_program(config, self.encoder, self.mesh, self.views, 1000, self.predictor)
        columns = self.batches.examples.texts
        batch = batch_shapes(config, self.mesh, columns, self.rows, self.batches.layout.row_length)
        step: Any = program.train_step
        traced = step.trace(program.shapes, batch)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(str(error)) from error
        found = compiled.memory_analysis()
        state = sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(program.shapes)
        )
        arguments = found.argument_size_in_bytes
        memory = {
            "state": state,
            "batch": arguments - state,
            "temporaries": found.temp_size_in_bytes,
            "total": arguments + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes,
        }
        return StepPlan(
            batch_size=batch_size,
            memory=memory,
            flops=product_flops(traced.jaxpr.jaxpr),
            xla_flops=float((compiled.cost_analysis() or {}).get("flops", 0.0)),
            sent=tuple(collectives(compiled.as_text())) if self.mesh.size > 1 else (),
        )

    def largest(self, plan: StepPlan | None, limit: int) -> Iterator[tuple[int, bool]]:
        """Yield (batch size, whether it fits in `limit` bytes) for each size compiled in search of the largest.

        Memory is nearly linear in the batch size, so the next size to try is where the line through two known sizes
        meets the limit. plan: that of the configured batch, None if it did not fit.
        """
        unit = self.mesh.size * self.batches.layout.group_size * max(self.config.train.groups_at_once, 1)
        known = [plan] if plan else []
        fits, fails = (plan.batch_size, 0) if plan else (0, self.config.train.batch_size)
        for _ in range(ATTEMPTS):
            size = next_size(known, limit, unit, fits, fails)
            if size in (fits, fails) or size < unit:
                return
            try:
                known.append(self.compile(size))
                ok = known[-1].memory["total"] <= limit
            except DoesNotFit:
                ok = False
            fits, fails = (max(fits, size), fails) if ok else (fits, min(fails or size, size))
            yield size, ok


def next_size(known: list[StepPlan], limit: int, unit: int, fits: int, fails: int) -> int:
    """Return the batch size to try: where the line through the two largest known sizes meets the limit."""
    if len(known) < 2:
        size = 2 * known[-1].batch_size if known else fails // 2
    else:
        one, two = sorted(known, key=lambda plan: plan.batch_size)[-2:]
        slope = (two.memory["total"] - one.memory["total"]) / (two.batch_size - one.batch_size)
        size = int(two.batch_size + (limit - two.memory["total"]) / max(slope, 1.0))
    if fails and size >= fails:
        size = (fits + fails) // 2
    return size // unit * unit


def product_flops(jaxpr: Any) -> int:
    """Return the operations of all matrix products of a jaxpr; [m, k] times [k, n] has 2 m k n.

    Of a `shard_map` those of one device. A loop counts as often as it runs, or once where its length is not known.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
        inner = [getattr(value, "jaxpr", value) for value in inner]
        total += equation.params.get("length", 1) * sum(product_flops(one) for one in inner if hasattr(one, "eqns"))
    return total


def print_plan(config: Config, chips: Chips, say: Callable[[str], None] = print, search: bool = True) -> None:
    """Compile a recipe's step and print what it needs, a line at a time; search: find the largest batch too."""
    planner = Planner(config, chips)
    mesh = planner.mesh
    for line in shapes(planner):
        say(line)
    kind = mesh.devices.flat[0].device_kind
    say(f"devices: {mesh.size} x {kind}, mesh data {config.mesh.data} x fsdp {config.mesh.fsdp}")
    say(f"compiling for {kind} ...")
    limit = int(chips.memory * (1 - SPARE))
    try:
        plan = planner.compile(config.train.batch_size)
    except DoesNotFit as error:
        plan = None
        say(f"batch {config.train.batch_size:,} does not fit: {str(error).splitlines()[0][:300]}")
    if plan:
        for line in requirements(plan, chips.memory):
            say(line)
    if not search:
        return
    best = plan.batch_size if plan and plan.memory["total"] <= limit else 0
    say(f"looking for the largest batch that fits in {limit / GIB:.1f} GiB of each device, with this layout ...")
    for size, fits in planner.largest(plan if best else None, limit):
        say(f"  {size:,}: {'fits' if fits else 'does not fit'}")
        best = max(best, size) if fits else best
    say(f"largest batch that was compiled and fits: {best:,}" if best else "no batch fits")
    if not config.train.groups_at_once:
        say("--config.train.groups_at_once=1 makes room for far larger batches, and costs a second forward pass")


def shapes(planner: Planner) -> list[str]:
    """Return lines on what one device works on."""
    config, sizes, layout = planner.config, planner.encoder.architecture, planner.batches.layout
    own = layout.batch_size // config.mesh.devices
    groups, at_once = own // layout.group_size, config.train.groups_at_once
    lines = [
        f"model: {sizes.family}, {sizes.num_hidden_layers} layers, width {sizes.hidden_size}; "
        f"compute in {precision(config.model.dtype, planner.encoder.products)}",
        f"batch: {layout.batch_size:,} examples; each device has {own:,}, as {groups} group{'s' * (groups > 1)} of "
        f"{layout.group_size}{f', {at_once} at once' * bool(at_once)}; a group fills {format_rows(planner.rows)} rows "
        f"of {layout.row_length} tokens",
    ]
    if config.mlm.weight:
        lines.append(f"masked language modelling over {sizes.vocab_size:,} tokens")
    if planner.views:
        tile = min(config.objective.tile or layout.batch_size, layout.batch_size)
        lines.append(
            f"loss: {own:,} anchors, encoded {planner.views} time{'s' * (planner.views > 1)}, against candidates of "
            f"{layout.batch_size:,} examples, in tiles of at most {tile:,} x {tile:,}"
        )
    return lines


def requirements(plan: StepPlan, memory: int) -> list[str]:
    """Return lines on what the compiled step needs."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.memory.items() if name != "total")
    lines = [
        f"memory per device: {plan.memory['total'] / GIB:.2f} GiB of {memory / GIB:.1f} ({parts})",
        f"arithmetic per device and step: {plan.flops / 1e12:.3g} TFLOP in matrix products, counted from shapes "
        f"(compiler: {plan.xla_flops / 1e12:.3g}, loops counted once)",
    ]
    sums: dict[tuple[str, bool], tuple[int, int]] = {}
    for one in plan.sent:
        count, size = sums.get((one.kind, one.times is None), (0, 0))
        runs = one.times or 1
        sums[one.kind, one.times is None] = count + runs, size + runs * one.bytes
    for (kind, loops), (count, size) in sums.items():
        where = ", in each turn of a loop" if loops else ""
        lines.append(f"collective per device and step: {count} x {kind}, {size / 2**20:,.2f} MiB{where}")
    return lines if plan.sent else [*lines, "collectives: none"]

"""Plan a run: compile its step ahead of time, for devices that may not be there, and print what it needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from simcse_jax.config.schema import Config
from simcse_jax.data.batches import format_rows
from simcse_jax.encoder.products import precision
from simcse_jax.planning.least_time import Work, bound, chip_of, work
from simcse_jax.planning.lengths import Lengths, describe, load_plan_data
from simcse_jax.planning.topologies import Chips, require_cuda_tools
from simcse_jax.system.progress import while_doing
from simcse_jax.training.feeding import batch_shapes
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.model import load_predictor, local_model, make_encoder
from simcse_jax.training.program import make_program
from simcse_jax.training.teacher import open_teacher

GIB = 2**30
SPARE = 0.03  # share of a device's memory that the largest batch leaves free, for compilers and allocators
ATTEMPTS = 4  # batch sizes that are compiled, at most, to find the largest that fits


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Hold what one compiled step needs on each device: bytes, and floating-point operations a step."""

    batch_size: int
    memory: dict[str, int]  # state, frozen parameters if any, batch, temporaries, total
    flops: int = 0  # of matrix products, padding included
    work: Work | None = None  # None where only memory is wanted
    loss: str = ""
    others: tuple[StepPlan, ...] = ()  # the steps of a run with other losses


class DoesNotFit(Exception):
    """Say that a device has too little memory, in the compiler's words."""


class Planner:
    """Compile steps of one recipe for a set of chips."""

    def __init__(self, config: Config, chips: Chips, lengths: Lengths | None = None):
        """Read model sizes and data, but no weights; nothing is written but the cache of tokenised data.

        lengths: of the texts; data are not read then.
        """
        self.config, self.chips, self.lengths = config, chips, lengths
        self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, chips.devices)
        folder = local_model(dataclasses.replace(config.model, init="random"))
        tokenizer, entries, self.views, self.batches = load_plan_data(config, folder, lengths)
        self.encoder = make_encoder(config, folder, entries, chips.devices[0].platform)
        self.predictor = load_predictor(config, self.encoder, folder, tokenizer, resumes=True)[0]
        teacher = open_teacher(config)
        self.teacher_width = config.teacher.width or (teacher.width if teacher else 0)
        same_lengths = lengths is not None and not lengths.deviation
        self.rows = self.batches.row_counts[0] if same_lengths else self.batches.planned_rows

    def compile(self, batch_size: int, counts: bool = True) -> StepPlan:
        """Return the plan of a step of this batch size; DoesNotFit where the compiler says so.

        Of a mixture whose sources have several losses, that of the loss which needs the most memory, with the others
        beside it. counts: also count operations, bytes and collectives.
        """
        losses = dict.fromkeys(part.objective.loss for part in self.config.by_source.values())
        plans = [self._compile(batch_size, counts, loss) for loss in losses]
        largest = max(plans, key=lambda plan: plan.memory["total"])
        return dataclasses.replace(largest, others=tuple(plan for plan in plans if plan is not largest))

    def _compile(self, batch_size: int, counts: bool, loss: str) -> StepPlan:
        """Return the plan of a step with this loss."""
        train = dataclasses.replace(self.config.train, batch_size=batch_size)
        config = dataclasses.replace(self.config, train=train)
        width = self.teacher_width
        program = make_program(config, self.encoder, self.mesh, self.views, 1000, self.predictor, width)
        columns = self.batches.examples.texts
        batch = batch_shapes(config.by_loss[loss], self.mesh, columns, self.rows, self.batches.layout.row_length, width)
        step: Any = program.step_of(loss)
        traced = step.trace(program.shapes, batch, *program.frozen)
        try:
            with while_doing(f"compiling batch {batch_size:,}"):
                compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            require_cuda_tools(error)
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(str(error)) from error
        found = compiled.memory_analysis()
        state, frozen = bytes_of(program.shapes), bytes_of(program.frozen)
        arguments = found.argument_size_in_bytes
        memory = {
            "state": state,
            **({"frozen parameters": frozen} if frozen else {}),
            "batch": arguments - state - frozen,
            "temporaries": found.temp_size_in_bytes,
            "total": arguments + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes,
        }
        if not counts:
            return StepPlan(batch_size, memory, loss=loss)
        cost, is_tpu = compiled.cost_analysis() or {}, self.mesh.devices.flat[0].platform == "tpu"
        done = work(compiled.as_text(), cost, memory, is_tpu, self.mesh.size)
        return StepPlan(batch_size, memory, product_flops(traced.jaxpr.jaxpr), done, loss)

    def largest(
        self, plan: StepPlan | None, limit: int, begin: Callable[[int], None] = lambda size: None
    ) -> Iterator[tuple[int, bool]]:
        """Yield (batch size, whether it fits in `limit` bytes) for each size compiled in search of the largest.

        Memory is nearly linear in the batch size, so the next size to try is where the line through two known sizes
        meets the limit. plan: that of the configured batch, None if it did not fit. begin: called with a size before
        it is compiled.
        """
        unit = self.mesh.size * self.batches.layout.group_size * max(self.config.train.groups_at_once, 1)
        known = [plan] if plan else []
        fits, fails = (plan.batch_size, 0) if plan else (0, self.config.train.batch_size)
        for _ in range(ATTEMPTS):
            size = next_size(known, limit, unit, fits, fails)
            if size in (fits, fails) or size < unit:
                return
            begin(size)
            try:
                known.append(self.compile(size, counts=False))
                ok = known[-1].memory["total"] <= limit
            except DoesNotFit:
                ok = False
            fits, fails = (max(fits, size), fails) if ok else (fits, min(fails or size, size))
            yield size, ok


def bytes_of(shapes: Any) -> int:
    """Return the bytes that one device holds of arrays; shapes: a tree of ShapeDtypeStructs with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


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


def print_plan(
    config: Config,
    chips: Chips,
    say: Callable[[str], None] = print,
    search: bool = True,
    lengths: Lengths | None = None,
) -> None:
    """Compile a recipe's step and print what it needs, a line at a time.

    search: find the largest batch too. lengths: of the texts, None to read the data.
    """
    planner = Planner(config, chips, lengths)
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
    for one in (plan, *plan.others) if plan else ():
        if plan and plan.others:
            say(f"a step with the loss {one.loss}:")
        for line in requirements(one, chips, mesh.size):
            say(line)
    best = plan.batch_size if plan and plan.memory["total"] <= limit else 0
    if plan and not best:
        say(f"batch {plan.batch_size:,} does not fit in {limit / GIB:.1f} GiB of each device")
    if not search:
        return
    say(
        f"looking for the largest batch that fits in {limit / GIB:.1f} GiB of each device, with this layout: at most "
        f"{ATTEMPTS} sizes to compile (--search=False leaves it out)"
    )
    for size, fits in planner.largest(plan if best else None, limit, lambda size: say(f"  compiling {size:,} ...")):
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
    lines = [describe(planner.lengths, config)] if planner.lengths else []
    lines += [
        f"model: {sizes.family}, {sizes.num_hidden_layers} layers, width {sizes.hidden_size}; "
        f"compute in {precision(config.model.dtype, planner.encoder.products)}",
        f"batch: {layout.batch_size:,} examples; each device has {own:,}, as {groups} group{'s' * (groups > 1)} of "
        f"{layout.group_size}{f', {at_once} at once' * bool(at_once)}; a group fills {format_rows(planner.rows)} rows "
        f"of {layout.row_length} tokens",
    ]
    if config.mlm.weight:
        lines.append(f"masked language modelling over {sizes.vocab_size:,} tokens")
    if config.objective.loss != "none":
        tile = min(config.objective.tile or layout.batch_size, layout.batch_size)
        lines.append(
            f"loss: {own:,} anchors, encoded {planner.views} time{'s' * (planner.views > 1)}, against candidates of "
            f"{layout.batch_size:,} examples, in tiles of at most {tile:,} x {tile:,}"
        )
    return lines


def requirements(plan: StepPlan, chips: Chips, devices: int) -> list[str]:
    """Return lines on what the compiled step needs on each of `devices` devices; plan: with counts."""
    done = plan.work
    assert done is not None
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in plan.memory.items() if name != "total")
    note = f" ({chips.note})" * bool(chips.note)
    lines = [
        f"memory per device: {plan.memory['total'] / GIB:.2f} GiB of {chips.memory / GIB:.1f}{note} ({parts})",
        f"arithmetic per device and step: {plan.flops / 1e12:.3g} TFLOP in matrix products, counted from shapes"
        + f" (compiler: {done.xla_flops / 1e12:.3g}, loops counted once)" * bool(done.xla_flops),
        f"bytes through each device's memory in a step: {done.hbm / 1e9:.3g} GB, counted from the compiled program"
        + ", loops of unknown length once" * bool(done.unknown_loops),
    ]
    sums: dict[tuple[str, bool], tuple[int, int]] = {}
    for one in done.sent:
        count, size = sums.get((one.kind, one.times is None), (0, 0))
        runs = one.times or 1
        sums[one.kind, one.times is None] = count + runs, size + runs * one.bytes
    for (kind, loops), (count, size) in sums.items():
        where = ", in each turn of a loop" if loops else ""
        lines.append(f"collective per device and step: {count} x {kind}, {size / 2**20:,.2f} MiB{where}")
    if not done.sent:
        lines.append("collectives: none")
    if chip := chip_of(chips.devices[0].device_kind):
        axes = chips.axes if devices == len(chips.devices) else ()
        least = bound(done, chip, axes, devices)
        lines += [
            f"least time of a step: {1e3 * least.seconds:.2f} ms, bound by {least.binds} (arithmetic "
            f"{1e3 * least.arithmetic:.2f} ms, HBM {1e3 * least.hbm:.2f}, links {1e3 * least.links:.2f}), so at most "
            f"{plan.batch_size / least.seconds:,.0f} examples/s",
            f"  by published figures of an {chip.name}, reached in full: {chip.peak / 1e12:,.0f} TFLOP/s in bfloat16, "
            f"{chip.hbm / 1e12:.3g} TB/s (sources: simcse_jax/planning/chips.py)",
        ]
    return lines

"""Model training on 1 to 4,096 chips: what a step computes and sends, and which of the two limits it. No measurement.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --model=bert-large --chips=h100 --batch=32768 --json=FILE --plot=FILE

Prints benchmarks/scaling_tables.md. benchmarks/scaling_model.py has the formulas, simcse_jax/planning/chips.py the
chips and the assumptions about them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.scaling_model import MODELS, SUPERVISED, UNSUPERVISED, Model, Recipe, Step, step
from simcse_jax import cli
from simcse_jax.planning.chips import CHIPS, Assumed, Chip
from simcse_jax.system.errors import UserError

FLAGS = flags.FLAGS

COUNTS = tuple(2**n for n in range(13))  # 1 to 4,096 chips
MOST_EXAMPLES = 65536  # the most examples a chip that are tried


HEADER = (
    "| chips | examples a chip | TFLOP a chip | of it the loss | MB sent, embeddings | MB sent, gradients "
    "| ms compute | ms HBM | ms embeddings | ms gradients | communication | binds | ms a step |\n" + "|---" * 13 + "|"
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Describe one table: a recipe, with the batch fixed or growing with the number of chips."""

    title: str
    recipe: Recipe
    batch: int = 0  # global, or 0:
    per_chip: int = 0

    def steps(self, chip: Chip, model: Model, assumed: Assumed) -> list[Step]:
        """Return one step for each number of chips that leaves at least one example a chip."""
        examples = {n: self.per_chip or self.batch // n for n in COUNTS}
        return [step(chip, n, b, model, self.recipe, assumed) for n, b in examples.items() if b]


def settings(recipe: Recipe, supervised: Recipe, per_chip: int, batches: list[int]) -> list[Setting]:
    """Return the tables of the chapter."""
    return [
        Setting(f"Unsupervised, {per_chip} sentences a chip", recipe, per_chip=per_chip),
        Setting("Supervised, 512 triplets in all", supervised, batch=512),
        *[Setting(f"Unsupervised, {size:,} sentences in all", recipe, batch=size) for size in batches],
    ]


def binding_from(steps: list[Step]) -> int | None:
    """Return the fewest chips from which on communication always takes longer than compute."""
    over = [s.communication > s.compute for s in steps]
    last_under = max((n for n, is_over in enumerate(over) if not is_over), default=-1)
    return steps[last_under + 1].chips if last_under + 1 < len(steps) else None


def examples_needed(
    chip: Chip, chips: int, model: Model, recipe: Recipe, assumed: Assumed, share: float = 0.2
) -> int | None:
    """Return the fewest sentences a chip, a multiple of 8, that keep communication at `share` of the step.

    None if no number does.
    """
    for examples in range(8, MOST_EXAMPLES + 1, 8):
        if step(chip, chips, examples, model, recipe, assumed).share <= share:
            return examples
    return None


def row(s: Step) -> str:
    """Return one line of a table; MB over the fast links + over the outer network."""

    def sent(inner: float, outer: float) -> str:
        return f"{inner / 1e6:,.1f}" + (f" + {outer / 1e6:,.1f}" if outer else "")

    cells = [
        f"{s.chips:,}",
        f"{s.examples:,}",
        f"{(s.encoder_flops + s.loss_flops) / 1e12:,.3f}",
        f"{s.loss_flops / (s.encoder_flops + s.loss_flops):.1%}",
        sent(s.embeddings.inner, s.embeddings.outer),
        sent(s.gradients.inner, s.gradients.outer),
        *[f"{1e3 * t:,.2f}" for t in (s.compute, s.hbm, s.embeddings.seconds, s.gradients.seconds)],
        f"{s.share:.0%}",
        s.binds,
        f"{1e3 * s.shortest:,.1f} to {1e3 * s.longest:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def summary(chips: list[Chip], model: Model, recipe: Recipe, per_chip: int, assumed: Assumed) -> Iterator[str]:
    """Return where communication is the limit, and the sentences a chip that keep it at a fifth of the step."""
    counts = COUNTS[1::2] + COUNTS[-1:]
    yield f"| | communication exceeds compute, {per_chip} a chip | " + " | ".join(f"{n:,} chips" for n in counts) + " |"
    yield "|---" * (len(counts) + 2) + "|"
    for chip in chips:
        steps = Setting("", recipe, per_chip=per_chip).steps(chip, model, assumed)
        start = binding_from(steps)
        needed = [examples_needed(chip, n, model, recipe, assumed) for n in counts]
        cells = [f"{n:,}" if n else "none" for n in needed]
        yield f"| {chip.name} | {f'from {start:,} chips' if start else 'never'} | {' | '.join(cells)} |"


def draw(path: str, found: dict[str, list[Step]]) -> None:
    """Plot communication's share against the number of chips, a line for each chip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, steps in found.items():
        axes.plot([s.chips for s in steps], [100 * s.share for s in steps], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="chips", ylabel="communication, % of a step", title="A model, not a measurement", ylim=(0, 100))
    axes.legend()
    figure.savefig(path)


def whole_numbers(name: str, values: list[str]) -> list[int]:
    """Return the positive integers of a list flag; raise UserError for anything else."""
    for value in values:
        if not value.isdigit() or not int(value):
            raise UserError(
                f"--{name}={','.join(values)}: {value!r} is not a whole number above 0. Say --{name}=16384."
            )
    return [int(value) for value in values]


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_enum("model", "bert-base", sorted(MODELS), "Whose sizes.")
    flags.DEFINE_list("chips", ["v5e", "h100", "h200"], f"Of {', '.join(CHIPS)}.")
    flags.DEFINE_integer("per_chip", 64, "Sentences a chip where the batch grows with the chips.", 1)
    flags.DEFINE_list("batch", ["16384", "65536"], "Fixed global batches of unsupervised sentences.")
    flags.DEFINE_float("tokens", UNSUPERVISED.tokens, "Mean tokens of an unsupervised sentence.", 2)
    flags.DEFINE_float("peak_share", Assumed.peak_share, "Assumed share of a chip's peak that is achieved.", 0.01, 1)
    flags.DEFINE_float("link_share", Assumed.link_share, "Assumed share of a link's bandwidth.", 0.01, 1)
    flags.DEFINE_integer("gradient_bytes", 4, "Of one element of the gradients, as they are sent.", 1)
    flags.DEFINE_integer("kernel_bytes", 4, "Of one element of the kernels, as they are sent (model.dtype).", 1)
    flags.DEFINE_integer("chunks", 1, "In how many a chip's sentences are encoded (train.groups_at_once).", 1)
    flags.DEFINE_bool("fsdp", False, "Gather parameters a layer at a time, within the slice or node.")
    flags.DEFINE_string("json", "", "Write every figure there as well.")
    flags.DEFINE_string("plot", "", "Draw communication's share against chips there (.png, .svg).")


def main() -> None:
    """Print the tables that the flags ask for."""
    unknown = [name for name in FLAGS.chips if name not in CHIPS]
    if unknown:
        raise UserError(f"--chips={','.join(FLAGS.chips)}: {unknown[0]!r} is not one of {', '.join(CHIPS)}.")
    model, chips = MODELS[FLAGS.model], [CHIPS[name] for name in FLAGS.chips]
    assumed = dataclasses.replace(Assumed(), peak_share=FLAGS.peak_share, link_share=FLAGS.link_share)
    sending: dict[str, Any] = {
        "gradient_bytes": FLAGS.gradient_bytes,
        "kernel_bytes": FLAGS.kernel_bytes,
        "chunks": FLAGS.chunks,
        "fsdp": FLAGS.fsdp,
    }
    recipe = dataclasses.replace(UNSUPERVISED, tokens=FLAGS.tokens, **sending)
    supervised = dataclasses.replace(SUPERVISED, **sending)
    tables = settings(recipe, supervised, FLAGS.per_chip, whole_numbers("batch", FLAGS.batch))

    print("\n".join(summary(chips, model, recipe, FLAGS.per_chip, assumed)))
    found = {}
    for table in tables:
        for chip in chips:
            steps = found[f"{table.title}; {chip.name}"] = table.steps(chip, model, assumed)
            print(f"\n### {table.title}: {chip.name}\n\n{HEADER}")
            print("\n".join(row(s) for s in steps))
    if FLAGS.json:
        figures = {
            name: [dataclasses.asdict(s) | {"share": s.share, "binds": s.binds} for s in steps]
            for name, steps in found.items()
        }
        text = json.dumps({"model": FLAGS.model, "assumed": dataclasses.asdict(assumed), "steps": figures}, indent=2)
        Path(FLAGS.json).write_text(text + "\n", encoding="utf-8")
    if FLAGS.plot:
        draw(FLAGS.plot, {chip.name: found[f"{tables[0].title}; {chip.name}"] for chip in chips})


if __name__ == "__main__":
    define_flags()
    cli.run(main)

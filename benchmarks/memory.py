"""Measure the memory of a training step by batch size, from XLA's own analysis: steps are compiled and none runs.

    python -m benchmarks.memory --json=FILE --plot=FILE.png
    JAX_PLATFORMS=cpu python -m benchmarks.memory --topology=v5e:2x2 --batch_sizes=65536

The step is the real one: unsupervised SimCSE of BERT-base, AdamW, sentences of at most 32 tokens packed into rows of
64, on one device. Six layouts of it are compiled, all with the same results: `whole` encodes the batch at once and
computes the loss in one block, `remat` recomputes each layer in the backward pass (model.remat), `tiles` computes the
loss in tiles (objective.tile), `groups` encodes a group of 64 at a time (train.groups_at_once=1), `both` is tiles and
groups, `all` also recomputes each layer. With --topology, the step is compiled for one chip of a TPU that need not be
present (pip install libtpu): minutes a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from benchmarks.compiled_step import GROUP, ROW_LENGTH, ROWS, lower, memory_of
from benchmarks.sizes import ENCODERS
from simcse_jax import cli
from simcse_jax.config.schema import ObjectiveConfig
from simcse_jax.planning.topologies import topology_chips
from simcse_jax.system.errors import UserError
from simcse_jax.training.mesh import make_mesh

FLAGS = flags.FLAGS

TILE = ObjectiveConfig().tile
LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {"objective.tile": 0},
    "remat": {"objective.tile": 0, "model.remat": True},
    "tiles": {"objective.tile": TILE},
    "groups": {"objective.tile": 0, "train.groups_at_once": 1},
    "both": {"objective.tile": TILE, "train.groups_at_once": 1},
    "all": {"objective.tile": TILE, "train.groups_at_once": 1, "model.remat": True},
}


def measure(mesh: Mesh, batch_size: int, layout: str, dtype: str) -> dict[str, Any]:
    """Return the memory of a compiled step (`memory_of`), or the compiler's message as `out of memory`."""
    lowered = lower(mesh, ENCODERS["bert-base"], batch_size, dtype, LAYOUTS[layout])
    figures: dict[str, Any] = {"batch size": batch_size, "layout": layout}
    try:
        return figures | memory_of(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return figures | {"out of memory": str(error)}


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the needed memory as Markdown: a line for each batch size, a column for each layout."""
    layouts = list(dict.fromkeys(result["layout"] for result in results))
    cells = {(result["batch size"], result["layout"]): size(result) for result in results}
    return [
        f"| batch | {' | '.join(layouts)} |",
        "|---:|" + "---:|" * len(layouts),
        *(
            f"| {batch:,} | {' | '.join(cells.get((batch, layout), '') for layout in layouts)} |"
            for batch in dict.fromkeys(result["batch size"] for result in results)
        ),
    ]


def size(result: dict[str, Any]) -> str:
    """Return the needed GiB, or say that the device has less."""
    return f"{result['needed'] / 2**30:,.2f} GiB" if "needed" in result else "too large"


def draw(results: list[dict[str, Any]], path: str) -> None:
    """Plot memory against batch size, both logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = {
        "whole": "whole batch at once",
        "remat": "whole batch, layers recomputed",
        "tiles": f"whole batch, loss in tiles of {TILE:,}",
        "groups": "a group at a time",
        "both": f"a group at a time, loss in tiles of {TILE:,}",
        "all": "the same, layers recomputed",
    }
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (layout, name), style in zip(names.items(), ("o-", "d-", "x--", "s-", "^-", "v-"), strict=True):
        points = [(r["batch size"], r["needed"] / 2**30) for r in results if r["layout"] == layout and "needed" in r]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.axhline(16, color="grey", linestyle=":", label="16 GiB")
    batches = sorted({result["batch size"] for result in results})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set(xlabel="global batch, one device", ylabel="memory of a step, GiB", title="BERT-base, by XLA's analysis")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def define_flags() -> None:
    """Define the command's flags; only the command calls this, so that tests of other commands may import this file."""
    flags.DEFINE_list(
        "batch_sizes", ["64", "256", "1024", "4096", "16384", "65536"], f"Batch sizes, multiples of {GROUP}."
    )
    flags.DEFINE_list("layouts", list(LAYOUTS), f"Some of {', '.join(LAYOUTS)}.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the encoder computes in.")
    flags.DEFINE_string("topology", "", "Compile for one chip of this TPU topology, such as v5e:2x2.")
    flags.DEFINE_string("json", "", "Write the figures there as well.")
    flags.DEFINE_string("plot", "", "Draw them there (.png, .svg or .pdf).")


def main() -> None:
    """Measure as the flags say."""
    wrong = [size for size in FLAGS.batch_sizes if not size.isdigit() or not int(size) or int(size) % GROUP]
    if wrong:
        raise UserError(f"--batch_sizes: {wrong[0]} is no multiple of {GROUP}, the size of a group.\nUse 64 or 4096.")
    unknown = [layout for layout in FLAGS.layouts if layout not in LAYOUTS]
    if unknown:
        raise UserError(f"--layouts: {unknown[0]!r} is unknown.\nUse some of {','.join(LAYOUTS)}.")
    mesh = make_mesh(1, devices=topology_chips(FLAGS.topology).devices if FLAGS.topology else None)
    device = mesh.devices.flat[0].device_kind
    print(f"one {device}, {FLAGS.dtype}, groups of {GROUP} in {ROWS} rows of {ROW_LENGTH} tokens", flush=True)
    results = []
    for batch in map(int, FLAGS.batch_sizes):
        for layout in FLAGS.layouts:
            results.append(measure(mesh, batch, layout, FLAGS.dtype))
            print(f"  {batch:,} {layout}: {results[-1].get('out of memory') or size(results[-1])}", flush=True)
    print("\n".join(["", *table(results)]))
    if FLAGS.json:
        figures = {"device": device, "dtype": FLAGS.dtype, "tile": TILE, "steps": results}
        Path(FLAGS.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if FLAGS.plot:
        draw(results, FLAGS.plot)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

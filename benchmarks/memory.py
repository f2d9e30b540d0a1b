"""Memory of a training step by batch size, from XLA's own analysis: steps are compiled and none is run.

    python -m benchmarks.memory --json=FILE --plot=FILE.png
    TPU_SKIP_MDS_QUERY=1 python -m benchmarks.memory --topology=v5e:2x2 --batch_sizes=65536 --layouts=both

The step is the real one: unsupervised SimCSE of BERT-base, AdamW, sentences of at most 32 tokens packed into rows of
64, on one device. Three layouts of it, which train alike: `whole` encodes the batch at once and ranks it in one block,
`groups` encodes a group of 64 at a time (train.groups_at_once=1), and `both` ranks in tiles as well (objective.tile).
With --topology, one chip of a TPU that need not be there is compiled for (pip install libtpu): minutes a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from simcse_jax import cli
from simcse_jax.config import ObjectiveConfig, OptimizerConfig
from simcse_jax.data.batches import Batch
from simcse_jax.encoder.bert import Encoder, EncoderConfig
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.errors import UserError
from simcse_jax.group import Group
from simcse_jax.objective.contrastive import make_info_nce
from simcse_jax.training.mesh import make_mesh, state_shardings
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.state import init_state
from simcse_jax.training.step import compile_train_step, make_embed_group, make_loss, make_train_step

BERT_BASE = EncoderConfig("bert", 30522, 768, 12, 12, 3072)
# 64 Wikipedia sentences of 21.9 tokens in the mean fill 23 rows of 64.
GROUP, ROWS, ROW_LENGTH = 64, 23, 64
TILE = ObjectiveConfig().tile
LAYOUTS = {"whole": (0, 0), "groups": (1, 0), "both": (1, TILE)}  # groups at once, tile

_BATCHES = flags.DEFINE_list(
    "batch_sizes", ["64", "256", "1024", "4096", "16384", "65536"], f"Batch sizes, multiples of {GROUP}."
)
_LAYOUTS = flags.DEFINE_list("layouts", list(LAYOUTS), f"Some of {', '.join(LAYOUTS)}.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the encoder computes in.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Compile for one chip of this TPU topology, such as v5e:2x2.")
_JSON = flags.DEFINE_string("json", "", "Write the figures there as well.")
_PLOT = flags.DEFINE_string("plot", "", "Draw them there (.png, .svg or .pdf).")


def one_device(topology: str) -> Mesh:
    """A mesh of one device: of this machine, or of a TPU that is only compiled for."""
    if not topology:
        return make_mesh(1)
    from jax.experimental import topologies

    try:
        return make_mesh(1, devices=topologies.get_topology_desc(topology, "tpu").devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise UserError(f"--topology={topology} cannot be had: {error}\nIt needs `pip install libtpu`.") from error


def batch_shapes(batch_size: int) -> Batch:
    """A batch of this many examples as ShapeDtypeStructs."""
    groups = batch_size // GROUP

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    rows, sentences = ints(groups, ROWS, ROW_LENGTH), ints(groups, GROUP)
    return Batch(Group(rows, rows, rows, rows, sentences, sentences), ints(2, batch_size))


def measure(mesh: Mesh, batch_size: int, layout: str, dtype: str) -> dict[str, Any]:
    """Bytes of a compiled step: arguments, outputs, aliased (outputs in the place of arguments), temporaries, needed.

    `needed` is the sum, as temporaries share places that are theirs at different times; `peak` is XLA's own figure,
    which on CPUs counts no temporaries. Or `out of memory`: the compiler's words where the device has too little.
    """
    groups_at_once, tile = LAYOUTS[layout]
    encoder = Encoder(BERT_BASE, jnp.dtype(dtype), has_head=True)
    embed = make_embed_group(encoder, "cls", GROUP, mesh)
    loss = make_loss(embed, make_info_nce(mesh, tile=tile), mesh, groups_at_once)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = jax.eval_shape(lambda params: init_state(params, optimizer, 0), parameter_shapes(encoder))
    step: Any = compile_train_step(make_train_step(loss, optimizer, views=2), mesh, state_shardings(mesh, state))
    figures: dict[str, Any] = {"batch size": batch_size, "layout": layout}
    try:
        memory = step.lower(state, batch_shapes(batch_size)).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return figures | {"out of memory": str(error)}
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    return figures | {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporaries": temporaries,
        "needed": arguments + outputs - aliased + temporaries,
        "peak": memory.peak_memory_in_bytes,
    }


def table(results: list[dict[str, Any]]) -> list[str]:
    """What is needed, as Markdown: a line a batch size, a column a layout."""
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
    """What is needed in GiB, or that the device has less."""
    return f"{result['needed'] / 2**30:,.2f} GiB" if "needed" in result else "too large"


def draw(results: list[dict[str, Any]], path: str) -> None:
    """Memory against batch size, both logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = {
        "whole": "whole batch at once",
        "groups": "a group at a time",
        "both": f"a group at a time, loss in tiles of {TILE:,}",
    }
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (layout, name), style in zip(names.items(), ("o-", "s-", "^-"), strict=True):
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


def main() -> None:
    """Measure as the flags say."""
    wrong = [size for size in _BATCHES.value if not size.isdigit() or not int(size) or int(size) % GROUP]
    if wrong:
        raise UserError(f"--batch_sizes: {wrong[0]} is no multiple of {GROUP}, the size of a group.\nUse 64 or 4096.")
    unknown = [layout for layout in _LAYOUTS.value if layout not in LAYOUTS]
    if unknown:
        raise UserError(f"--layouts: {unknown[0]!r} is unknown.\nUse some of {','.join(LAYOUTS)}.")
    mesh = one_device(_TOPOLOGY.value)
    device = mesh.devices.flat[0].device_kind
    print(f"one {device}, {_DTYPE.value}, groups of {GROUP} in {ROWS} rows of {ROW_LENGTH} tokens", flush=True)
    results = []
    for batch in map(int, _BATCHES.value):
        for layout in _LAYOUTS.value:
            results.append(measure(mesh, batch, layout, _DTYPE.value))
            print(f"  {batch:,} {layout}: {results[-1].get('out of memory') or size(results[-1])}", flush=True)
    print("\n".join(["", *table(results)]))
    if _JSON.value:
        figures = {"device": device, "dtype": _DTYPE.value, "tile": TILE, "steps": results}
        Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if _PLOT.value:
        draw(results, _PLOT.value)


if __name__ == "__main__":
    cli.run(main)

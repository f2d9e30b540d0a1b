"""Compile, but do not run, the training step of the benchmarks: unsupervised SimCSE, AdamW, packed rows."""

from __future__ import annotations

import math
from typing import Any

from jax.sharding import Mesh

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.training.feeding import batch_shapes
from simcse_jax.training.model import encoder_of
from simcse_jax.training.program import make_program

# 64 Wikipedia sentences, with a mean of 21.9 tokens, fill 23 rows of 64; smaller groups take a proportional share.
GROUP, ROWS, ROW_LENGTH = 64, 23, 64


def lower(mesh: Mesh, sizes: Architecture, batch_size: int, dtype: str, changes: dict[str, Any]) -> Any:
    """Lower the step of configs/base.py with `changes` (dotted keys) for the devices of this mesh.

    dtype: the encoder's precision. Raises UserError for a batch that does not divide over the devices.
    """
    recipe = base.get_config()
    values: dict[str, Any] = {"data.files": "none", "train.batch_size": batch_size, "model.dtype": dtype}
    recipe.update_from_flattened_dict(values | changes)
    config = resolve(recipe, (), mesh.size)
    encoder = encoder_of(config, sizes, mesh.devices.flat[0].platform)
    program = make_program(config, encoder, mesh, views=2, total_steps=1000)
    rows = math.ceil(ROWS * config.group_size / GROUP)
    step: Any = program.train_step
    return step.lower(program.shapes, batch_shapes(config, mesh, 1, (rows,), ROW_LENGTH), *program.frozen)


def memory_of(compiled: Any) -> dict[str, int]:
    """Return bytes of a compiled step by kind.

    The kinds are arguments, outputs, aliased (outputs stored in arguments), temporaries, needed and peak. `needed` is
    the sum, in which temporaries that live at different times share memory; `peak` is XLA's own figure, which on CPUs
    counts no temporaries.
    """
    memory = compiled.memory_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    aliased, temporaries = memory.alias_size_in_bytes, memory.temp_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporaries": temporaries,
        "needed": arguments + outputs - aliased + temporaries,
        "peak": memory.peak_memory_in_bytes,
    }

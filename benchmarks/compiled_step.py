"""The training step that the benchmarks compile and do not run: unsupervised SimCSE, AdamW, packed rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.sizes import SIZES
from configs import base
from simcse_jax.config.schema import resolve
from simcse_jax.encoder.bert import Encoder
from simcse_jax.encoder.config import EncoderConfig
from simcse_jax.training.model import unrolls
from simcse_jax.training.program import batch_shapes, make_program

ENCODERS = {name: EncoderConfig("bert", 30522, **dataclasses.asdict(sizes)) for name, sizes in SIZES.items()}
# 64 Wikipedia sentences of 21.9 tokens in the mean fill 23 rows of 64; fewer take as many rows as their share.
GROUP, ROWS, ROW_LENGTH = 64, 23, 64


def lower(mesh: Mesh, sizes: EncoderConfig, batch_size: int, dtype: str, changes: dict[str, Any]) -> Any:
    """The lowered step of configs/base.py with `changes` (dotted keys), for the devices of this mesh.

    UserError for a batch that the devices cannot share. dtype: what the encoder computes in.
    """
    recipe = base.get_config()
    values: dict[str, Any] = {"data.files": "none", "train.batch_size": batch_size, "model.dtype": dtype}
    recipe.update_from_flattened_dict(values | changes)
    config = resolve(recipe, (), mesh.size)
    unroll = unrolls(config.model, mesh.devices.flat[0].platform)
    encoder = Encoder(sizes, jnp.dtype(dtype), has_head=True, unroll=unroll, remat=config.model.remat)
    program = make_program(config, encoder, mesh, views=2, total_steps=1000)
    rows = math.ceil(ROWS * config.group_size / GROUP)
    step: Any = program.train_step
    return step.lower(program.shapes, batch_shapes(config, mesh, 1, (rows,), ROW_LENGTH))


def memory_of(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled step: arguments, outputs, aliased (outputs in the place of arguments), temporaries, needed.

    `needed` is the sum, as temporaries share places that are theirs at different times; `peak` is XLA's own figure,
    which on CPUs counts no temporaries.
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

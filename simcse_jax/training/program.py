"""A configuration and an encoder to the compiled part of a run: what the state looks like, and how a step changes it.

Needs neither data nor weights, and any mesh will do, also one of devices that are not there: planning uses it too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from simcse_jax.config import Config, ObjectiveConfig
from simcse_jax.data.batches import Batch
from simcse_jax.data.masking import places_of
from simcse_jax.encoder.bert import Encoder
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.group import Group, Masked
from simcse_jax.objective.contrastive import Objective, make_info_nce
from simcse_jax.training.mesh import state_shardings
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.state import TrainState, init_state
from simcse_jax.training.step import (
    EncodeBatch,
    TrainStep,
    batch_shardings,
    compile_train_step,
    make_encode_batch,
    make_encode_groups,
    make_loss,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """The step of a run, for one mesh."""

    mesh: Mesh
    optimizer: optax.GradientTransformation
    shapes: TrainState  # ShapeDtypeStructs with shardings: what a state is laid out like
    train_step: TrainStep

    @property
    def shardings(self) -> Any:
        """The NamedSharding of each array of a state."""
        return jax.tree.map(lambda x: x.sharding, self.shapes)


def make_program(config: Config, encoder: Encoder, mesh: Mesh, views: int, total_steps: int) -> Program:
    """The program of a run of `total_steps` steps on this mesh; views: how often each text is embedded."""
    masks = config.mlm.weight > 0
    loss = make_loss(make_encode(config, encoder, mesh), make_objective(config.objective, mesh), config.mlm.weight)
    optimizer = make_optimizer(config.optimizer, total_steps)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, config.train.seed), parameter_shapes(encoder))
    shardings = state_shardings(mesh, shapes)
    return Program(
        mesh=mesh,
        optimizer=optimizer,
        shapes=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        train_step=compile_train_step(make_train_step(loss, optimizer, views + masks), mesh, shardings, masks),
    )


def make_encode(config: Config, encoder: Encoder, mesh: Mesh) -> EncodeBatch:
    """How a run's batches are encoded."""
    encode = make_encode_groups(encoder, config.model.train_pooler, config.group_size, mesh)
    return make_encode_batch(encode, mesh, config.train.groups_at_once, encoder.dtype)


def make_objective(config: ObjectiveConfig, mesh: Mesh) -> Objective | None:
    """The contrastive objective that the recipe names; None where it names none."""
    settings = dataclasses.asdict(config)
    loss = settings.pop("loss")
    return make_info_nce(mesh, **settings) if loss == "info_nce" else None


def batch_shapes(config: Config, mesh: Mesh, columns: int, rows: int, row_length: int) -> Batch:
    """ShapeDtypeStructs of a batch: V = `columns` texts an example, groups of `rows` rows of `row_length` tokens."""
    groups, examples = config.train.batch_size // config.group_size, config.train.batch_size
    spread, everywhere = batch_shardings(mesh).groups.ids, batch_shardings(mesh).texts

    def of_groups(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((groups, *shape), np.int32, sharding=spread)

    tokens, sentences = of_groups(rows, row_length), of_groups(columns * config.group_size)
    texts = jax.ShapeDtypeStruct((max(columns, 2), examples), np.int32, sharding=everywhere)
    masked = None
    if config.mlm.weight:
        places = of_groups(places_of(config.mlm.rate, rows, row_length, columns * config.group_size))
        masked = Masked(tokens, places, places)
    return Batch(Group(tokens, tokens, tokens, tokens, sentences, sentences), texts, masked)

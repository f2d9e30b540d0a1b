"""Build the compiled part of a run: what the state looks like, and how a step changes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simcse_jax.config.schema import Config, ObjectiveConfig
from simcse_jax.data.batches import Batch, Rows
from simcse_jax.data.masking import places_of
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import Predictor
from simcse_jax.encoder.model import Encoder
from simcse_jax.group import Group, MaskedGroup
from simcse_jax.objective.contrastive import Objective, make_info_nce, matryoshka
from simcse_jax.objective.pairwise import make_margin_ranking, make_sigmoid, make_triplet
from simcse_jax.training.mesh import state_shardings
from simcse_jax.training.state import TrainState, add_objective_state, init_state, make_optimizer
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
    start: Callable[[Any, Any], TrainState]  # of the encoder's parameters, and the predictor's: the first state
    shapes: TrainState  # ShapeDtypeStructs with shardings: what a state is laid out like
    train_step: TrainStep

    @property
    def shardings(self) -> Any:
        """The NamedSharding of each array of a state."""
        return jax.tree.map(lambda x: x.sharding, self.shapes)


def make_program(
    config: Config, encoder: Encoder, mesh: Mesh, views: int, total_steps: int, predictor: Predictor | None = None
) -> Program:
    """The program of a run of `total_steps` steps on this mesh.

    views: how often each text is embedded; predictor: what makes positives, with data.positive = "mask".
    """
    masks, hides = config.mlm.weight > 0, predictor is not None
    keys = [0 if config.model.same_mask else view for view in range(views)] + [views] * masks
    loss = make_loss(
        make_encode(config, encoder, mesh, predictor), make_objective(config.objective, mesh), config.mlm.weight
    )
    learned_rate = config.objective.learning_rate or None
    optimizer = make_optimizer(config.optimizer, total_steps, learned_rate)
    of_predictor = predictor and parameter_shapes(predictor.encoder)

    def start(params: Any, of_predictor: Any) -> TrainState:
        params, extra = add_objective_state(config.model.second_encoder, config.objective, params, of_predictor)
        return init_state(params, optimizer, config.train.seed, extra)

    shapes = jax.eval_shape(start, parameter_shapes(encoder), of_predictor)
    shardings = state_shardings(mesh, shapes)
    return Program(
        mesh=mesh,
        start=jax.jit(start, out_shardings=shardings),
        shapes=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        train_step=compile_train_step(
            make_train_step(loss, optimizer, keys, config.model.momentum),
            mesh,
            shardings,
            masks,
            hides,
            apart(config, views),
        ),
    )


def apart(config: Config, views: int) -> bool:
    """Whether anchors and other texts are read by two encoders, and so stand in rows of their own."""
    return config.model.second_encoder != "none" and views == 1


def make_encode(config: Config, encoder: Encoder, mesh: Mesh, predictor: Predictor | None = None) -> EncodeBatch:
    """How a run's batches are encoded."""
    encode = make_encode_groups(encoder, config.model.train_pooler, config.group_size, mesh, predictor)
    return make_encode_batch(encode, mesh, config.train.groups_at_once, encoder.dtype)


def make_objective(config: ObjectiveConfig, mesh: Mesh) -> Objective | None:
    """The contrastive objective that the recipe names; None where it names none."""
    if config.loss == "none":
        return None
    makers = {
        "info_nce": (make_info_nce, ("temperature", "hard_negative_weight", "similarity")),
        "triplet": (make_triplet, ("margin", "mining")),
        "margin_ranking": (make_margin_ranking, ("margin", "similarity")),
        "sigmoid": (make_sigmoid, ("temperature", "bias", "similarity")),
    }
    make, own = makers[config.loss]
    made = make(mesh, **{key: getattr(config, key) for key in (*own, "symmetric", "mask_duplicates", "tile")})
    return matryoshka(made, config.matryoshka_widths) if config.matryoshka_widths else made


def batch_shapes(config: Config, mesh: Mesh, columns: int, rows: Rows, row_length: int) -> Batch:
    """ShapeDtypeStructs of a batch: V = `columns` texts an example, groups of `rows` rows of `row_length` tokens.

    Two row counts: its texts are apart.
    """
    hides = config.objective.loss != "none" and config.data.positive == "mask"
    groups, examples = config.train.batch_size // config.group_size, config.train.batch_size
    spread, everywhere = batch_shardings(mesh).groups.ids, batch_shardings(mesh).texts

    def of_groups(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((groups, *shape), np.int32, sharding=spread)

    def group(rows: int, columns: int) -> Group:
        tokens, sentences = of_groups(rows, row_length), of_groups(columns * config.group_size)
        return Group(tokens, tokens, tokens, tokens, sentences, sentences)

    texts = jax.ShapeDtypeStruct((max(columns, 2), examples), np.int32, sharding=everywhere)

    def copy(rate: float, whole_word: bool = False) -> MaskedGroup:
        places = of_groups(places_of(rate, sum(rows), row_length, columns * config.group_size, whole_word))
        return MaskedGroup(of_groups(sum(rows), row_length), places, places)

    masked = copy(config.mlm.rate, config.mlm.whole_word) if config.mlm.weight else None
    hidden = copy(config.data.rate) if hides else None
    if len(rows) == 1:
        return Batch(group(rows[0], columns), texts, masked, hidden)
    return Batch(group(rows[0], 1), texts, masked, hidden, group(rows[1], columns - 1))


class Compilations:
    """The compiled steps of a run, one for each of the row counts that its batches have.

    One thread compiles them one after another, in the order in which they were asked for. That is the same on every
    process, as it must be: compilers that share their findings between processes (a GPU's autotuning) wait for each
    other.
    """

    def __init__(self, program: Program, shapes: Callable[[Rows], Batch]):
        """shapes: row counts -> ShapeDtypeStructs of a batch."""
        self._program, self._shapes = program, shapes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps: dict[Rows, Future[TrainStep]] = {}
        self._told: set[Rows] = set()

    def begin(self, *row_counts: Rows) -> None:
        """Have these compiled, unless they are already.

        They are traced here, under the caller's own settings of JAX, which other threads do not have.
        """
        step: Any = self._program.train_step
        for rows in row_counts:
            if rows not in self._steps:
                self._steps[rows] = self._pool.submit(step.lower(self._program.shapes, self._shapes(rows)).compile)

    def ready(self, rows: Rows) -> bool:
        """Whether the step for these row counts can run at once."""
        return rows in self._steps and self._steps[rows].done()

    def step(self, rows: Rows) -> TrainStep:
        """The step for these row counts; waits until it is compiled. Raises what the compiler raised."""
        self.begin(rows)
        return self._steps[rows].result()

    def finished(self) -> int:
        """How many are compiled."""
        return sum(_ended(step) and not step.exception() for step in self._steps.values())

    def failures(self) -> list[tuple[Rows, BaseException]]:
        """(row counts, error) of those that did not compile; each once."""
        found = [(rows, error) for rows, step in self._steps.items() if _ended(step) and (error := step.exception())]
        new = [(rows, error) for rows, error in found if rows not in self._told]
        self._told |= {rows for rows, _ in new}
        return new

    def close(self) -> None:
        """Begin no further one. What is being compiled goes on; `cli.run` does not wait for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _ended(step: Future[Any]) -> bool:
    return step.done() and not step.cancelled()

"""Build the compiled part of a run: what the state looks like, and how a step changes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from simcse_jax.config.schema import Config, ObjectiveConfig, TeacherConfig
from simcse_jax.data.batches import Batch, Rows
from simcse_jax.encoder.adapted_params import is_frozen, split_params
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.mlm import Predictor
from simcse_jax.encoder.model import Encoder
from simcse_jax.encoder.pooling import after_layers, width_of
from simcse_jax.encoder.products import compiler_options
from simcse_jax.objective.contrastive import Objective, make_contrastive
from simcse_jax.objective.cosent import GradedLoss, make_graded
from simcse_jax.objective.distillation import Distillation, make_distillation, options_of
from simcse_jax.objective.false_negatives import Limit
from simcse_jax.objective.layers import mean_over_layers, of_last_layer
from simcse_jax.objective.losses import LOSSES
from simcse_jax.objective.own_loss import require_losses
from simcse_jax.system.host_memory import release_freed_memory
from simcse_jax.system.import_path import is_import_path
from simcse_jax.training.mesh import state_shardings
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.state import TrainState, add_objective_state, add_projection, init_state
from simcse_jax.training.step import (
    EncodeBatch,
    TrainStep,
    compile_train_step,
    make_encode_batch,
    make_encode_groups,
    make_loss,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """Hold the step of a run, for one mesh."""

    mesh: Mesh
    start: Callable[[Any, Any], TrainState]  # (encoder's trained parameters, predictor's or None) -> the first state
    shapes: TrainState  # ShapeDtypeStructs with shardings
    train_step: TrainStep
    frozen: tuple[Any, ...] = ()  # what a step takes beside state and batch: the frozen parameters' shapes, or nothing
    of_sources: Mapping[str, TrainStep] = dataclasses.field(default_factory=dict)  # by loss, where it is another

    def step_of(self, loss: str) -> TrainStep:
        """Return the step with this loss of a source; with "", or the recipe's own, the recipe's."""
        return self.of_sources.get(loss, self.train_step)

    @property
    def shardings(self) -> Any:
        """Return the NamedSharding of each array of a state."""
        return jax.tree.map(lambda x: x.sharding, self.shapes)


def make_program(
    config: Config,
    encoder: Encoder,
    mesh: Mesh,
    views: int,
    total_steps: int,
    predictor: Predictor | None = None,
    teacher_width: int = 0,
) -> Program:
    """Return the program of a run of `total_steps` steps on this mesh.

    Needs neither data nor weights, nor devices that are there. views: how often each text is encoded. predictor: the
    model that makes positives with data.positive = "mask". teacher_width: of the teacher's vectors, 0 without one.
    """
    keys = [0 if config.model.same_mask else view for view in range(views)] + [views] * (config.mlm.weight > 0)
    distillation = build_distillation(config.teacher, config.objective.tile, mesh)
    if distillation and config.objective.layers:
        distillation = of_last_layer(distillation, config.objective.matryoshka_layers)
    encode = make_encode(config, encoder, mesh, predictor)
    learned_rate = config.objective.learning_rate or None
    optimizer = make_optimizer(config.optimizer, total_steps, learned_rate)
    predictor_shapes = predictor and parameter_shapes(predictor.encoder)
    width = width_of(config.model.train_pooler, encoder.architecture.hidden_size)

    def start(params: Any, predictor_params: Any) -> TrainState:
        second = config.model.second_encoder
        params, extra = add_objective_state(second, config.objective, params, width, predictor_params)
        if config.teacher.mse and teacher_width != width:
            params = add_projection(params, (width, teacher_width), config.train.seed)
        return init_state(params, optimizer, config.train.seed, extra)

    trained, frozen = parameter_shapes(encoder), ()
    if encoder.lora:
        trained, rest = split_params(trained)
        frozen = (_placed(rest, state_shardings(mesh, rest, is_frozen)),)
    shapes = jax.eval_shape(start, trained, predictor_shapes)
    shardings = state_shardings(mesh, shapes)

    options = compiler_options(encoder.products, mesh.devices.flat[0].platform)

    def step(objective: ObjectiveConfig) -> TrainStep:
        loss = make_loss(encode, build_objective(objective, mesh), config.mlm.weight, distillation)
        train_step = make_train_step(loss, optimizer, keys, config.model.momentum)
        held = jax.tree.map(lambda x: x.sharding, frozen)
        return compile_train_step(train_step, mesh, shardings, *held, compiler_options=options)

    others = {name: part.objective for name, part in config.by_loss.items() if name != config.objective.loss}
    return Program(
        mesh=mesh,
        start=jax.jit(start, out_shardings=shardings),
        shapes=_placed(shapes, shardings),
        train_step=step(config.objective),
        frozen=frozen,
        of_sources={name: step(objective) for name, objective in others.items()},
    )


def _placed(shapes: Any, shardings: Any) -> Any:
    """Return the shapes with their shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def make_encode(config: Config, encoder: Encoder, mesh: Mesh, predictor: Predictor | None = None) -> EncodeBatch:
    """Return the function that encodes a run's batches."""
    pooler = config.model.train_pooler
    if layers := config.objective.matryoshka_layers:
        pooler = after_layers(layers, encoder.architecture.num_hidden_layers)
    encode = make_encode_groups(encoder, pooler, config.group_size, mesh, predictor)
    return make_encode_batch(encode, mesh, config.train.groups_at_once, encoder.dtype, encoder.lora is not None)


def build_objective(config: ObjectiveConfig, mesh: Mesh) -> Objective | None:
    """Return the contrastive objective that the recipe names, None where it names none."""
    if config.loss == "none":
        return None
    objective = _objective_of_embeddings(config, mesh)
    return mean_over_layers(objective, config.matryoshka_layers) if config.layers else objective


def _objective_of_embeddings(config: ObjectiveConfig, mesh: Mesh) -> Objective:
    loss = LOSSES[config.loss]
    options = {key: getattr(config, key) for key in loss.options}
    if is_import_path(config.loss):
        require_losses(config.loss, loss, options)
    if isinstance(loss, GradedLoss):
        return make_graded(loss, mesh, tile=config.tile, widths=config.matryoshka_widths, **options)
    return make_contrastive(
        loss,
        mesh,
        similarity=config.similarity if loss.takes_dot else "cosine",
        symmetric=config.symmetric,
        mask_duplicates=config.mask_duplicates,
        tile=config.tile,
        widths=config.matryoshka_widths,
        limit=Limit(config.false_negatives, config.false_negative_margin) if config.false_negatives else None,
        is_guided=config.guide,
        **options,
    )


def build_distillation(config: TeacherConfig, tile: int, mesh: Mesh) -> Distillation | None:
    """Return the losses that compare with the recipe's teacher, None without any; tile: as objective.tile."""
    if not config.weights:
        return None
    options = {key: getattr(config, key) for name in config.weights for key in options_of(name)}
    return make_distillation(mesh, config.weights, tile, **options)


class Compilations:
    """Hold the compiled steps of a run, one for each loss and each of the row counts that its batches have.

    One thread compiles them one after another, in the order in which they were asked for. That order is the same on
    every process, as it must be: compilers that share their findings between processes (a GPU's autotuning) wait for
    each other.
    """

    def __init__(self, program: Program, shapes: Callable[[Rows, str], Batch]):
        """shapes: (row counts, loss) -> ShapeDtypeStructs of a batch; the loss "" is the recipe's own."""
        self._program, self._shapes = program, shapes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps: dict[tuple[str, Rows], Future[TrainStep]] = {}

    def begin(self, *row_counts: Rows, loss: str = "") -> None:
        """Start to compile the steps for these row counts, unless they are compiled already.

        They are traced here, under the caller's own settings of JAX, which other threads do not have.
        """
        step: Any = self._program.step_of(loss)
        for rows in row_counts:
            if (loss, rows) not in self._steps:
                lowered = step.lower(self._program.shapes, self._shapes(rows, loss), *self._program.frozen)
                self._steps[loss, rows] = self._pool.submit(_compile, lowered)

    def ready(self, rows: Rows, loss: str = "") -> bool:
        """Return whether the step for these row counts can run at once."""
        return (loss, rows) in self._steps and self._steps[loss, rows].done()

    def step(self, rows: Rows, loss: str = "") -> TrainStep:
        """Return the step for these row counts; waits until it is compiled, and raises what the compiler raised."""
        self.begin(rows, loss=loss)
        return self._steps[loss, rows].result()

    def finished(self) -> int:
        """Return how many steps are compiled."""
        ended = [step for step in self._steps.values() if step.done() and not step.cancelled()]
        return sum(step.exception() is None for step in ended)

    def close(self) -> None:
        """Start no further compilation. One that runs goes on, and `cli.run` does not wait for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _compile(lowered: Any) -> TrainStep:
    """Return the compiled step. What steps before have freed is no longer held then, nor what the compiler frees."""
    release_freed_memory()
    try:
        return lowered.compile()
    finally:
        release_freed_memory()

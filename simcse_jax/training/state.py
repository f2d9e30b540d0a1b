"""Define what training carries from one step to the next, and how an update changes it.

`params` is the encoder's tree of parameters, with more trees in it where the recipe asks for them:

    second      a second encoder that is trained too (model.second_encoder = "copy")
    objective   the scalars that the objective learns (objective.learned_temperature)
    to_teacher  a projection from the encoder's width to the teacher's, where they differ (teacher.mse)

`extra` holds arrays that get no gradient:

    second      a second encoder that follows the first (model.second_encoder = "momentum")
    queue       the momentum encoder's embeddings of earlier positives
    predictor   the masked language model that makes positives (data.positive = "mask"); it never changes

With model.lora, `params` and the second encoders have adapters and heads only. The frozen rest of the encoder, which
is no part of the state, goes into each step beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from simcse_jax.config.schema import ObjectiveConfig
from simcse_jax.encoder.adapted_params import is_frozen, join_params
from simcse_jax.objective.contrastive import Queue
from simcse_jax.objective.losses import LOSSES

SECOND, LEARNED, QUEUE, PREDICTOR, PROJECTION = "second", "objective", "queue", "predictor", "to_teacher"


class TrainState(NamedTuple):
    """Hold the state of a run: a step is a pure function from a state and a batch to the next state."""

    step: jax.Array  # int32 scalar: steps done
    params: Any  # trained arrays; those of layers are stacked over layers
    opt_state: Any  # Optax's
    key: jax.Array  # uint32[2]: the run's seed key; a step's key is fold_in(key, step)
    extra: dict[str, Any]  # arrays without a gradient; empty for plain SimCSE


def init_state(
    params: Any, optimizer: optax.GradientTransformation, seed: int, extra: dict[str, Any] | None = None
) -> TrainState:
    """Return the state before the first step. A pure function of arrays: under jit the result can be made sharded."""
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, extra or {})


def step_key(state: TrainState, view: int) -> jax.Array:
    """Return the dropout key of one view of this step, uint32[2]."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, state.step), view))


def add_objective_state(
    second_encoder: str, objective: ObjectiveConfig, params: Any, width: int, predictor: Any = None
) -> tuple[Any, dict[str, Any]]:
    """Return (params, extra) before the first step, from the encoder's parameters. A pure function: jit it.

    second_encoder: the value of model.second_encoder. width: of an embedding. predictor: its parameters, None for no
    predictor.
    """
    copy = {name: jax.tree.map(jnp.array, tree) for name, tree in params.items() if name != "mlm"}
    extra: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    dtype = jax.tree.leaves(params)[0].dtype
    if second_encoder == "copy":
        trained[SECOND] = copy
    if second_encoder == "momentum":
        extra[SECOND] = copy
    if objective.queue:
        size = objective.queue
        extra[QUEUE] = Queue(jnp.zeros((size, width), dtype), jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32))
    if predictor is not None:
        extra[PREDICTOR] = predictor
    if objective.learned_temperature:
        scalars = LOSSES[objective.loss].initial_scalars(dataclasses.asdict(objective))
        trained[LEARNED] = {name: jnp.asarray(value, dtype) for name, value in scalars.items()}
    return params | trained, extra


def add_projection(params: Any, shape: tuple[int, int], seed: int) -> Any:
    """Return the parameters with a random projection between vectors of these widths, which keeps lengths about."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 3)
    kernel = jax.random.normal(key, shape, jax.tree.leaves(params)[0].dtype) * shape[1] ** -0.5
    return params | {PROJECTION: {"kernel": kernel}}


def encoder_params(params: Any) -> Any:
    """Return the first encoder's own parameters: those that are evaluated, kept as the best, and exported."""
    return {name: tree for name, tree in params.items() if name not in (SECOND, LEARNED, PROJECTION)}


def encoding_trees(params: Any, extra: Any, frozen: Any = None) -> Any:
    """Return the parameters that encoding a batch takes: of the encoder, the second encoder and the predictor.

    frozen: what all encoders but the predictor have beside what is trained; None where all of it is.
    """
    both = params | extra
    trees = {name: tree for name, tree in both.items() if name not in (LEARNED, QUEUE, PROJECTION)}
    if frozen is None:
        return trees
    second = {SECOND: join_params(trees[SECOND], frozen)} if SECOND in trees else {}
    return join_params(trees, frozen) | second


def is_frozen_tree(names: tuple[str, ...]) -> bool:
    """Return whether the array under these names of `encoding_trees` is frozen by adapters."""
    return is_frozen(names) and PREDICTOR not in names


def update_ema(extra: Any, params: Any, momentum: float) -> Any:
    """Return `extra` with the momentum encoder at m * second + (1 - m) * first (MoCo, equation 2)."""
    if SECOND not in extra:
        return extra
    moved = jax.tree.map(
        lambda held, new: momentum * held + (1 - momentum) * new,
        extra[SECOND],
        {name: params[name] for name in extra[SECOND]},
    )
    return extra | {SECOND: moved}


def enqueue(queue: Queue, positives: jax.Array, texts: jax.Array) -> Queue:
    """Return the queue with new positives in front and as many of the oldest dropped.

    positives: float[G, n, D]. texts: int32[G * n], the ids of their texts.
    """
    new = jax.lax.stop_gradient(positives.reshape(-1, positives.shape[-1])).astype(queue.z.dtype)
    size = len(queue.z)
    return Queue(
        jnp.concatenate([new, queue.z])[:size],
        jnp.concatenate([texts, queue.texts])[:size],
        jnp.minimum(queue.filled + len(new), size),
    )

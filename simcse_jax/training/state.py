"""Define what training carries from one step to the next, and how an update changes it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from simcse_jax.config.schema import ObjectiveConfig, OptimizerConfig
from simcse_jax.objective.contrastive import Queue
from simcse_jax.training.mesh import VECTORS


class TrainState(NamedTuple):
    """A pure value: a step maps it and a batch to the next one."""

    step: jax.Array  # int32 scalar: steps done
    params: Any  # the encoder's parameters, stacked over layers
    opt_state: Any  # Optax's
    key: jax.Array  # uint32[2]: the run's seed key; a step's key is fold_in(key, step)
    extra: dict[str, Any]  # what no gradient reaches (see `parameters`); empty for SimCSE


def init_state(
    params: Any, optimizer: optax.GradientTransformation, seed: int, extra: dict[str, Any] | None = None
) -> TrainState:
    """The state before the first step. A pure function of arrays: jit it to have the result land sharded."""
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, extra or {})


def step_key(state: TrainState, view: int) -> jax.Array:
    """uint32[2]: the dropout key of one view of this step."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, state.step), view))


SECOND, LEARNED, QUEUE, PREDICTOR = "second", "objective", "queue", "predictor"


def with_rest(
    second_encoder: str, objective: ObjectiveConfig, params: Any, predictor: Any = None
) -> tuple[Any, dict[str, Any]]:
    """(params, extra) at the start, from the encoder's parameters, and the predictor's. Pure: for jit or eval_shape.

    second_encoder: as model.second_encoder.
    """
    copy = {name: jax.tree.map(jnp.array, tree) for name, tree in params.items() if name != "mlm"}
    extra: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    word = params["embeddings"]["word"]
    if second_encoder == "copy":
        rest[SECOND] = copy
    if second_encoder == "momentum":
        extra[SECOND] = copy
    if objective.queue:
        size = objective.queue
        extra[QUEUE] = Queue(
            jnp.zeros((size, word.shape[1]), word.dtype), jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32)
        )
    if predictor is not None:
        extra[PREDICTOR] = predictor
    if objective.learned_temperature:
        rest[LEARNED] = {"log_temperature": jnp.asarray(math.log(objective.temperature), word.dtype)}
        if objective.loss == "sigmoid":
            rest[LEARNED]["bias"] = jnp.asarray(objective.bias, word.dtype)
    return params | rest, extra


def encoder_params(params: Any) -> Any:
    """The encoder's own of a state's params: what is judged, kept as the best, and exported."""
    return {name: tree for name, tree in params.items() if name not in (SECOND, LEARNED)}


def trees_of(params: Any, extra: Any) -> Any:
    """What encoding takes: the encoder's parameters, with the second's and the predictor's where there are some."""
    both = params | extra
    return {name: tree for name, tree in both.items() if name not in (LEARNED, QUEUE)}


def followed(extra: Any, params: Any, momentum: float) -> Any:
    """`extra` after an update of params: the second encoder moves a share 1 - momentum towards the first (MoCo's 2)."""
    if SECOND not in extra:
        return extra
    follow = jax.tree.map(
        lambda held, new: momentum * held + (1 - momentum) * new,
        extra[SECOND],
        {name: params[name] for name in extra[SECOND]},
    )
    return extra | {SECOND: follow}


def taken_in(queue: Queue, positives: jax.Array, texts: jax.Array) -> Queue:
    """The queue with positives float[G, n, D], of texts int32[G * n], at its head, and as many gone at its end."""
    new = jax.lax.stop_gradient(positives.reshape(-1, positives.shape[-1])).astype(queue.z.dtype)
    size = len(queue.z)
    return Queue(
        jnp.concatenate([new, queue.z])[:size],
        jnp.concatenate([texts, queue.texts])[:size],
        jnp.minimum(queue.filled + len(new), size),
    )


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of each step: linear warm-up over `warmup_steps` (none in the paper), then linear decay to 0."""
    decay = optax.linear_schedule(config.learning_rate, 0.0, max(total_steps - config.warmup_steps, 1))
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, total_steps: int, learned_rate: float | None = None
) -> optax.GradientTransformation:
    """AdamW after clipping by global norm. Weight decay, when asked for, spares biases and LayerNorms.

    learned_rate: the learning rate of what the objective learns, with the same schedule; None: as the others.
    """
    steps: list[optax.GradientTransformation] = [
        optax.adamw(
            make_schedule(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_decayed if config.weight_decay else None,
        )
    ]
    if config.clip_norm:
        steps.insert(0, _clip(config.clip_norm))
    if learned_rate is not None:
        steps.append(_scale_learned(learned_rate / config.learning_rate))
    return optax.chain(*steps) if len(steps) > 1 else steps[0]


def _scale_learned(factor: float) -> optax.GradientTransformation:
    """The updates of what the objective learns, times a factor."""

    def scaled(updates: Any, params: Any) -> optax.Updates:
        return updates | {LEARNED: jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), updates[LEARNED])}

    return optax.stateless(scaled)


def _clip(norm: float) -> optax.GradientTransformation:
    """Gradients scaled down to a global norm of at most `norm`; optax's divides, in a pass of its own over them all."""

    def clipped(gradients: optax.Updates, params: Any) -> optax.Updates:
        scale = norm / jnp.maximum(optax.tree.norm(gradients), norm)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), gradients)

    return optax.stateless(clipped)


def _decayed(params: optax.Params) -> optax.Params:
    """True at kernels and embedding tables."""
    return jax.tree_util.tree_map_with_path(lambda path, x: path[-1].key not in VECTORS and x.ndim > 0, params)

"""What is trained, and what else a step needs: the encoder's parameters and those that a recipe adds to them.

`params` is the encoder's tree, with more trees in it where the recipe asks for them:

    second      a second encoder of its own (model.second_encoder = "copy")
    objective   what the objective learns, scalars (objective.learned_temperature)

`extra` holds what no gradient reaches:

    second      a second encoder that follows the first (model.second_encoder = "momentum")
    queue       its embeddings of earlier positives
    predictor   the masked language model that makes positives (data.positive = "mask"), as it was at the start
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from simcse_jax.config.schema import ObjectiveConfig
from simcse_jax.objective.contrastive import Queue

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

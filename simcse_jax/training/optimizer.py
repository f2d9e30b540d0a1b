"""AdamW with a linear schedule and clipping, as the paper trains (appendix A)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from simcse_jax.config.schema import OptimizerConfig
from simcse_jax.training.mesh import VECTORS
from simcse_jax.training.parameters import LEARNED


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

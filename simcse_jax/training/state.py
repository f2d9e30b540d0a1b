"""What training carries from one step to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


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

"""Make the optimizer of a recipe: the rule that turns gradients into updates, and the learning rate of each step.

To add a rule or a schedule: a function here, its line in the table, and its name in `config/sections/optimizer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from simcse_jax.config.schema import OptimizerConfig
from simcse_jax.encoder.lora import DOWN, UP
from simcse_jax.training.mesh import VECTORS
from simcse_jax.training.state import LEARNED

# The encoder's parts before its layers; what is in neither is a head, or comes after them.
_FIRST_PARTS = ("embeddings", "projection", "relative", "relative_norm")
# The root mean square that Muon's updates have, as AdamW's about have (Liu et al. 2025): the same learning rates serve.
_MUON_RMS = 0.2


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step: linear warm-up, then what `SCHEDULES` names.

    The paper uses no warm-up (appendix A).
    """
    decay = SCHEDULES[config.schedule](config, max(total_steps - config.warmup_steps, 1))
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def _linear(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.linear_schedule(config.learning_rate, 0.0, steps)


def _cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, steps)


def _constant(config: OptimizerConfig, steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(config.learning_rate)


def _stable_decay(config: OptimizerConfig, steps: int) -> optax.Schedule:
    last = min(config.decay_steps or max(steps // 10, 1), steps)
    stable, decay = _constant(config, steps), _linear(config, last)
    return optax.join_schedules([stable, decay], [steps - last])


# From `learning_rate` over so many steps after the warm-up.
SCHEDULES: dict[str, Callable[[OptimizerConfig, int], optax.Schedule]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "warmup_stable_decay": _stable_decay,
}


def make_optimizer(
    config: OptimizerConfig, total_steps: int, learned_rate: float | None = None
) -> optax.GradientTransformation:
    """Return the recipe's rule with clipping by the global norm, decoupled weight decay, and `make_schedule`'s rate.

    learned_rate: the learning rate of the objective's own scalars, on the same schedule; None for that of the encoder.
    """
    decayed = DECAYED[config.decayed] if config.weight_decay else None
    # A chain within the chain: the state of checkpoints from when optax.adamw was the only rule.
    steps: list[optax.GradientTransformation] = [
        optax.chain(
            RULES[config.name](config),
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.scale_by_learning_rate(make_schedule(config, total_steps)),
        )
    ]
    if config.clip_norm:
        steps.insert(0, _clip(config.clip_norm))
    if learned_rate is not None:
        steps.append(_scale_learned(learned_rate / config.learning_rate))
    if config.layer_decay:
        steps.append(_scale_layers(config.layer_decay))
    return optax.chain(*steps) if len(steps) > 1 else steps[0]


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


def _lion(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1=config.b1, b2=config.b2)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adafactor (Shazeer & Stern 2018) without momentum and with the recipe's own learning rate.

    The second moments of a matrix are kept as means of its rows and of its columns. A kernel of the layers is one
    matrix a layer, query, key and value together, and each layer's update is clipped at a root mean square of 1.
    """
    del config
    factored = optax.chain(optax.scale_by_factored_rms(), optax.stateless(_clip_each))

    def init(params: Any) -> Any:
        return factored.init(_as_matrices(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = factored.update(_as_matrices(updates), state, _as_matrices(params))
        return jax.tree.map(lambda x, like: x.reshape(like.shape), found, updates), state

    return optax.GradientTransformation(init, update)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024) for the kernels of the layers, and Adam for all other parameters."""
    of_layers = optax.chain(
        contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=_matrices),
        optax.stateless(_scale_orthogonal),
    )

    def label(path: Any, x: Any) -> str:
        return "muon" if _matrix_axes(path, x) else "adam"

    return optax.partition(
        {"muon": of_layers, "adam": _adam(config)}, lambda params: jax.tree_util.tree_map_with_path(label, params)
    )


RULES: dict[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
    "adamw": _adam,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
}


def _is_matrix(path: Any, x: Any) -> bool:
    """Return whether a parameter is a kernel or an embedding table: no bias, LayerNorm or scalar."""
    return path[-1].key not in VECTORS and x.ndim > 0


def _select(is_chosen: Callable[[Any, Any], bool]) -> Callable[[Any], Any]:
    return lambda params: jax.tree_util.tree_map_with_path(is_chosen, params)


# What weight decay acts on, by the value of optimizer.decayed.
DECAYED: dict[str, Callable[[Any], Any]] = {
    "matrices": _select(_is_matrix),
    "kernels": _select(lambda path, x: path[-1].key in ("kernel", DOWN, UP)),
    "all": _select(lambda path, x: x.ndim > 0),
}


def _matrix_axes(path: Any, x: Any) -> contrib.MuonDimensionNumbers | None:
    """Return the axes of a layer's kernel that are a matrix's inputs and outputs; None for other parameters.

    Its other axes count matrices: layers, query, key and value, the parts of a gated layer.
    """
    names = [step.key for step in path]
    if "layers" not in names or names[-1] != "kernel":
        return None
    inputs, outputs = {"qkv": (1, (3, 4)), "out": ((1, 2), 3)}.get(names[-2], (1, x.ndim - 1))
    return contrib.MuonDimensionNumbers(inputs, outputs)


def _matrices(params: Any) -> Any:
    """Return the axes of each parameter, of which all are kernels of layers."""
    return jax.tree_util.tree_map_with_path(_matrix_axes, params)


def _scale_orthogonal(updates: Any, params: Any) -> Any:
    """Scale orthogonal matrices of I inputs and O outputs, whose root mean square is 1 / sqrt(max(I, O))."""
    del params

    def scaled(path: Any, x: jax.Array) -> jax.Array:
        axes = _matrix_axes(path, x)
        assert axes is not None
        sizes = (math.prod(x.shape[axis] for axis in np.atleast_1d(own)) for own in axes)
        return x * jnp.asarray(_MUON_RMS * math.sqrt(max(sizes)), x.dtype)

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _as_matrices(tree: Any) -> Any:
    """Return the tree with the kernels of layers as [layers, inputs, outputs]."""

    def reshaped(path: Any, x: jax.Array) -> jax.Array:
        if not _matrix_axes(path, x):
            return x
        inputs = math.prod(x.shape[1:3] if path[-2].key == "out" else x.shape[1:2])
        return x.reshape(len(x), inputs, -1)

    return jax.tree_util.tree_map_with_path(reshaped, tree)


def _clip_each(updates: Any, params: Any) -> Any:
    """Scale each parameter's update, of the layers each layer's, down to a root mean square of at most 1."""
    del params

    def clipped(path: Any, x: jax.Array) -> jax.Array:
        axes = tuple(range("layers" in [step.key for step in path], x.ndim))
        size = jnp.sqrt(jnp.square(x).mean(axes, keepdims=True))
        return x / jnp.maximum(size, 1)

    return jax.tree_util.tree_map_with_path(clipped, updates)


def _clip(norm: float) -> optax.GradientTransformation:
    """Scale gradients down to a global norm of at most `norm`.

    By hand: `optax.clip_by_global_norm` divides all gradients in one more pass over memory.
    """

    def clipped(gradients: optax.Updates, params: Any) -> optax.Updates:
        scale = norm / jnp.maximum(optax.tree.norm(gradients), norm)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), gradients)

    return optax.stateless(clipped)


def _scale_learned(factor: float) -> optax.GradientTransformation:
    """Multiply the updates of the objective's own scalars.

    By hand: `optax.partition` has another state, and old checkpoints would not fit it.
    """

    def scaled(updates: Any, params: Any) -> optax.Updates:
        return updates | {LEARNED: jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), updates[LEARNED])}

    return optax.stateless(scaled)


def _scale_layers(decay: float) -> optax.GradientTransformation:
    """Multiply the updates of layer l of L by decay^(L - l), of the embeddings by decay^L, and of no head.

    A second encoder's are multiplied alike.
    """

    def scaled(updates: Any, params: Any) -> optax.Updates:
        layers = len(jax.tree.leaves(updates["layers"])[0])

        def one(path: Any, x: jax.Array) -> jax.Array:
            names = {step.key for step in path}
            if "layers" in names:
                below = jnp.arange(layers - 1, -1, -1).reshape(-1, *[1] * (x.ndim - 1))
                return x * jnp.asarray(decay, x.dtype) ** below
            return x * jnp.asarray(decay**layers, x.dtype) if names & {*_FIRST_PARTS} else x

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scaled)

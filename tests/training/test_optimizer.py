"""The optimizer against its definition in NumPy: schedule, clipping, AdamW, and what weight decay spares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simcse_jax.config.schema import OptimizerConfig
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.training.state import make_optimizer, make_schedule

STEPS = 6
SHAPES = {"dense": {"kernel": (2, 3, 4), "bias": (2, 4)}, "norm": {"scale": (4,), "bias": (4,)}, "word": (5, 4)}
SHAPES |= {"objective": {"log_temperature": ()}}
DECAYED = {"['dense']['kernel']", "['word']"}


def random_tree(seed: int, size: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    is_shape = {"is_leaf": lambda x: isinstance(x, tuple)}
    return jax.tree.map(lambda shape: jnp.asarray(size * rng.standard_normal(shape)), SHAPES, **is_shape)


def updated(config: OptimizerConfig, gradients: list[Any], params: Any, learned_rate: float | None = None) -> Any:
    """Return the parameters after an update with each of the gradients."""
    optimizer = make_optimizer(config, len(gradients), learned_rate)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    for each in gradients:
        updates, state = update(each, state, params)
        params = optax.apply_updates(params, updates)
    return params


def by_name(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_rises_over_the_warm_up_and_falls_to_zero_at_the_end(warmup: int) -> None:
    rate: Any = make_schedule(OptimizerConfig(learning_rate=0.5, warmup_steps=warmup), 20)
    for step in range(warmup):
        assert float(rate(step)) == pytest.approx(0.5 * step / warmup)
    for step in range(warmup, 21):
        assert float(rate(step)) == pytest.approx(0.5 * (20 - step) / (20 - warmup))
    assert float(rate(warmup)) == 0.5
    assert float(rate(20)) == 0
    assert float(rate(30)) == 0


@pytest.mark.parametrize(("norm", "scale"), [(0.5, 1), (2.0, 1), (4.0, 0.5), (1e9, 2e-9)])
def test_gradients_are_scaled_down_to_the_clip_norm_and_never_up(norm: float, scale: float) -> None:
    """Seen in Adam's first moment after one step, a tenth of the gradient: its update would hide the scale."""
    gradients = random_tree(1)
    gradients = jax.tree.map(lambda x: x * norm / optax.tree.norm(gradients), gradients)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, clip_norm=2.0), STEPS)
    _, state = optimizer.update(gradients, optimizer.init(gradients), gradients)
    moments: Any = optax.tree.get(state, "mu")
    for name, moment in by_name(moments).items():
        np.testing.assert_allclose(moment, 0.1 * scale * by_name(gradients)[name], rtol=1e-5, err_msg=name)


def test_weight_decay_alone_shrinks_kernels_and_tables() -> None:
    params = random_tree(1)
    zero = jax.tree.map(jnp.zeros_like, params)
    found = by_name(updated(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), [zero], params))
    for name, before in by_name(params).items():
        factor = 1 - 0.1 * 0.5 if name in DECAYED else 1
        np.testing.assert_allclose(found[name], factor * before, rtol=1e-6, err_msg=name)


def test_weight_decay_of_an_encoder_spares_its_biases_and_norms() -> None:
    sizes = Architecture("bert", 50, 8, 2, 2, 16, max_position_embeddings=8)
    shapes = parameter_shapes(Encoder(sizes, has_head=True, has_mlm_head=True))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    zero = jax.tree.map(jnp.zeros_like, params)
    found = by_name(updated(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), [zero], params))
    decayed = {name for name, x in found.items() if (x < 1).any()}
    spared = found.keys() - decayed
    assert {name.split("'")[-2] for name in decayed} == {"kernel", "word", "position", "token_type"}
    assert {name.split("'")[-2] for name in spared} == {"bias", "scale"}
    assert any("norm" in name for name in spared)


@pytest.mark.parametrize("learned_rate", [None, 0.2])
def test_several_steps_are_those_of_adamw(learned_rate: float | None) -> None:
    config = OptimizerConfig(
        learning_rate=0.05, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1, warmup_steps=2, clip_norm=3.0
    )
    with jax.enable_x64(True):
        params = random_tree(0)
        gradients = [random_tree(seed, size) for seed, size in enumerate((1.0, 0.1, 3.0, 0.2, 1.0, 1.0), 1)]
        found = by_name(updated(config, gradients, params, learned_rate))
    x, m, v = by_name(params), dict.fromkeys(found, np.zeros(())), dict.fromkeys(found, np.zeros(()))
    for step, each in enumerate(map(by_name, gradients)):
        rate = 0.05 * (step / 2 if step < 2 else (STEPS - step) / (STEPS - 2))
        norm = np.sqrt(sum((g**2).sum() for g in each.values()))
        for name, g in each.items():
            g = g * min(1, 3.0 / norm)
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            hat_m, hat_v = m[name] / (1 - 0.8 ** (step + 1)), v[name] / (1 - 0.95 ** (step + 1))
            own = rate * learned_rate / 0.05 if learned_rate and "objective" in name else rate
            decay = 0.1 * x[name] if name in DECAYED else 0.0
            x[name] = x[name] - own * (hat_m / (np.sqrt(hat_v) + 1e-3) + decay)
    for name in found:
        np.testing.assert_allclose(found[name], x[name], atol=1e-12, err_msg=name)

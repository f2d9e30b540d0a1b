"""Optimizers against their definitions in NumPy: schedules, clipping, rules, rates by layer, what is decayed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simcse_jax.config.schema import OptimizerConfig
from simcse_jax.config.sections import optimizer as keys
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import parameter_shapes
from simcse_jax.encoder.model import Encoder
from simcse_jax.training import optimizer as rules
from simcse_jax.training.mesh import make_mesh, state_shardings
from simcse_jax.training.optimizer import make_optimizer, make_schedule

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


SIZES = Architecture("bert", 50, 8, 3, 2, 16, max_position_embeddings=8)
RULES = tuple(rules.RULES)


def encoder_tree(seed: int, sizes: Architecture = SIZES, size: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(Encoder(sizes, has_head=True, has_mlm_head=True))
    return jax.tree.map(lambda x: jnp.asarray(size * rng.standard_normal(x.shape)), shapes)


def test_the_tables_are_those_of_the_recipe() -> None:
    tables = (rules.RULES, rules.SCHEDULES, rules.DECAYED)
    assert [tuple(table) for table in tables] == [keys.OPTIMIZERS, keys.SCHEDULES, keys.DECAYED]


def test_checkpoints_of_adamw_keep_their_state() -> None:
    """The tree of the state, which checkpoints store, is that of optax.adamw, and so are its numbers, bit for bit."""
    config, params, gradients = OptimizerConfig(weight_decay=0.1, clip_norm=0.0), encoder_tree(0), encoder_tree(1)
    ours = make_optimizer(config, STEPS)
    rate = make_schedule(config, STEPS)
    theirs = optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, mask=rules.DECAYED["matrices"])
    found, expected = (rule.update(gradients, rule.init(params), params) for rule in (ours, theirs))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("warmup", [0, 4])
def test_other_schedules(warmup: int) -> None:
    def rates(schedule: str, **keys: Any) -> np.ndarray:
        config = OptimizerConfig(learning_rate=0.5, warmup_steps=warmup, schedule=schedule, **keys)
        rate: Any = make_schedule(config, 24)
        return np.array([float(rate(step)) for step in range(warmup, 25)])

    steps = np.arange(25 - warmup)
    last = 24 - warmup
    np.testing.assert_allclose(rates("cosine"), 0.25 * (1 + np.cos(np.pi * steps / last)), atol=1e-7)
    np.testing.assert_allclose(rates("constant"), 0.5)
    decayed = np.minimum(0.5, 0.5 * (last - steps) / 6)
    np.testing.assert_allclose(rates("warmup_stable_decay", decay_steps=6), decayed, atol=1e-7)
    np.testing.assert_allclose(rates("warmup_stable_decay", decay_steps=99), rates("linear"), atol=1e-7)
    np.testing.assert_allclose(rates("warmup_stable_decay"), np.minimum(0.5, 0.5 * (last - steps) / 2), atol=1e-7)


def test_lion() -> None:
    config = OptimizerConfig(name="lion", learning_rate=0.05, b1=0.8, b2=0.9, weight_decay=0.1, clip_norm=0.0)
    with jax.enable_x64(True):
        params = random_tree(0)
        gradients = [random_tree(seed) for seed in range(1, 4)]
        found = by_name(updated(config, gradients, params))
    x, m = by_name(params), dict.fromkeys(found, np.zeros(()))
    for step, each in enumerate(map(by_name, gradients)):
        for name, g in each.items():
            decay = 0.1 * x[name] if name in DECAYED else 0.0
            x[name] = x[name] - 0.05 * (3 - step) / 3 * (np.sign(0.8 * m[name] + 0.2 * g) + decay)
            m[name] = 0.9 * m[name] + 0.1 * g
    for name in found:
        np.testing.assert_allclose(found[name], x[name], atol=1e-12, err_msg=name)


WIDE = Architecture("bert", 130, 128, 2, 2, 160, max_position_embeddings=8)  # matrices wide enough to be factored


def test_adafactor() -> None:
    """Rows and columns of each layer's matrices, each layer clipped by itself."""
    config = OptimizerConfig(name="adafactor", learning_rate=0.05, clip_norm=0.0, schedule="constant")
    with jax.enable_x64(True):
        params, gradients = encoder_tree(0, WIDE), [encoder_tree(seed, WIDE, size) for seed, size in ((1, 1), (2, 9))]
        found = by_name(updated(config, gradients, params))
        kept = make_optimizer(config, STEPS).init(params)
    assert sum(x.size for x in jax.tree.leaves(kept)) < 0.1 * sum(x.size for x in jax.tree.leaves(params))
    x: Any = by_name(params)
    means: dict[str, Any] = {}
    for step, each in enumerate(map(by_name, gradients)):
        decay = 1 - (step + 1) ** -0.8
        for name, g in each.items():
            is_layer = name.startswith("['layers']")
            inputs = 2 if "['out']" in name else 1
            flat = g.reshape(len(g), int(np.prod(g.shape[1 : 1 + inputs])), -1) if is_layer and "kernel" in name else g
            square = flat**2 + 1e-30
            if flat.ndim > 1 and sorted(flat.shape)[-2] >= 128:
                new = square.mean(-1), square.mean(-2)
                old = means.get(name, (0.0, 0.0))
                rows, columns = means[name] = tuple(decay * a + (1 - decay) * b for a, b in zip(old, new, strict=True))
                second = rows[..., None] * columns[..., None, :] / rows.mean(-1)[..., None, None]
            else:
                second = means[name] = decay * means.get(name, 0.0) + (1 - decay) * square
            update = flat / np.sqrt(second)
            axes = tuple(range(int(is_layer), update.ndim))
            update = update / np.maximum(1, np.sqrt((update**2).mean(axes, keepdims=True)))
            x[name] = x[name] - 0.05 * update.reshape(g.shape)
    for name in found:
        np.testing.assert_allclose(found[name], x[name], atol=1e-9, err_msg=name)


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five steps of Newton and Schulz, with Muon's constants."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize("gated", [False, True])
def test_muon(gated: bool) -> None:
    """The kernels of layers, each of query, key and value by itself; all else as AdamW has it."""
    sizes = Architecture("bert", 50, 8, 3, 2, 16, max_position_embeddings=8, gated=gated)
    config = OptimizerConfig(name="muon", learning_rate=0.05, clip_norm=0.0, momentum=0.9, weight_decay=0.1)
    with jax.enable_x64(True):
        params, gradients = encoder_tree(0, sizes), [encoder_tree(1, sizes)]
        found = by_name(updated(config, gradients, params))
        adam = by_name(updated(OptimizerConfig(learning_rate=0.05, clip_norm=0.0, weight_decay=0.1), gradients, params))
    # The first step's momentum, Nesterov's included, is the gradient times a factor, which does not count.
    for name, g in by_name(gradients[0]).items():
        if not (name.startswith("['layers']") and "kernel" in name):
            np.testing.assert_allclose(found[name], adam[name], atol=1e-12, err_msg=name)
            continue
        before = by_name(params)[name]
        if "['qkv']" in name:
            of_parts = [g[:, :, part].reshape(3, 8, 8) for part in range(3)]
        elif "['up']" in name and gated:
            of_parts = [g[:, :, part] for part in range(2)]
        else:
            of_parts = [g.reshape(3, 8, 8) if "['out']" in name else g]
        parts = []
        for part in of_parts:
            scale = 0.2 * np.sqrt(max(part.shape[1:]))
            parts.append(np.stack([scale * orthogonal(layer) for layer in part]))
        update = np.stack(parts, axis=2).reshape(g.shape) if len(parts) > 1 else parts[0].reshape(g.shape)
        np.testing.assert_allclose(found[name], before - 0.05 * (update + 0.1 * before), atol=1e-6, err_msg=name)


def test_rates_by_layer() -> None:
    config = OptimizerConfig(learning_rate=0.05, weight_decay=0.1)
    params, gradients = encoder_tree(0), [encoder_tree(1)]
    params["second"], gradients[0]["second"] = (
        {name: tree[name] for name in ("embeddings", "layers")} for tree in (params, gradients[0])
    )
    whole = by_name(updated(config, gradients, params))
    found = by_name(updated(OptimizerConfig(learning_rate=0.05, weight_decay=0.1, layer_decay=0.5), gradients, params))
    for name, before in by_name(params).items():
        factor: Any = 1.0
        if "['layers']" in name:
            factor = np.array([0.25, 0.5, 1]).reshape(-1, *[1] * (before.ndim - 1))
        elif "['embeddings']" in name:
            factor = 0.125
        expected = before + factor * (whole[name] - before)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("decayed", "names"),
    [
        ("matrices", {"kernel", "word", "position", "token_type"}),
        ("kernels", {"kernel"}),
        ("all", {"kernel", "word", "position", "token_type", "bias", "scale"}),
    ],
)
def test_what_is_decayed(decayed: str, names: set[str]) -> None:
    params = jax.tree.map(jnp.ones_like, encoder_tree(0))
    zero = jax.tree.map(jnp.zeros_like, params)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, decayed=decayed)
    found = by_name(updated(config, [zero], params))
    assert {name.split("'")[-2] for name, x in found.items() if (x < 1).any()} == names


@pytest.mark.parametrize("name", RULES)
def test_a_split_state_changes_no_number(name: str) -> None:
    """Parameters and state over 2 x 2 devices, against one device, in float64."""
    config = OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1, layer_decay=0.9)
    optimizer = make_optimizer(config, STEPS)
    sizes = Architecture("bert", 256, 256, 2, 4, 256, max_position_embeddings=16)

    def run(params: Any, state: Any, gradients: Any) -> Any:
        for _ in range(2):
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    with jax.enable_x64(True):
        params, gradients = encoder_tree(0, sizes), encoder_tree(1, sizes)
        state = jax.jit(optimizer.init)(params)
        alone = by_name(jax.jit(run)(params, state, gradients))
        shardings = state_shardings(make_mesh(2, 2), (params, state, gradients))
        split = jax.device_put((params, state, gradients), shardings)
        together = by_name(jax.jit(run, in_shardings=shardings, out_shardings=shardings[0])(*split))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(split[1]))
    for key, x in alone.items():
        np.testing.assert_allclose(together[key], x, atol=1e-9, err_msg=key)

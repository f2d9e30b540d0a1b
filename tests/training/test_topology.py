"""Layout never changes the numbers: devices, packing, chunks, fsdp, loops and recomputation, with dropout on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from simcse_jax.config import OptimizerConfig
from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.masking import Masking
from simcse_jax.data.vocabulary import Vocabulary
from simcse_jax.encoder.bert import Encoder
from simcse_jax.encoder.config import EncoderConfig
from simcse_jax.encoder.init import init_params
from simcse_jax.objective.contrastive import make_info_nce
from simcse_jax.training.mesh import make_mesh, state_shardings
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.state import init_state
from simcse_jax.training.step import (
    compile_train_step,
    make_encode_batch,
    make_encode_groups,
    make_loss,
    make_train_step,
)

CONFIG = EncoderConfig("bert", 200, 32, 2, 4, 64, max_position_embeddings=32)
BATCH, MAX_LENGTH, EXAMPLES = 32, 16, 200


class RandomExamples:
    """Examples of random tokens, some of them exact duplicates of others."""

    def __init__(self, columns: int):
        rng = np.random.default_rng(0)
        self.lengths = rng.integers(4, MAX_LENGTH + 1, (EXAMPLES, columns)).astype(np.int32)
        self.hashes = rng.integers(0, 60, (EXAMPLES, columns)).astype(np.uint64)  # about half collide in a batch
        self.tokens = rng.integers(5, 200, (EXAMPLES, columns, MAX_LENGTH)).astype(np.int32)

    def token_ids(self, rows: np.ndarray) -> list[list[np.ndarray]]:
        return [[t[:n] for t, n in zip(self.tokens[r], self.lengths[r], strict=True)] for r in rows]


@dataclasses.dataclass(frozen=True)
class Case:
    """One layout of the same run."""

    name: str
    devices: int = 1
    fsdp: int = 1
    group: int = 4
    row_length: int = 32
    one_per_row: bool = False
    groups_at_once: int = 0
    unroll: bool = False
    remat: bool = False
    tile: int = 1024


LAYOUTS = (
    Case("2 devices", devices=2),
    Case("4 devices, unrolled", devices=4, unroll=True),
    Case("8 devices", devices=8),
    Case("8 devices, padded", devices=8, row_length=16, one_per_row=True),
    Case("1 device, padded, larger groups", group=16, row_length=16, one_per_row=True),
    Case("1 device, a group at a time", groups_at_once=1),
    Case("2 devices, a group at a time, recomputed layers", devices=2, groups_at_once=1, remat=True),
    Case("4 x 2, fsdp", devices=8, fsdp=2),
    Case("2 x 2, fsdp, unrolled, a group at a time", devices=4, fsdp=2, unroll=True, groups_at_once=1),
    Case("2 devices, tiles of at most 5", devices=2, tile=5),
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is trained, whatever the layout."""

    columns: int = 1
    contrastive: bool = True
    mlm: float = 0.0

    @property
    def keys(self) -> int:
        """Dropout keys of a step."""
        return self.contrastive * (2 if self.columns == 1 else 1) + (self.mlm > 0)


KINDS = {
    "dropout": Kind(),
    "hard negatives": Kind(3),
    "dropout and MLM": Kind(mlm=0.5),
    "MLM": Kind(contrastive=False, mlm=1.0),
}
VOCABULARY = Vocabulary(np.arange(200) < 5, np.arange(200) > 150, mask_id=4)


def build(case: Case, kind: Kind, dtype: Any, **objective: Any) -> tuple[Mesh, Batches, Any, Any]:
    """What a layout needs to run: mesh, batches, loss, initial parameters."""
    mesh = make_mesh(case.devices // case.fsdp, case.fsdp)
    layout = Layout(BATCH, case.group, case.row_length, case.one_per_row)
    masking = Masking(VOCABULARY, 0.3, whole_word=True, seed=3) if kind.mlm else None
    batches = Batches(RandomExamples(kind.columns), layout, 3, masking)
    encoder = Encoder(CONFIG, dtype, dtype, has_head=True, has_mlm_head=kind.mlm > 0)
    params = jax.jit(lambda: init_params(encoder, 1))()
    info_nce = make_info_nce(mesh, **objective, tile=case.tile) if kind.contrastive else None
    encode = make_encode_groups(encoder.clone(unroll=case.unroll, remat=case.remat), "cls", case.group, mesh)
    loss = make_loss(make_encode_batch(encode, mesh, case.groups_at_once, dtype), info_nce, kind.mlm)
    return mesh, batches, loss, params


def gradients(case: Case, kind: Kind, **objective: Any) -> tuple[float, Any]:
    mesh, batches, loss, params = build(case, kind, jnp.float32, **objective)
    keys = jnp.arange(2 * kind.keys, dtype=jnp.uint32).reshape(kind.keys, 2) + jnp.uint32(7)
    with jax.sharding.set_mesh(mesh):
        (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batches(2), keys)
    return float(value), jax.device_get(grads)


def parameters_after(case: Case, steps: int, kind: Kind) -> tuple[list[float], Any]:
    """Losses and final parameters of a run in float64."""
    mesh, batches, loss, params = build(case, kind, jnp.float64, hard_negative_weight=2.0)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), steps)
    shardings = state_shardings(mesh, jax.eval_shape(lambda p: init_state(p, optimizer, 5), params))
    state = jax.device_put(init_state(params, optimizer, 5), shardings)
    step = compile_train_step(make_train_step(loss, optimizer, kind.keys), mesh, shardings, kind.mlm > 0)
    losses = []
    for n in range(steps):
        state, metrics = step(state, batches(n))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("name", ["dropout", "hard negatives", "dropout and MLM"])
def test_gradients_are_equal_on_every_layout(name: str) -> None:
    kind = KINDS[name]
    options: dict = {"hard_negative_weight": 2.0, "symmetric": True} if kind.columns == 3 else {}
    loss, reference = gradients(Case("1 device"), kind, **options)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(reference))
    assert largest > 1e-3
    for case in LAYOUTS:
        other_loss, grads = gradients(case, kind, **options)
        assert other_loss == pytest.approx(loss, abs=1e-5), case.name
        gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), grads, reference)
        assert max(jax.tree.leaves(gap)) < 1e-5 * largest, case.name


def test_another_dropout_key_gives_another_gradient() -> None:
    """The negative case: were dropout off, all layouts would agree for free."""
    _, batches, loss, params = build(Case("1 device"), Kind(), jnp.float32)
    keys = jnp.arange(2, dtype=jnp.uint32)[:, None]
    values = [float(jax.jit(loss)(params, batches(2), jnp.full((2, 2), n, jnp.uint32) + keys)[0]) for n in (1, 2)]
    assert abs(values[0] - values[1]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_parameters_after_30_steps_are_equal_on_every_layout(name: str) -> None:
    kind = KINDS[name]
    with jax.enable_x64(True):
        losses, reference = parameters_after(Case("1 device"), 30, kind)
        assert losses[-1] < losses[0]
        for case in (*LAYOUTS[1::2], *(case for case in LAYOUTS if "unrolled, a group" in case.name)):
            other, params = parameters_after(case, 30, kind)
            np.testing.assert_allclose(other, losses, atol=1e-9, err_msg=case.name)
            gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, reference)
            assert max(jax.tree.leaves(gap)) < 1e-9, case.name

"""A run that trains adapters: what it holds and keeps, how it resumes, and what it exports."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.lora import DOWN, UP
from simcse_jax.model_folder.frozen_base import BASE
from simcse_jax.model_folder.run_folder import export_run, load_adapted, load_run_params
from simcse_jax.planning.plan import bytes_of
from simcse_jax.runs.branch import Branch, start_branch
from simcse_jax.system.errors import UserError
from simcse_jax.training.display import describe
from simcse_jax.training.optimizer import DECAYED
from tests.small_models import LORA, prepare_small, states_of, train_small

TEXTS = ["a man plays the guitar", "two dogs"]


def flags_of(run: Path) -> dict[str, Any]:
    name = json.loads((run / "config.json").read_text())["recipe"]["model.name"]
    return LORA | {"model__name": name}


def leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.medium
def test_the_state_is_of_adapters_and_head_and_the_rest_stays(small_model: Path, tmp_path: Path) -> None:
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **LORA, model__name=str(small_model))
    frozen = jax.device_get(run.frozen)
    (first, last), metrics = states_of(run, 1)
    for state in (first, last):
        assert {name.rpartition("/")[2] for name in leaves(state.params)} == {DOWN, UP, "kernel", "bias"}
        assert {name for name in leaves(state.params) if "lora" not in name} == {"head/kernel", "head/bias"}
    moments = sum(x.size for x in jax.tree.leaves(first.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(first.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.frozen), frozen)
    moved = {name: np.abs(leaves(last.params)[name] - x).max() for name, x in leaves(first.params).items()}
    assert all(gap > 0 for name, gap in moved.items() if not name.endswith(DOWN))  # A's gradient is 0 at B = 0
    assert metrics[0]["gradient_norm"] > 0
    counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (first.params, frozen)]
    assert f"training {counts[0]:,} of {sum(counts):,} parameters (LoRA, rank 2)" in describe(run)[0]
    assert bytes_of(run.program.frozen) == 4 * counts[1]


@pytest.mark.medium
def test_the_run_folder_holds_the_base_once_and_is_enough(lora_run: Path, tmp_path: Path) -> None:
    base = (lora_run / BASE).stat().st_size
    for step in (lora_run / "checkpoints" / "last").iterdir():
        arrays = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
        assert arrays < 1.5 * base, "a state of all parameters has three times their size"
    moved = shutil.copytree(lora_run, tmp_path / "moved")
    params, lora, info = load_adapted(moved, 3)
    assert lora is not None
    assert np.abs(params["layers"]["ffn"]["up"][UP]).max() > 0
    whole, _ = load_run_params(moved, 3)
    kernels = [tree["layers"]["ffn"]["up"]["kernel"] for tree in (params, whole)]
    factors = (params["layers"]["ffn"]["up"][name] for name in (DOWN, UP))
    down, up = (x[:, :, 0] if x.shape[1] != 1 else x[:, 0] for x in factors)
    np.testing.assert_allclose(kernels[1], kernels[0] + 8 * (down @ up), rtol=0, atol=1e-6)
    assert info["recipe"]["model.lora"] == 2


@pytest.mark.medium
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(lora_run: Path, tmp_path: Path) -> None:
    part = shutil.copytree(lora_run, tmp_path / "part")
    for step in (2, 3):
        shutil.rmtree(part / "checkpoints" / "last" / str(step))
    flags = flags_of(lora_run)
    train_small(part, tmp_path / "cache", **flags)
    for step in (2, 3):
        both = load_adapted(lora_run, step)[0], load_adapted(part, step)[0]
        jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_run_whose_base_is_another_is_refused(lora_run: Path, tmp_path: Path) -> None:
    part = shutil.copytree(lora_run, tmp_path / "part")
    content = bytearray((part / BASE).read_bytes())
    content[-1] ^= 1
    (part / BASE).write_bytes(content)
    with pytest.raises(UserError, match=r"base\.safetensors, the weights that this run's adapters belong to"):
        prepare_small(part, tmp_path / "cache", **flags_of(lora_run))
    with pytest.raises(UserError, match="is not what was written"):
        load_run_params(part)
    (part / BASE).unlink()
    with pytest.raises(UserError, match="is missing"):
        open_model(str(part)).encode(TEXTS)


def test_a_branch_has_the_base_too(lora_run: Path, tmp_path: Path) -> None:
    run = prepare_small(tmp_path / "other", tmp_path / "cache", **flags_of(lora_run))
    (tmp_path / "branch").mkdir()
    start_branch(Branch(lora_run, 1), tmp_path / "branch", run.config)
    jax.tree.map(
        np.testing.assert_array_equal, load_run_params(lora_run, 1)[0], load_run_params(tmp_path / "branch", 1)[0]
    )


@pytest.mark.medium
def test_the_export_is_the_merged_model(lora_run: Path, small_model: Path, tmp_path: Path) -> None:
    export_run(lora_run, tmp_path / "out")
    ours = open_model(str(lora_run))
    exported = open_model(str(tmp_path / "out"))
    np.testing.assert_allclose(exported.encode(TEXTS), ours.encode(TEXTS), rtol=0, atol=1e-6)
    assert exported.fingerprint == ours.fingerprint
    found = ours.before_training()
    assert found is not None
    before = found[0](TEXTS)
    assert before.shape == (2, 32)


@pytest.mark.medium
def test_another_run_starts_from_the_merged_model_with_new_adapters(lora_run: Path, tmp_path: Path) -> None:
    export_run(lora_run, lora_run.parent / "exported")
    flags = flags_of(lora_run) | {"model__name": str(lora_run.parent / "exported"), "model__init": f"run:{lora_run}@2"}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    params = run.merge(run.initial_state().params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), load_run_params(lora_run, 2)[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__init": "random"}, "would freeze random weights"),
        ({"optimizer__name": "muon"}, "trains none of them"),
        ({"model__lora": 0, "model__lora_alpha": 8.0}, r"lora_alpha = 8.0 has no effect"),
        ({"model__lora_targets": "ffn"}, "must be one of all, attention"),
        ({"model__lora": -1}, "at least 0"),
        ({"model__lora": 1000}, "model.lora = 1000 is above the rank"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str, small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        prepare_small(tmp_path / "run", tmp_path / "cache", **LORA | {"model__name": str(small_model)} | changes)


def test_factors_are_decayed_as_kernels() -> None:
    path = {"layers": {"ffn": {"up": {DOWN: np.ones((1, 2, 1, 1)), "bias": np.ones((1, 2))}}}}
    for rule in ("kernels", "matrices"):
        assert DECAYED[rule](path) == {"layers": {"ffn": {"up": {DOWN: True, "bias": False}}}}

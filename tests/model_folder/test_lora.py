"""LoRA adapters as PEFT saves them: vectors of the model with merged weights, or a refusal by file and key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simcse_jax.embedding_model import open_model
from simcse_jax.model_folder.export import convert
from simcse_jax.system.errors import UserError
from tests.small_models import FROM_FOLDER, prepare_small

TEXTS = ["a red dog sleeps", "two children play in the park", ""]
QUERY, OUT = "encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"
RANKS = {QUERY: 2, OUT: 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "base"))


@pytest.fixture
def adapter(base: Path) -> Path:
    """Return a folder as PEFT and sentence-transformers save it: the adapter, the tokenizer and the modules."""
    folder, rng = base.parent / "adapter", np.random.default_rng(0)
    keep = shutil.ignore_patterns("config.json", "model.safetensors", "simcse_jax.json", "README.md")
    shutil.copytree(base, folder, ignore=keep)
    shutil.copytree(base / "1_Pooling", folder / "1_Pooling", dirs_exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 8,
        "rank_pattern": {"output.dense": 3},
        "alpha_pattern": {r"layer\.\d+\.output\.dense": 4.5},
        "use_rslora": False,
        "bias": "none",
        "init_lora_weights": True,
        "target_modules": ["query", "output.dense"],
        "modules_to_save": None,
        "loftq_config": {},
        "megatron_core": "megatron.core",
        "lora_dropout": 0.1,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    weights, tensors = load_file(base / "model.safetensors"), {}
    for layer, rank in RANKS.items():
        outputs, inputs = weights[f"{layer}.weight"].shape
        for which, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            tensors[f"base_model.model.{layer}.lora_{which}.weight"] = rng.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def edit(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def merged_by_hand(base: Path, adapter: Path, scales: dict[str, float]) -> Path:
    folder = base.parent / "by_hand"
    shutil.copytree(base, folder)
    weights, factors = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for layer, scale in scales.items():
        down, up = (factors[f"base_model.model.{layer}.lora_{which}.weight"] for which in "AB")
        weights[f"{layer}.weight"] += np.float32(scale) * (up @ down)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("use_rslora", [False, True])
def test_vectors_are_those_of_merged_weights(base: Path, adapter: Path, tmp_path: Path, use_rslora: bool) -> None:
    edit(adapter / "adapter_config.json", use_rslora=use_rslora)
    scales = {QUERY: 8 / 2**0.5, OUT: 4.5 / 3**0.5} if use_rslora else {QUERY: 8 / 2, OUT: 4.5 / 3}
    expected = open_model(str(merged_by_hand(base, adapter, scales))).encode(TEXTS)
    assert np.abs(expected - open_model(str(base)).encode(TEXTS)).max() > 0.01
    model = open_model(str(adapter))
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-6)
    convert(str(adapter), tmp_path / "out")
    shutil.rmtree(base)  # the export needs neither
    exported = open_model(str(tmp_path / "out"))
    np.testing.assert_allclose(exported.encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert exported.fingerprint == model.fingerprint


def test_a_base_model_with_the_prefix_of_its_class(base: Path, adapter: Path) -> None:
    expected = open_model(str(adapter)).encode(TEXTS)
    weights = load_file(base / "model.safetensors")
    renamed = {f"bert.{name}": array for name, array in weights.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(open_model(str(adapter)).encode(TEXTS), expected)


def test_merged_again_where_a_file_has_changed(base: Path, adapter: Path, cache: Path) -> None:
    first = open_model(str(adapter)).encode(TEXTS)
    np.testing.assert_array_equal(open_model(str(adapter)).encode(TEXTS), first)
    assert len([*(cache / "merged").iterdir()]) == 1
    edit(adapter / "adapter_config.json", lora_alpha=16)
    assert np.abs(open_model(str(adapter)).encode(TEXTS) - first).max() > 1e-3


def test_training_starts_from_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path / "run", tmp_path / "cache", **FROM_FOLDER | {"model__name": str(adapter)})
    params = jax.device_get(prepared.initial_state().params)
    word = params["layers"]["attention"]["qkv"]["kernel"]
    plain = prepare_small(tmp_path / "plain", tmp_path / "cache", **FROM_FOLDER | {"model__name": str(base)})
    other = jax.device_get(plain.initial_state().params)["layers"]["attention"]["qkv"]["kernel"]
    differs = np.abs(word - other).reshape(2, 32, 3, -1).max((1, 3)) > 0
    assert differs.tolist() == [[True, False, False], [False, False, False]]


def in_weights(**arrays: np.ndarray | None) -> Callable[[Path], None]:
    """Return a change of the adapter's weights, "__" for "."; None removes one."""

    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        named = {name.replace("__", "."): array for name, array in arrays.items()}
        tensors = {name: array for name, array in (load_file(path) | named).items() if array is not None}
        save_file(tensors, path)

    return change


def keys(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "adapter_config.json", **settings)


LAYER = QUERY.replace(".", "__")
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (keys(peft_type="IA3"), "peft_type = 'IA3'"),
    "no kind": (keys(peft_type=None), "peft_type = None"),
    "dora": (keys(use_dora=True), "use_dora = True"),
    "biases": (keys(bias="lora_only"), "bias = 'lora_only'"),
    "whole layers": (keys(modules_to_save=["pooler"]), "modules_to_save"),
    "a transposed layer": (keys(fan_in_fan_out=True), "fan_in_fan_out"),
    "a base that changes": (keys(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "another revision": (keys(revision="v2"), "revision = 'v2'"),
    "an unknown key": (keys(new_kind_of_rank=7), "new_kind_of_rank = 7"),
    "another rank": (keys(r=4), "r = 4"),
    "no base": (keys(base_model_name_or_path=None), "base_model_name_or_path"),
    "a base that is not there": (keys(base_model_name_or_path="./nowhere"), "nowhere"),
    "itself": (lambda folder: keys(base_model_name_or_path=str(folder))(folder), "leads back"),
    "a broken pattern": (keys(rank_pattern={"(": 3}), r"adapter_config\.json: rank_pattern = .*'\('"),
    "a list for patterns": (keys(alpha_pattern=["query"]), r"adapter_config\.json: alpha_pattern = \['query'\]"),
    "an embedding": (in_weights(base_model__model__x__lora_embedding_A=np.zeros((2, 3), np.float32)), "lora_embedding"),
    "half a pair": (in_weights(**{f"base_model__model__{LAYER}__lora_B__weight": None}), "encoder.layer.0"),
    "an unknown layer": (
        in_weights(
            base_model__model__x__lora_A__weight=np.zeros((2, 3), np.float32),
            base_model__model__x__lora_B__weight=np.zeros((3, 2), np.float32),
        ),
        "no such layer",
    ),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(adapter: Path, change: Callable[[Path], None], said: str) -> None:
    change(adapter)
    with pytest.raises(UserError, match=said):
        open_model(str(adapter))
    assert not (adapter.parent / "cache").exists() or not [*(adapter.parent / "cache").glob("merged/*")]


def test_adapters_that_name_each_other(adapter: Path) -> None:
    other = shutil.copytree(adapter, adapter.with_name("other"))
    edit(other / "adapter_config.json", base_model_name_or_path=str(adapter))
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(UserError, match=r"adapter/adapter_config\.json and .*other/adapter_config\.json: .*leads back"):
        open_model(str(adapter))


def test_an_adapter_of_an_adapted_model(base: Path, adapter: Path) -> None:
    """The second adapts what the first makes, so both are merged."""
    second = shutil.copytree(adapter, adapter.with_name("second"))
    edit(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    expected = open_model(str(merged_by_hand(base, adapter, {QUERY: 2 * 8 / 2, OUT: 2 * 4.5 / 3}))).encode(TEXTS)
    np.testing.assert_allclose(open_model(str(second)).encode(TEXTS), expected, rtol=0, atol=1e-6)

"""Adapters of a run as a PEFT folder: it gives the run's vectors, here and with peft, or the export refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simcse_jax.config.schema import defaults
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.adapted_params import join_params, merge_params, split_params
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.lora import UP, make_lora
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.export import Adapters, export_model
from simcse_jax.model_folder.peft_folder import base_of
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.run_folder import export_run
from simcse_jax.system.errors import UserError
from tests.test_export import train_tokenizer
from tests.torch_models import FAMILIES, random_model

TEXTS = ["a man plays the guitar", "two dogs", "A red CAR"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.medium
def test_a_run_as_a_peft_folder(lora_run: Path, small_model: Path, cache: Path, tmp_path: Path) -> None:
    """With the head on [CLS], which the base has another of."""
    export_run(lora_run, tmp_path / "peft", adapter=True)
    assert not [*(cache / "merged").iterdir()]  # what the check merged is gone
    folder = tmp_path / "peft"
    assert not (folder / "model.safetensors").exists()
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2, 16.0)
    assert settings["base_model_name_or_path"] == str(small_model.resolve())
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * 2 * 6  # layers, factors, matrices
    card = (folder / "README.md").read_text()
    assert "pip install peft" in card
    assert f"over `{small_model.resolve()}`" in card
    assert "change `base_model_name_or_path`" in card  # elsewhere
    ours = open_model(str(lora_run)).encode(TEXTS)
    assert np.abs(open_model(str(small_model), pooler="cls").encode(TEXTS) - ours).max() > 1e-3
    np.testing.assert_allclose(open_model(str(folder)).encode(TEXTS), ours, rtol=0, atol=1e-6)


@pytest.mark.medium
def test_an_export_with_other_vectors_is_refused_and_leaves_nothing(
    lora_run: Path, small_model: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    base = shutil.copytree(small_model, tmp_path / "base")
    info = json.loads((run / "config.json").read_text())
    info["recipe"]["model.name"] = str(base)
    (run / "config.json").write_text(json.dumps(info))
    weights = load_file(base / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += np.linspace(0, 0.3, 32, dtype=np.float32)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"differ by 0\.\d+ .*0\.0001 is allowed(.|\n)*leave --adapter out"):
        export_run(run, tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.lora": 0}, "trained all parameters"),
        ({"model.init": "run:other@3"}, "adapt the parameters of another run"),
        ({"model.keep_layers": "0"}, "some layers"),
    ],
)
def test_runs_whose_adapters_no_peft_folder_can_hold(changes: dict[str, Any], says: str, small_model: Path) -> None:
    recipe = defaults() | {"model.lora": 2, "model.name": str(small_model)}
    assert base_of(recipe) == str(small_model.resolve())
    with pytest.raises(UserError, match=rf"{says}(.|\n)*(--adapter out|RUN/model)"):
        base_of(recipe | changes)


def test_the_base_may_be_no_adapter_and_no_inner_folder_of_a_repository(small_model: Path, tmp_path: Path) -> None:
    inner = tmp_path / "old" / "0_Transformer"
    shutil.copytree(small_model, inner, ignore=shutil.ignore_patterns("modules.json", "1_Pooling"))
    listed = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "old" / "modules.json").write_text(json.dumps(listed))
    recipe = defaults() | {"model.lora": 2, "model.name": str(tmp_path / "old")}
    assert base_of(recipe) == str(inner)
    (tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(small_model)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is an adapter itself"):
        base_of(recipe | {"model.name": str(tmp_path / "adapter")})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft, with a newer transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_it_and_what_peft_saves_opens_here(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from sentence_transformers import SentenceTransformer

    source, tokenizer = tmp_path / "source", tmp_path / "tokenizer"
    train_tokenizer(family, source)
    load_tokenizer(source).save_pretrained(tokenizer)
    model = random_model(family, vocab_size=500, max_position_embeddings=66)
    model.save_pretrained(source)
    architecture = read_architecture(source)
    lora = make_lora(architecture, 3, 5.0, "all")

    def moved(path: Any, x: Any) -> Any:
        return 0.1 * np.random.default_rng(x.size).normal(size=x.shape).astype("f") if path[-1].key == UP else x

    drawn, _ = split_params(jax.device_get(init_params(Encoder(architecture, lora=lora), 0)))
    adapted = jax.tree_util.tree_map_with_path(moved, join_params(drawn, load_params(source, architecture, "none")))
    merged = merge_params(adapted, lora, np)
    adapters = Adapters(adapted, lora, str(source))
    export_model(tmp_path / "peft", merged, architecture, tokenizer, "avg", card={}, adapters=adapters)
    export_model(tmp_path / "whole", merged, architecture, tokenizer, "avg", card={})
    ours = open_model(str(tmp_path / "whole")).encode(TEXTS)
    assert np.abs(open_model(str(source), pooler="avg").encode(TEXTS) - ours).max() > 0.01
    theirs = SentenceTransformer(str(tmp_path / "peft"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    saved = shutil.copytree(tmp_path / "peft", tmp_path / "saved")
    for file in saved.glob("adapter_*"):
        file.unlink()
    peft.PeftModel.from_pretrained(model, tmp_path / "peft").save_pretrained(saved)
    np.testing.assert_allclose(open_model(str(saved)).encode(TEXTS), ours, rtol=0, atol=1e-4)

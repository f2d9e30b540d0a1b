"""A run that starts from some of a model's layers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.families.table import FAMILIES, read_architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.export import convert, export_model
from simcse_jax.model_folder.kept_layers import read_layers
from simcse_jax.model_folder.pretrained import load_params
from simcse_jax.model_folder.run_folder import export_run
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from tests.small_models import FROM_FOLDER, prepare_small, states_of, train_small

FIVE = Architecture("bert", 400, 32, 5, 4, 48, max_position_embeddings=64, initializer_range=0.3)
FLAGS: dict[str, Any] = FROM_FOLDER | {"eval__data": "", "data__packed": False}


def write(folder: Path, tokenizer: Path, architecture: Architecture = FIVE) -> Path:
    params = jax.jit(lambda: init_params(Encoder(architecture), 0))()
    export_model(folder, params, architecture, tokenizer, "avg", card={})
    return folder


def test_the_run_has_these_layers_and_so_has_its_export(tmp_path: Path, small_model: Path) -> None:
    five = write(tmp_path / "five", small_model)
    flags: Any = FLAGS | {"model__name": str(five), "model__keep_layers": "0,2,4"}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    held, whole = run.initial_state().params, load_params(five, FIVE, "none")
    chosen = whole | {"layers": jax.tree.map(lambda x: x[[0, 2, 4]], whole["layers"])}
    jax.tree.map(np.testing.assert_array_equal, held, chosen)
    train_small(tmp_path / "run", tmp_path / "cache", **flags)
    info = json.loads((tmp_path / "run" / "config.json").read_text())
    assert info["encoder"]["num_hidden_layers"] == 3
    export_run(tmp_path / "run", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 3
    texts = ["a man", "two dogs run"]
    trained = open_model(str(tmp_path / "run"))
    np.testing.assert_allclose(open_model(str(tmp_path / "model")).encode(texts), trained.encode(texts), atol=1e-5)
    before = trained.before_training()
    assert before is not None
    export_model(tmp_path / "three", chosen, FIVE.with_layers([0, 2, 4]), small_model, "avg", card={})
    np.testing.assert_allclose(before[0](texts), open_model(str(tmp_path / "three")).encode(texts), atol=1e-5)
    with pytest.raises(UserError, match=r"model\.keep_layers"):
        train_small(tmp_path / "run", tmp_path / "cache", **{**flags, "model__keep_layers": "0,1,4"})


@pytest.mark.medium
def test_a_run_of_two_layers_can_be_cut_to_one(tmp_path: Path, small_model: Path) -> None:
    flags: Any = FLAGS | {"model__name": str(small_model), "model__pooler": "avg", "model__train_pooler": "avg"}
    run = tmp_path / "run"
    train_small(run, tmp_path / "cache", **flags, objective__layers="2,1", train__steps=2, train__log_every_steps=1)
    first = read_metrics(run)[0]
    assert first["loss"] == pytest.approx((first["loss_layer_1"] + first["loss_layer_2"]) / 2)
    assert first["loss_layer_1"] != first["loss_layer_2"]
    _, (plain,) = states_of(prepare_small(tmp_path / "plain", tmp_path / "cache", **flags), 1)
    assert first["loss_layer_2"] == pytest.approx(plain["loss"], rel=1e-5)
    export_run(run, tmp_path / "two")
    convert(str(tmp_path / "two"), tmp_path / "one", None, (0,))
    assert json.loads((tmp_path / "one" / "config.json").read_text())["num_hidden_layers"] == 1
    assert "| layers | 0 of the model that it is made of" in (tmp_path / "one" / "README.md").read_text()
    assert "| layers |" not in (tmp_path / "two" / "README.md").read_text()
    texts = ["a man", "two dogs run"]
    of_first = open_model(str(run), "avg@0,1,0").encode(texts)
    np.testing.assert_allclose(open_model(str(tmp_path / "one")).encode(texts), of_first, atol=1e-5)
    with pytest.raises(UserError, match=r"--keep_layers = '0,2'"):
        convert(str(tmp_path / "two"), tmp_path / "three", None, (0, 2))
    with pytest.raises(UserError, match=r"avg@0,1,0.*--pooler=avg"):
        convert(str(tmp_path / "two"), tmp_path / "three", "avg@0,1,0", (0,))
    for wrong in (["1", "0"], ["-1"], ["x"], ["0", "0"]):
        with pytest.raises(UserError, match=f"--keep_layers={','.join(wrong)}"):
            read_layers(wrong)


def test_a_loss_of_layers_needs_the_last(tmp_path: Path, small_model: Path) -> None:
    flags: Any = FLAGS | {"model__name": str(small_model), "model__pooler": "avg", "model__train_pooler": "avg"}
    with pytest.raises(UserError, match=r"objective\.layers = '1'(.|\n)*objective\.layers=1,2"):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags, objective__layers="1")


def test_layers_that_there_are_not(tmp_path: Path, small_model: Path) -> None:
    flags = FLAGS | {"model__name": str(small_model), "model__keep_layers": "0,2"}
    with pytest.raises(UserError, match=r"the layers 0 to 1(.|\n)*keep_layers=0"):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags)


MODERN = dataclasses.replace(
    FIVE, family="modernbert", num_hidden_layers=6, gated=True, pre_norm=True, rope_theta=1e3, type_vocab_size=0,
    without_bias=(*FIVE.layer_products, "norm", "mlm/dense"), local_layers=(2, 3, 5, 6), local_window=3,
    local_rope_theta=1e2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "kept", "words"),
    [
        (
            dataclasses.replace(FIVE, family="albert", embedding_size=16, shared_layers=True),
            "0,1",
            "the same parameters",
        ),
        (MODERN, "1,2", "must stay the first"),
        (MODERN, "0,3,4", "every n-th"),
    ],
)
def test_layers_that_cannot_be_without_others(
    tmp_path: Path, small_model: Path, architecture: Architecture, kept: str, words: str
) -> None:
    folder = write(tmp_path / "model", small_model, architecture)
    with pytest.raises(UserError, match=words):
        prepare_small(tmp_path / "run", tmp_path / "cache", **FLAGS, model__name=str(folder), model__keep_layers=kept)


def test_local_layers_keep_their_kind(tmp_path: Path, small_model: Path) -> None:
    folder = write(tmp_path / "model", small_model, MODERN)
    flags = FLAGS | {"model__name": str(folder), "model__keep_layers": "0,1,3,5"}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    assert run.encoder.architecture.local_layers == (2, 4)
    assert read_architecture(folder).local_layers == MODERN.local_layers
    assert FAMILIES["modernbert"].write(run.encoder.architecture)["global_attn_every_n_layers"] == 2

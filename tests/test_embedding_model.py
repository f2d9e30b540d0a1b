"""A model opened to encode: whatever it is kept as, the vectors, the pooler and the fingerprint are its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from simcse_jax import SimCSE
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.judging import protocol
from simcse_jax.model_folder import origin
from simcse_jax.model_folder.export import convert
from simcse_jax.model_folder.run_folder import complete_steps, export_run, load_run_params, parse_start
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from tests.conftest import HubServer
from tests.small_models import FROM_FOLDER, demo_files, export_small, train_small

TEXTS = ["a red dog sleeps", "two children play in the park", "", "a red dog sleeps", "music " * 40]


@pytest.fixture
def folder(small_model: Path) -> Path:
    return small_model


@pytest.fixture(scope="session")
def run(make_once: Callable[..., Path]) -> Path:
    """Return the folder of a run whose pooler uses the head, and whose best step is not the start."""
    changes: dict[str, Any] = {"model__pooler": "cls", "model__train_pooler": "cls", "optimizer__learning_rate": 1e-3}
    return make_once("cls-run", lambda place: train_small(place / "run", place / "cache", **changes)) / "run"


def test_folder_encodes_as_sentence_transformers_does(folder: Path) -> None:
    model = open_model(str(folder))
    vectors = model.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), model.width)
    assert vectors.dtype == np.float32
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert model.before_training() is None
    assert model.recipe == ""


@pytest.mark.medium
def test_a_step_that_a_run_has_kept_is_a_model(run: Path, small_model: Path, tmp_path: Path) -> None:
    best = load_run_params(run)[1]["step"]
    step = next(step for step in complete_steps(run / "checkpoints" / "last") if step != best)
    state = open_model(f"{run}@{step}")
    jax.tree.map(np.testing.assert_array_equal, state._params["layers"], load_run_params(run, step)[0]["layers"])
    assert state.kind == f"run folder, step {step}"
    assert state.fingerprint != open_model(str(run)).fingerprint == open_model(f"{run}@{best}").fingerprint
    with pytest.raises(UserError, match=rf"kept nothing of step 99\. .*of states: .*{step}"):
        open_model(f"{run}@99").encode(["a text"])
    shutil.copytree(run, tmp_path / "run@3")
    assert parse_start(f"run:{tmp_path}/run@3") == (tmp_path / "run@3", None)
    assert parse_start(f"run:{tmp_path}/run@3@{step}") == (tmp_path / "run@3", step)
    shutil.copytree(small_model, tmp_path / "model@3")
    assert open_model(str(tmp_path / "model@3")).fingerprint == open_model(str(small_model)).fingerprint


def test_an_address_may_end_like_a_step(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"gs://b/model@3": {"config.json": None}}
    monkeypatch.setattr(origin, "Store", lambda address: SimpleNamespace(find=lambda: found.get(address, {})))
    assert origin.run_and_step("gs://b/model@3") == ("gs://b/model@3", None)
    assert origin.run_and_step("gs://b/run@3") == ("gs://b/run", 3)
    asked = []
    monkeypatch.setattr(origin, "local_path", lambda name, states: asked.append((name, states)) or run)
    for name in ("gs://b/run@3", "gs://b/run"):
        origin.read_origin(name, None)
    assert asked == [("gs://b/run", True), ("gs://b/run", False)], "states of training are copied for a step only"


@pytest.mark.medium
def test_run_and_its_export_are_one_model(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    there, here = open_model(str(run)), open_model(str(tmp_path / "export"))
    assert there.pooler == here.pooler == "cls"
    assert there.fingerprint == here.fingerprint
    np.testing.assert_array_equal(there.encode(TEXTS), here.encode(TEXTS))


@pytest.mark.medium
def test_widths_of_a_matryoshka_loss_are_kept(folder: Path, run: Path, tmp_path: Path) -> None:
    width = open_model(str(run)).width
    assert open_model(str(run)).widths == (width,)
    shutil.copytree(run, tmp_path / "run")
    info = json.loads((run / "config.json").read_text())
    info["recipe"]["objective.widths"] = f"{width},8"
    (tmp_path / "run" / "config.json").write_text(json.dumps(info))
    export_run(tmp_path / "run", tmp_path / "export")
    convert(str(tmp_path / "export"), tmp_path / "again")
    for name in ("run", "export", "again"):
        assert open_model(str(tmp_path / name)).widths == (8, width)


def test_a_wrong_width_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    for widths in ([0, 8], ["8"], 8):
        (tmp_path / "wrong" / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": widths}))
        with pytest.raises(UserError, match="matryoshka_dimensions"):
            open_model(str(tmp_path / "wrong"))


def test_fingerprint_tells_weights_tokenizers_and_used_heads_apart(folder: Path, tmp_path: Path) -> None:
    prints = {"folder": open_model(str(folder)).fingerprint}
    assert open_model(str(folder)).fingerprint == prints["folder"]
    assert open_model(str(folder), pooler="cls_before_pooler").fingerprint == prints["folder"]
    prints["with the head"] = open_model(str(folder), pooler="cls").fingerprint
    prints["other weights"] = open_model(str(export_small(tmp_path, seed=1))).fingerprint
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    prints["other tokenizer"] = open_model(str(other)).fingerprint
    assert len(set(prints.values())) == len(prints)


def test_normalize_module_is_honoured(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "unit"
    shutil.copytree(folder, other)
    modules = json.loads((other / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (other / "modules.json").write_text(json.dumps(modules))
    (other / "2_Normalize").mkdir()
    model = open_model(str(other))
    plain, unit = open_model(str(folder)).encode(TEXTS), model.encode(TEXTS)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(model.encode(TEXTS, normalize=False), plain)
    np.testing.assert_array_equal(open_model(str(folder)).encode(TEXTS, normalize=True), unit)


def test_protocol_says_when_another_pooler_was_asked_for(folder: Path) -> None:
    own, asked = map(protocol, (open_model(str(folder)), open_model(str(folder), pooler="cls", max_length=32)))
    assert (own["pooler"], own["pooler from"]) == ("avg", "the model")
    assert (asked["pooler"], asked["pooler from"]) == ("cls", "asked for; the model's own: avg")
    assert (own["truncation"], asked["truncation"]) == ("64 tokens", "32 tokens")
    assert own["precision"] == "float32"


def test_bfloat16_is_another_precision_of_the_same_model(folder: Path) -> None:
    exact, coarse = open_model(str(folder)), open_model(str(folder), dtype="bfloat16")
    assert coarse.dtype == "bfloat16"
    assert coarse.fingerprint == exact.fingerprint
    a, b = (model.encode(TEXTS) for model in (exact, coarse))
    assert b.dtype == np.float32
    assert 1e-4 < np.abs(a - b).max() / np.abs(a).max() < 0.1


def test_products_of_bfloat16_are_said_and_stay_near(folder: Path) -> None:
    exact, coarse = open_model(str(folder)), open_model(str(folder), products="bfloat16")
    assert coarse.fingerprint == exact.fingerprint
    assert protocol(coarse)["precision"] == "float32, products of bfloat16"
    for model in (coarse, coarse.cut_at(32), SimCSE(folder, products="bfloat16").encoder):
        assert model.products == "bfloat16"
    a, b = (model.encode(TEXTS) for model in (exact, coarse))
    assert 1e-5 < np.abs(a - b).max() / np.abs(a).max() < 0.02


def test_before_training_is_what_the_run_began_with(run: Path, folder: Path, tmp_path: Path) -> None:
    found = open_model(str(run)).before_training()
    assert found is not None
    before, weights = found
    assert weights == "random, seed 0"
    pairs, first = load_graded_pairs(str(demo_files() / "dev.tsv")), read_metrics(run)[0]
    assert first["step"] == 0
    assert evaluate_pairs(before, pairs)["spearman"] == pytest.approx(first["dev/spearman"], abs=0.02)
    assert np.abs(before(TEXTS) - open_model(str(run)).encode(TEXTS)).max() > 1e-4

    changes = FROM_FOLDER | {"model__name": str(folder), "train__steps": 1}
    pretrained = train_small(tmp_path / "pretrained", tmp_path / "cache", **changes)
    found = open_model(str(pretrained)).before_training()
    assert found is not None
    before, weights = found
    assert weights == f"pretrained, {folder}"
    np.testing.assert_allclose(before(TEXTS), open_model(str(folder)).encode(TEXTS), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="cls_before_pooler"):
        open_model(str(pretrained), pooler="cls")


def test_runs_that_differ_in_the_seed_alone_share_a_recipe(run: Path, tmp_path: Path) -> None:
    for name, key, value in (("seed", "train.seed", 1), ("rate", "optimizer.learning_rate", 2e-2)):
        shutil.copytree(run, tmp_path / name)
        info = json.loads((run / "config.json").read_text())
        info["recipe"][key] = value
        (tmp_path / name / "config.json").write_text(json.dumps(info))
    recipes = [open_model(str(folder)).recipe for folder in (run, tmp_path / "seed", tmp_path / "rate")]
    assert recipes[0] == recipes[1] != recipes[2]
    assert open_model(str(run), pooler="avg").recipe != recipes[0]
    assert open_model(str(run), max_length=16).recipe != recipes[0]


def test_hub_model(hub_server: HubServer, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            hub_server.add("someone/small", str(path.relative_to(folder)), path.read_bytes())
    model = open_model("someone/small")
    assert model.kind == "Hub model"
    assert model.fingerprint == open_model(str(folder)).fingerprint


def test_what_cannot_be_opened_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere/at/all"):
        open_model("nowhere/at/all")
    with pytest.raises(UserError, match=r"mean.*cls"):
        open_model(str(folder), pooler="mean")
    with pytest.raises(UserError, match="float16"):
        open_model(str(folder), dtype="float16")
    with pytest.raises(UserError, match=r"2.*3 to 64"):
        open_model(str(folder), max_length=2)
    assert open_model(str(folder), max_length=65).max_length == 64
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    (silent / "simcse_jax.json").unlink()
    (silent / "modules.json").unlink()
    with pytest.raises(UserError, match=r"--pooler=(.|\n)*pooler="):
        open_model(str(silent))
    assert protocol(open_model(str(silent), pooler="avg"))["pooler from"].endswith("none that we have")
    (tmp_path / "odd" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json"):
        open_model(str(tmp_path / "odd"))

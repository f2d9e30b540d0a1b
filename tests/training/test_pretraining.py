"""Masked language modelling alone, and what starts from it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data import demo
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.encoder.mlm import mlm_scores
from simcse_jax.model_folder.run_folder import export_run, load_run_params
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.training.dev import load_held_out
from tests.small_models import FROM_FOLDER, VOCABULARY, export_small, prepare_small, states_of, train_small


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of masked language modelling, and export its model."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "held_out.txt").write_text("\n".join(demo.sentences(seed=9, count=64)) + "\n")
    run = train_small(
        folder / "run",
        folder / "cache",
        objective__loss="none",
        mlm__weight=1.0,
        mlm__rate=0.3,
        mlm__validation=str(folder / "held_out.txt"),
        eval__data="",
        eval__every_steps=20,
        train__steps=40,
        data__packed=False,
        optimizer__learning_rate=3e-2,
    )
    export_run(run, folder / "model")
    return folder


def test_perplexity_falls_and_the_lowest_is_the_best(pretrained: Path) -> None:
    lines = read_metrics(pretrained / "run")
    found = {line["step"]: line["dev/perplexity"] for line in lines if "dev/perplexity" in line}
    assert found.keys() == {0, 20, 40}
    assert found[0] == pytest.approx(VOCABULARY, rel=0.3)
    assert found[40] < found[20] < 0.6 * found[0]
    _, info = load_run_params(pretrained / "run")
    assert info["step"] == min(found, key=lambda step: found[step])
    assert info["scores"]["perplexity"] == pytest.approx(min(found.values()), rel=1e-6)
    of_steps = [line for line in lines if "mlm_loss" in line]
    assert of_steps[-1]["loss"] == of_steps[-1]["mlm_loss"] < math.log(VOCABULARY)
    assert "positive_cosine" not in of_steps[-1]


def test_simcse_starts_from_it_with_its_head(pretrained: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {**FROM_FOLDER, "model__name": str(pretrained / "model"), "data__packed": False}
    masked: dict[str, Any] = {"mlm__weight": 0.1, "mlm__rate": 0.3}
    (both,), (plain,) = (
        states_of(prepare_small(tmp_path / name, tmp_path / "cache", eval__data="", **flags, **more), 1)[1]
        for name, more in (("both", masked), ("plain", {}))
    )
    alone = [line for line in read_metrics(pretrained / "run") if "mlm_loss" in line]
    assert both["mlm_loss"] < 0.9 * alone[0]["mlm_loss"]  # a fresh head would begin where that run did
    assert "positive_cosine" in both
    # The same sentences through the same dropout: the auxiliary loss comes on top, and changes no contrastive input.
    assert plain["loss"] == pytest.approx(both["loss"] - 0.1 * both["mlm_loss"], rel=1e-5)


def test_the_card_says_what_it_was_trained_by(pretrained: Path) -> None:
    card = (pretrained / "model" / "README.md").read_text(encoding="utf-8")
    assert "--config.model.name=model" in card
    assert "- fill-mask\n" in card
    assert "- simcse\n" not in card


def test_a_run_of_before_masked_language_modelling_goes_on_and_exports(tmp_path: Path) -> None:
    flags: Any = {"train__steps": 4, "checkpoint__every_steps": 2, "data__packed": False}
    run = train_small(tmp_path / "run", tmp_path / "cache", **flags)
    metadata = json.loads((run / "config.json").read_text())
    for key in ("has_mlm_head", "validation"):
        del metadata[key]
    metadata["recipe"] = {
        key: metadata["recipe"][key] for key in metadata["recipe"] if key[:4] != "mlm." and key[-5:] != ".loss"
    }
    (run / "config.json").write_text(json.dumps(metadata))
    train_small(run, tmp_path / "cache", **flags)
    export_run(run, tmp_path / "model")
    with pytest.raises(UserError, match=r"mlm\.weight: 0\.0"):
        train_small(run, tmp_path / "cache", mlm__weight=0.1, **flags)


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = export_small(tmp_path)
    with pytest.raises(UserError, match="no head for masked language"):
        train_small(tmp_path / "run", tmp_path / "cache", mlm__weight=0.1, model__name=str(model), **FROM_FOLDER)


def test_perplexity_is_that_of_the_masked_tokens_without_dropout(tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("\n".join(demo.sentences(seed=9, count=16)) + "\n")
    flags: dict[str, Any] = {"mlm__weight": 1.0, "mlm__rate": 0.3, "mlm__validation": str(tmp_path / "held_out.txt")}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", eval__data="", data__packed=False, **flags)
    params = run.initial_state().params
    inputs = load_held_out(run.config, load_tokenizer(tmp_path / "run" / "tokenizer")).batches(0).inputs
    assert inputs.masked is not None
    scores = np.asarray(mlm_scores(run.encoder, params, inputs.groups, inputs.masked), np.float64)  # no key, no dropout
    scores, labels = scores.reshape(-1, scores.shape[-1]), inputs.masked.labels.reshape(-1)
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    losses = np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(labels)), labels]
    assert run.dev
    found = run.dev.evaluate(params)
    assert found["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    assert found["mlm_accuracy"] == pytest.approx(100 * (scores.argmax(-1) == labels).mean())


def test_held_out_text_of_less_than_a_batch(tmp_path: Path) -> None:
    held_out = tmp_path / "few.txt"
    flags: Any = {"mlm__weight": 1.0, "mlm__validation": str(held_out), "eval__data": "", "train__groups_at_once": 1}
    held_out.write_text("\n".join(demo.sentences(seed=9, count=5)) + "\n")
    run = prepare_small(tmp_path / "five", tmp_path / "cache", **flags)
    assert run.batches.layout.batch_size == 16
    assert run.dev
    scores = run.dev.evaluate(run.initial_state().params)
    assert scores["perplexity"] == pytest.approx(VOCABULARY, rel=0.5)
    # Four of the five, whatever the devices.
    again = prepare_small(tmp_path / "four", tmp_path / "cache", **flags, mesh__data=4)
    assert again.dev
    assert again.dev.evaluate(again.initial_state().params) == pytest.approx(scores, rel=1e-5)
    with pytest.raises(UserError, match=r"mlm\.validation(.|\n)* 5 examples"):
        prepare_small(tmp_path / "none", tmp_path / "cache", **flags, mesh__data=8)

"""A whole run on a small corpus: baseline, best, resume, refusals, and what a user sees when it goes wrong."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
import torch
import transformers

from configs import base
from simcse_jax.config.resolve import resolve
from simcse_jax.config.schema import Config, SourceConfig
from simcse_jax.embedding_model import open_model
from simcse_jax.encoder import products
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.model_folder.run_folder import export_run, load_run_params
from simcse_jax.runs.metrics import MetricsWriter, read_metrics
from simcse_jax.runs.trackers import open_trackers
from simcse_jax.system.errors import UserError
from simcse_jax.training.checkpoint import Checkpoints
from simcse_jax.training.dev import SPEARMAN, Dev
from simcse_jax.training.display import describe
from simcse_jax.training.loop import Outcome, falling, train
from simcse_jax.training.mesh import make_mesh
from simcse_jax.training.optimizer import make_optimizer
from simcse_jax.training.program import build_objective
from simcse_jax.training.run import Run, prepare
from tests.small_models import FROM_FOLDER, SMALL_ENCODER

WORDS = "red green blue small large dog cat bird sees likes finds house tree road"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sentences.txt, triplets.csv and pairs.tsv into a folder."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS.split(), rng.integers(3, 9))) for _ in range(200)]
    (folder / "sentences.txt").write_text("\n".join(lines) + "\n")
    rows = [",".join(lines[i : i + 3]) for i in range(150)]
    (folder / "triplets.csv").write_text("sent0,sent1,hard_neg\n" + "\n".join(rows) + "\n")
    graded = [f"{len(set(a.split()) & set(b.split()))}\t{a}\t{b}" for a, b in zip(lines, lines[7:47], strict=False)]
    (folder / "pairs.tsv").write_text("\n".join(graded) + "\n")
    return folder


def resolved(files: Path, devices: int = 1, **changes: Any) -> Config:
    """Return a small recipe; changes by full name."""
    recipe = base.get_config()
    values = {
        **SMALL_ENCODER,
        "model.vocab_size": 120,
        "data.files": str(files / "sentences.txt"),
        "data.cache_dir": str(files / "cache"),
        "data.max_length": 16,
        "data.packed": False,  # one shape to compile
        "train.batch_size": 16,
        "train.epochs": 0.0,
        "train.steps": 12,
        "train.log_every_steps": 1,
        "optimizer.learning_rate": 1e-3,
        "eval.data": str(files / "pairs.tsv"),
        "eval.every_steps": 4,
        "checkpoint.every_steps": 3,
        "mesh.data": devices,
    }
    recipe.update_from_flattened_dict(values | changes)
    return resolve(recipe, (), jax.device_count(), jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def prepared(files: Path, workdir: Path, devices: int = 1, **changes: Any) -> Run:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return prepare(resolved(files, devices, **named), workdir)


def run(files: Path, workdir: Path, **changes: Any) -> Outcome:
    return train(prepared(files, workdir, **changes), workdir)


def with_step(made: Run, changed: Callable[[Any, Any, Any], Any]) -> Run:
    """Return the run with its compiled step replaced by changed(compiled step, state, batch)."""

    class Step:
        def lower(self, *shapes: Any) -> Any:
            step: Any = made.program.train_step
            compiled = step.lower(*shapes).compile()
            return SimpleNamespace(compile=lambda: functools.partial(changed, compiled))

    return dataclasses.replace(made, program=dataclasses.replace(made.program, train_step=cast(Any, Step())))


@pytest.fixture
def stops_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the process signal itself once the metrics of a step are written."""
    write = MetricsWriter.write

    def arrange(step: int, number: int = signal.SIGTERM) -> None:
        def then_signal(self: MetricsWriter, at: int, metrics: Any) -> None:
            write(self, at, metrics)
            if at == step and "loss" in metrics:
                monkeypatch.setattr(MetricsWriter, "write", write)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(MetricsWriter, "write", then_signal)

    return arrange


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("sentences_per_s", "data_wait_s")} for line in lines]


@pytest.mark.medium
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(files: Path, tmp_path: Path, stops_at: Any) -> None:
    whole = run(files, tmp_path / "whole", data__packed=True)
    assert (whole.step, whole.signal) == (12, None)
    stops_at(5)
    part = run(files, tmp_path / "parts", data__packed=True)
    assert part.signal == signal.SIGTERM
    assert 5 <= part.step < 12
    assert run(files, tmp_path / "parts", data__packed=True).progress == whole.progress
    first, second = (load_run_params(tmp_path / name) for name in ("whole", "parts"))
    assert first[1]["scores"] == second[1]["scores"]
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    lines = [without_times(read_metrics(tmp_path / name)) for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[1] if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines[1] if "dev/spearman" in line] == [0, 4, 8, 12]
    # Once more: nothing is left to do, and nothing changes.
    again = run(files, tmp_path / "parts", data__packed=True)
    assert (again.step, again.shapes_compiled) == (12, 0)
    assert without_times(read_metrics(tmp_path / "parts")) == lines[1]


@pytest.mark.medium
def test_the_run_folder(files: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data__files": str(files / "triplets.csv"), "data__positive": "columns"}
    made = prepared(files, tmp_path, **flags, data__packed=True)
    assert any("hard negatives" in line for line in describe(made))
    outcome = train(made, tmp_path)
    export_run(tmp_path, tmp_path / "model")
    expected = {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "model", "tokenizer"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last", "best"}
    info = json.loads((tmp_path / "config.json").read_text())
    assert info["recipe"]["train.steps"] == 12
    assert info["pooler"] == "cls_before_pooler"
    line = next(line for line in read_metrics(tmp_path) if line["step"] == 3)
    assert line.keys() >= {"loss", "accuracy", "alignment", "uniformity", "masked", "gradient_norm", "parameter_norm"}
    assert line["learning_rate"] == pytest.approx(1e-3 * (1 - 2 / 12))
    assert outcome.shapes_compiled <= 4
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.medium
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(files: Path, tmp_path: Path, stops_at: Any) -> None:
    stops_at(3)
    run(files, tmp_path / "run")
    made = prepared(files, tmp_path / "run")

    def breaks(step: Any, state: Any, batch: Any) -> Any:
        state, metrics = step(state, batch)
        return state, metrics | {"loss": np.float32("nan")} if jax.device_get(state.step) == 6 else metrics

    with pytest.raises(UserError, match=r"Step 6: the loss is nan.*\n?.*holds step [345]"):
        train(with_step(made, breaks), tmp_path / "run")
    assert run(files, tmp_path / "run").step == 12


def scored(made: Run, scores: list[float]) -> Run:
    """Return the run with its evaluations replaced by these scores."""
    left = iter(scores)
    return dataclasses.replace(made, dev=Dev(SPEARMAN, lambda _: {"spearman": next(left), "pearson": 0.0, "pairs": 40}))


def test_patience_counts_evaluations_since_the_best_and_a_stopped_run_stays_stopped(
    files: Path, tmp_path: Path
) -> None:
    """A new best starts the count again, and a tie is no new best."""
    flags: dict[str, Any] = {"eval__patience": 2, "eval__every_steps": 1, "train__steps": 40}
    made = scored(prepared(files, tmp_path, **flags), [50.0, 60.0, 59.0, 61.0, 61.0, 60.0, 99.0])
    outcome = train(made, tmp_path)
    assert (outcome.step, outcome.progress.best_step, outcome.progress.best_score) == (5, 3, 61.0)
    again = run(files, tmp_path, **flags)
    assert again.progress == outcome.progress
    info = load_run_params(tmp_path)[1]
    assert (info["step"], info["scores"]["spearman"]) == (3, 61.0)


@pytest.mark.medium
def test_a_best_that_is_newer_than_the_resumed_state_is_forgotten(files: Path, tmp_path: Path) -> None:
    """Those steps run again, and the best of them may be another."""
    flags: dict[str, Any] = {"eval__every_steps": 1, "train__steps": 3}
    train(scored(prepared(files, tmp_path, **flags), [1.0, 2.0, 3.0, 4.0]), tmp_path)
    assert load_run_params(tmp_path)[1]["step"] == 3
    shutil.rmtree(tmp_path / "checkpoints" / "last" / "3")  # as if killed between the best and `last`
    outcome = train(scored(prepared(files, tmp_path, **flags), [2.5]), tmp_path)
    assert (outcome.progress.best_step, outcome.progress.best_score) == (2, 3.0)
    info = load_run_params(tmp_path)[1]
    assert (info["step"], info["scores"]["spearman"]) == (2, 3.0)


def test_the_pooler_of_the_recipe_is_what_scores_export_and_evaluation_use(files: Path, tmp_path: Path) -> None:
    """The paper's trick: train with the MLP head, then leave it out."""
    poolers: dict[str, Any] = {"model__train_pooler": "cls", "model__pooler": "cls_before_pooler"}
    outcome = run(files, tmp_path, **poolers, train__steps=4, optimizer__learning_rate=1e-2)
    export_run(tmp_path, tmp_path / "model")
    pairs = load_graded_pairs(str(files / "pairs.tsv"))
    texts = [*pairs.first, *pairs.second]
    score = load_run_params(tmp_path)[1]["scores"]["spearman"]
    assert outcome.progress.best_score == score

    def spearman(encode: Callable[[list[str]], np.ndarray]) -> float:
        return evaluate_pairs(encode, pairs)["spearman"]

    opened, exported = open_model(str(tmp_path)), open_model(str(tmp_path / "model"))
    assert spearman(opened.encode) == spearman(exported.encode) == score
    assert spearman(open_model(str(tmp_path), pooler="cls").encode) != score
    model = transformers.AutoModel.from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        first_states = model(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(exported.encode(texts), first_states, atol=2e-5)
    np.testing.assert_allclose(opened.encode(texts), first_states, atol=2e-5)


def test_without_evaluation_the_last_is_the_best(files: Path, tmp_path: Path) -> None:
    outcome = run(files, tmp_path, eval__data="", train__steps=5)
    assert outcome.progress.best_step == -1
    assert load_run_params(tmp_path)[1]["step"] == 5


def test_a_falling_score_under_a_falling_loss_is_noticed() -> None:
    assert falling([(1, 80.0, 1.0), (2, 79.0, 0.9), (3, 78.0, 0.8), (4, 77.0, 0.7)])
    assert not falling([(1, 80.0, 1.0), (2, 79.0, 0.9), (3, 79.5, 0.8), (4, 77.0, 0.7)])
    assert not falling([(1, 80.0, 1.0), (2, 79.0, 0.9), (3, 78.0, 0.95), (4, 77.0, 0.7)])
    assert not falling([(2, 79.0, 0.9), (3, 78.0, 0.8), (4, 77.0, 0.7)])


def test_loading_the_best_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_run_params(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        load_run_params(tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(files: Path, tmp_path: Path) -> None:
    made = prepared(files, tmp_path)

    def killed(step: Any, state: Any, batch: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(with_step(made, killed), tmp_path)
    with Checkpoints(tmp_path) as checkpoints:  # what a kill between the best and `last` leaves behind
        checkpoints.save_best(50, made.initial_state().params, {"spearman": 99.0})
    outcome = run(files, tmp_path, objective__temperature=0.1, train__steps=3, model__vocab_size=110)
    assert outcome.step == 3
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 3]
    info = load_run_params(tmp_path)[1]
    assert info["step"] == outcome.progress.best_step <= 3
    assert info["scores"]["spearman"] == outcome.progress.best_score


@pytest.mark.medium
def test_other_mathematics_are_refused_and_other_layouts_welcome(files: Path, tmp_path: Path, stops_at: Any) -> None:
    """A refusal leaves the folder as it was."""
    stops_at(4)
    run(files, tmp_path / "run")
    for name in ("sentences.txt", "pairs.tsv"):
        (tmp_path / name).write_text((files / name).read_text().replace("dog", "cat"))

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}

    before = content()
    changes: dict[str, Any]
    for changes, message in (
        ({"objective__temperature": 0.1}, r"objective.temperature: 0.05 .*0.1.*\n.*--workdir=ANOTHER"),
        ({"model__vocab_size": 110}, "model.vocab_size"),
        ({"data__max_length": 12}, "data.max_length"),
        (
            {"data__files": str(tmp_path / "sentences.txt")},
            "training data: of .*sentences.txt.*rules of another version",
        ),
        ({"eval__data": str(tmp_path / "pairs.tsv")}, "evaluation data: of .*pairs.tsv"),
    ):
        with pytest.raises(UserError, match=message):
            run(files, tmp_path / "run", **changes)
    assert content() == before
    layout: dict[str, Any] = {"data__packed": True, "train__groups_at_once": 1}
    assert run(files, tmp_path / "run", devices=4, eval__every_steps=3, **layout).step == 12


def test_products_are_chosen_by_the_processor_once_and_kept(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
    started = prepared(files, tmp_path, model__products="auto")
    assert (started.config.model.products, started.encoder.products) == ("bfloat16", "bfloat16")
    (tmp_path / "checkpoints/last/3").mkdir(parents=True)
    (tmp_path / "checkpoints/last/3/files.json").touch()
    monkeypatch.setattr(products, "_cpu_flags", frozenset)
    assert prepared(files, tmp_path, model__products="auto").encoder.products == "bfloat16"
    with pytest.raises(UserError, match=r"model\.products: 'bfloat16' there, 'float32' now"):
        prepared(files, tmp_path)
    assert prepared(files, tmp_path / "other", model__products="auto").encoder.products == "float32"


def test_a_folder_that_is_none_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        prepared(files, tmp_path / "notes")


def test_models_that_will_not_do_are_refused_before_anything_is_written(
    files: Path, tmp_path: Path, small_model: Path
) -> None:
    model = shutil.copytree(small_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    options: dict[str, Any] = {"model__name": str(model), **FROM_FOLDER}
    with pytest.raises(UserError, match=r"model\.safetensors"):
        prepared(files, tmp_path / "run", **options)
    with pytest.raises(UserError, match=r"data.max_length = 1000.* 512"):
        prepared(files, tmp_path / "run", data__max_length=1000)
    assert not (tmp_path / "run").exists()


def test_every_key_of_a_recipe_is_read(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that nothing reads once the recipe is resolved would be a promise without effect."""
    read: set[str] = set()
    flat = dict.fromkeys(resolved(files).flat())

    def recording(section: str, kind: type) -> Any:
        def look(self: Any, name: str) -> Any:
            read.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", look, raising=False)

    config = resolved(files, **{"train.steps": 2, "mlm.weight": 0.1})
    monkeypatch.setattr(type(config), "flat", lambda _: {"model.dtype": "float32"})  # it reads all, and decides nothing
    for field in dataclasses.fields(config):
        if field.name not in ("group_size", "sources"):
            recording(field.name, type(getattr(config, field.name)))
    with open_trackers(config, tmp_path) as trackers:
        train(prepare(config, tmp_path), tmp_path, trackers=trackers)
    # Keys of other losses, and of the predictor, which is looked for and not found.
    for loss in ("triplet", "sigmoid"):
        build_objective(dataclasses.replace(config.objective, loss=loss), make_mesh(1))
    for name, schedule in (("muon", "warmup_stable_decay"), ("lion", "cosine")):
        other = dataclasses.replace(config.optimizer, name=name, schedule=schedule, weight_decay=0.1)
        make_optimizer(other, 10)
    alone = SourceConfig("alone", 1.0, config.data, config.objective.loss)
    prepare(dataclasses.replace(config, sources=(alone,)), tmp_path / "mixture")
    predicting = dataclasses.replace(config, data=dataclasses.replace(config.data, positive="mask", mask_model="none"))
    with pytest.raises(UserError, match="none"):
        prepare(predicting, tmp_path / "predicting")
    assert flat.keys() - read <= {"train.epochs", "train.examples"}  # as steps were given

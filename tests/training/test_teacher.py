"""A run that learns a teacher's vectors: from a model or a file, alone or beside a contrastive loss."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from simcse_jax.data import text_vectors
from simcse_jax.data.tokenise import text_hashes
from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.architecture import Architecture
from simcse_jax.encoder.init import init_params
from simcse_jax.encoder.model import Encoder
from simcse_jax.model_folder.export import export_model
from simcse_jax.model_folder.run_folder import export_run, load_run_params
from simcse_jax.recipes.base import shipped_model
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.serving.vector_file import write_vectors
from simcse_jax.system.errors import UserError
from simcse_jax.training import teacher
from simcse_jax.training.display import describe
from simcse_jax.training.state import PROJECTION
from tests.small_models import FROM_FOLDER, demo_files, prepare_small, states_of, train_small

ALONE: dict[str, Any] = {
    "objective__loss": "none",
    "teacher__mse": 1.0,
    "teacher__kl": 1.0,
    "model__dropout": 0.0,
    "eval__data": "",
    "data__packed": False,
}


def embedded(folder: Path, model: Path, texts: list[str]) -> Path:
    """Return the file that `embed` would write."""
    encode = open_model(str(model)).encode
    write_vectors(folder / "vectors.parquet", texts, encode, 32, {"model": "m", "fingerprint": "f", "texts": ""})
    return folder / "vectors.parquet"


@pytest.mark.medium
def test_a_student_learns_its_teacher(tmp_path: Path, small_model: Path) -> None:
    flags = ALONE | {"teacher__name": str(small_model), "train__steps": 40, "train__batch_size": 32}
    run = train_small(tmp_path / "run", tmp_path / "cache", **flags)
    lines = [line for line in read_metrics(run) if "loss" in line]
    for name in ("teacher_mse", "teacher_kl"):
        assert lines[-1][name] < 0.7 * lines[0][name]
    assert lines[0]["loss"] == pytest.approx(lines[0]["teacher_mse"] + lines[0]["teacher_kl"], rel=1e-5)
    info = json.loads((run / "config.json").read_text())
    assert info["teacher"]["name"] == str(small_model)
    assert len(info["teacher"]["fingerprint"]) == 32
    export_run(run, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "- distillation\n" in card
    assert "to be like those of another model" in card
    student = open_model(str(tmp_path / "model"))
    assert student.width == 16  # the projection is no part of it


@pytest.mark.parametrize("of", ["its tokenizer", "another"])
def test_batches_hold_the_vectors_of_their_own_texts(of: str, tmp_path: Path, small_model: Path) -> None:
    """Of triplets on four devices, each text where its embedding will be; also of a teacher with another tokenizer."""
    name = str(small_model) if of == "its tokenizer" else shipped_model("wiki-small")
    files = str(demo_files() / "triplets.csv")
    flags = ALONE | {"teacher__name": name, "data__files": files, "data__positive": "columns"}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags, mesh__data=4)
    batch = run.batches(3)
    with (demo_files() / "triplets.csv").open(newline="") as file:
        texts = list(csv.reader(file))[1:]
    rows = run.batches.example_ids(3)
    expected = open_model(name).encode([text for row in rows for text in texts[row]])
    expected = (expected / np.linalg.norm(expected, axis=1, keepdims=True)).reshape(4, 4, 3, -1).swapaxes(1, 2)
    assert batch.teacher is not None
    np.testing.assert_allclose(batch.teacher, expected, atol=1e-3)
    some = run.batches(3, [2])
    np.testing.assert_array_equal(some.teacher, batch.teacher[[2]])
    shapes = jax.tree.map(lambda x: x.shape, batch)
    from simcse_jax.training.feeding import batch_shapes

    layout, mesh = run.batches.layout, run.program.mesh
    planned = batch_shapes(run.config, mesh, 3, batch.rows, layout.row_length, expected.shape[-1])
    assert jax.tree.map(lambda x: x.shape, planned) == shapes


@pytest.mark.medium
def test_a_file_of_vectors_teaches_what_its_model_does(tmp_path: Path, small_model: Path) -> None:
    texts = (demo_files() / "sentences.txt").read_text().splitlines()
    file = embedded(tmp_path, small_model, texts)
    runs = [
        states_of(prepare_small(tmp_path / str(n), tmp_path / "cache", **ALONE, teacher__name=str(name)), 2)[1]
        for n, name in enumerate((small_model, file))
    ]
    assert runs[0][1]["loss"] == pytest.approx(runs[1][1]["loss"], rel=1e-6)
    few = embedded(tmp_path / "few", small_model, texts[:50]) if (tmp_path / "few").mkdir() is None else file
    with pytest.raises(UserError, match=r"holds no vector of [\d,]+ of the [\d,]+ texts(.|\n)*teacher\.name"):
        prepare_small(tmp_path / "refused", tmp_path / "cache", **ALONE, teacher__name=str(few))


def test_a_second_start_reads_the_vectors(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ALONE | {"teacher__name": str(small_model)}
    first = prepare_small(tmp_path / "one", tmp_path / "cache", **flags)

    def no_more(*_: Any) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patched:
        patched.setattr(teacher.TeacherModel, "blocks", no_more)
        second = prepare_small(tmp_path / "two", tmp_path / "cache", **flags, train__seed=1)
        with pytest.raises(AssertionError):
            prepare_small(tmp_path / "three", tmp_path / "other", **flags)
    assert first.batches.vectors is not None
    assert second.batches.vectors is not None
    assert first.batches.vectors.fingerprint == second.batches.vectors.fingerprint
    (vectors,) = (tmp_path / "cache" / "teachers").glob("*/vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:-100])  # damaged: made again
    prepare_small(tmp_path / "four", tmp_path / "cache", **flags)
    hashes = text_hashes((demo_files() / "sentences.txt").read_text().splitlines()[:3])
    made = text_vectors.TextVectors(vectors.parent, "")
    np.testing.assert_array_equal(made(hashes), first.batches.vectors(hashes))


@pytest.mark.medium
def test_a_teacher_whose_folder_cuts_its_vectors_is_another(tmp_path: Path, small_model: Path) -> None:
    """Its weights are the same, and the vectors in the cache are not."""
    shutil.copytree(small_model, tmp_path / "cut")
    settings = tmp_path / "cut" / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"truncate_dim": 8}))
    for folder, width in ((small_model, 32), (tmp_path / "cut", 8)):
        run = prepare_small(tmp_path / f"run-{width}", tmp_path / "cache", **ALONE, teacher__name=str(folder))
        assert run.batches.vectors is not None
        assert run.batches.vectors.width == width


def test_a_run_goes_on_with_the_same_teacher_only(tmp_path: Path, small_model: Path, make_once: Any) -> None:
    from tests.small_models import export_small

    other = make_once("small-model-of-seed-1", lambda folder: export_small(folder, seed=1)) / "model"
    flags: Any = ALONE | {"train__steps": 4, "checkpoint__every_steps": 2}
    run = train_small(tmp_path / "run", tmp_path / "cache", **flags, teacher__name=str(small_model))
    train_small(run, tmp_path / "cache", **flags, teacher__name=str(small_model))
    with pytest.raises(UserError, match="teacher's vectors"):
        train_small(run, tmp_path / "cache", **flags, teacher__name=str(other))


@pytest.mark.medium
def test_beside_a_contrastive_loss_it_is_added(tmp_path: Path, small_model: Path) -> None:
    given: Any = {"eval__data": "", "data__packed": False}
    plain = prepare_small(tmp_path / "plain", tmp_path / "cache", **given)
    both = prepare_small(
        tmp_path / "both", tmp_path / "cache", **given, teacher__name=str(small_model), teacher__kl=0.5
    )
    (_, _), (alone,) = states_of(plain, 1)
    states, (metrics,) = states_of(both, 1)
    assert metrics["loss"] == pytest.approx(alone["loss"] + 0.5 * metrics["teacher_kl"], rel=1e-5)
    assert metrics["positive_cosine"] == pytest.approx(alone["positive_cosine"], rel=1e-5)
    assert PROJECTION not in states[0].params  # kl compares within the encoder's own width


def test_an_encoder_keeps_a_projection_of_its_own(tmp_path: Path, small_model: Path) -> None:
    """Its tables are narrower than its layers; the one to the teacher's width is another, and not exported."""
    own = Architecture("electra", 400, 16, 1, 2, 32, max_position_embeddings=64, embedding_size=8)
    params = jax.jit(lambda: init_params(Encoder(own), 0))()
    export_model(tmp_path / "start", params, own, small_model, "avg", card={})
    flags: Any = ALONE | FROM_FOLDER | {"teacher__name": str(small_model), "model__name": str(tmp_path / "start")}
    run = train_small(tmp_path / "run", tmp_path / "cache", **flags, train__steps=1)
    trained = load_run_params(run)[0]
    assert trained["projection"]["kernel"].shape == (8, 16)
    assert np.abs(trained["projection"]["kernel"] - np.asarray(params["projection"]["kernel"])).max() > 1e-4
    assert PROJECTION not in trained


def test_a_projection_is_there_where_widths_differ(tmp_path: Path, small_model: Path) -> None:
    flags = ALONE | {"teacher__name": str(small_model), "teacher__kl": 0.0}
    wider = prepare_small(tmp_path / "wider", tmp_path / "cache", **flags)
    first, second = (state.params[PROJECTION]["kernel"] for state in states_of(wider, 1)[0])
    assert first.shape == (16, 32)
    assert np.abs(second - first).max() > 1e-4
    equal = prepare_small(tmp_path / "equal", tmp_path / "cache", **flags, model__hidden_size=32)
    assert PROJECTION not in equal.initial_state().params


@pytest.mark.medium
def test_a_guide_needs_no_weight_and_leaves_out_what_it_finds_similar(tmp_path: Path, small_model: Path) -> None:
    """With this limit, everything but the positives."""
    given: Any = {"eval__data": "", "data__packed": False, "teacher__name": str(small_model)}
    given |= {
        "objective__guide": True,
        "objective__false_negatives": "fixed",
        "objective__false_negative_margin": -0.999,
    }
    (metrics,) = states_of(prepare_small(tmp_path / "run", tmp_path / "cache", **given), 1)[1]
    assert metrics["masked"] == 16 * 15
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)
    assert not any(name.startswith("teacher") for name in metrics)


def test_a_guide_without_a_margin_that_leaves_out_nothing_is_noted(tmp_path: Path, small_model: Path) -> None:
    """The teacher has one vector for a text and its positive, and no cosine is above 1."""
    given: Any = {"eval__data": "", "teacher__name": str(small_model), "objective__guide": True}
    pairs = {"data__files": str(demo_files() / "triplets.csv"), "data__positive": "columns"}
    for kind, margin, more, noted in (
        ("absolute", 0.0, {}, True),
        ("relative", -0.1, {"data__positive": "crop"}, True),
        ("absolute", 0.1, {}, False),
        ("fixed", 0.9, {}, False),
        ("absolute", 0.0, pairs, False),
    ):
        keys = {"objective__false_negatives": kind, "objective__false_negative_margin": margin}
        run = prepare_small(tmp_path / "run", tmp_path / "cache", **given | keys | more)
        assert any("leaves out nothing" in line for line in describe(run)) == noted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective__hardness": 1.0, "objective__hardness_of": "own"},
            r"objective\.hardness_of = 'own', and the data",
        ),
        (
            {
                "objective__guide": True,
                "objective__false_negatives": "absolute",
                "objective__queue": 32,
                "model__second_encoder": "momentum",
            },
            r"objective\.guide = True with objective\.queue = 32(.|\n)*objective\.queue=0",
        ),
        (
            {"objective__loss": "none", "teacher__margin_mse": 1.0},
            r"teacher\.margin_mse compares(.|\n)*positive=columns",
        ),
        ({"teacher__width": 64}, r"teacher\.width = 64, and the teacher's vectors have 32(.|\n)*teacher\.width=32"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, small_model: Path, changes: dict, words: str) -> None:
    flags: Any = {"eval__data": "", "teacher__name": str(small_model), "teacher__kl": 1.0} | changes
    with pytest.raises(UserError, match=words):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"teacher__mse": 0.0, "teacher__kl": 0.0},
            r"teacher\.mse = teacher\.kl = teacher\.margin_mse = 0(.|\n)*--config\.teacher\.kl=1",
        ),
        ({"teacher__name": ""}, r"teacher\.mse = 1\.0 has no effect with teacher\.name = ''"),
        ({"teacher__kl": 0.0, "teacher__temperature": 0.1}, r"teacher\.temperature = 0\.1 has no effect"),
        ({"teacher__name": "no/such-folder/here"}, r"(.|\n)*teacher\.name, which takes"),
        ({"teacher__name": "a.parquet", "teacher__products": "auto"}, r"teacher\.products = 'auto' has no effect"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, small_model: Path, changes: dict, words: str) -> None:
    flags = ALONE | {"teacher__name": str(small_model)} | changes
    flags |= {"mlm__weight": 1.0} if not flags["teacher__name"] else {}
    with pytest.raises(UserError, match=words):
        prepare_small(tmp_path / "run", tmp_path / "cache", **flags)
    assert not (tmp_path / "run").exists()

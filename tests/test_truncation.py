"""Vectors cut to their first features: as sentence-transformers cuts them, in models, indexes, files and evaluation."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from simcse_jax import SimCSE
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluate import read_widths
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.report.page import write_report
from simcse_jax.evaluation.sts import evaluate_sts
from simcse_jax.evaluation.suite import TaskSuite
from simcse_jax.judging import judge_models
from simcse_jax.mteb_encoder import MtebEncoder
from simcse_jax.serving.vector_file import is_vector_file, read_vectors, write_vectors
from simcse_jax.system.errors import UserError

TEXTS = ["a red dog sleeps", "two children play in the park", "", "a red dog sleeps", "a man plays music"]


@pytest.fixture(scope="module")
def cut_folder(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the small model, which has 32 features, into a folder that says to keep 16 after scaling."""
    folder = tmp_path_factory.mktemp("cut") / "model"
    shutil.copytree(small_model, folder)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": 16}))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Normalize").mkdir()
    return folder


@pytest.mark.parametrize("asked", [None, 8, 24, 32])
def test_vectors_are_those_of_sentence_transformers(small_model: Path, cut_folder: Path, asked: int | None) -> None:
    for folder in (small_model, cut_folder):
        there = SentenceTransformer(str(folder), device="cpu", truncate_dim=asked)
        here = open_model(str(folder), truncate_dim=asked)
        for normalize in (True, False):
            expected = there.encode(TEXTS, normalize_embeddings=normalize)
            # With False, sentence-transformers leaves what the folder's own module has scaled.
            found = here.encode(TEXTS, normalize=normalize or None)
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        assert here.width == expected.shape[1]
        unit = there.encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(SimCSE(folder, truncate_dim=asked).encode(TEXTS), unit, rtol=0, atol=2e-6)
        np.testing.assert_allclose(SimCSE(folder).encode(TEXTS, truncate_dim=asked), unit, rtol=0, atol=2e-6)
        np.testing.assert_allclose(SimCSE(folder).encode(TEXTS[0], truncate_dim=asked), unit[0], rtol=0, atol=2e-6)
        assert SimCSE(folder).encode([], truncate_dim=asked).shape == (0, unit.shape[1])
        np.testing.assert_allclose(
            MtebEncoder(str(folder), truncate_dim=asked).encode([{"text": TEXTS}]),
            there.encode(TEXTS),
            rtol=0,
            atol=2e-6 * np.abs(expected).max(),
        )


def test_what_a_cut_model_says_of_itself(small_model: Path, cut_folder: Path) -> None:
    whole, cut = SimCSE(small_model), SimCSE(small_model, truncate_dim=8)
    assert (cut.width, cut.widths, cut.max_length) == (8, (8,), whole.max_length)
    assert "truncate_dim=8" in repr(cut)
    assert SimCSE(small_model, truncate_dim=32).fingerprint == whole.fingerprint
    assert SimCSE(cut_folder, truncate_dim=16).fingerprint == SimCSE(cut_folder).fingerprint
    fingerprints = {SimCSE(small_model, truncate_dim=width).fingerprint for width in (None, 8, 9)}
    assert len(fingerprints) == 3
    revisions = {MtebEncoder(str(small_model), truncate_dim=width).mteb_model_meta.revision for width in (None, 8, 9)}
    assert len(revisions) == 3
    again = pickle.loads(pickle.dumps(cut))
    np.testing.assert_array_equal(again.encode(TEXTS), cut.encode(TEXTS))
    assert again.fingerprint == cut.fingerprint


@pytest.mark.parametrize("wrong", [0, 33, -1, 8.0, "8", True])
def test_what_is_no_width_is_refused(small_model: Path, wrong: Any) -> None:
    with pytest.raises(UserError, match=r"32 features: give an integer from 1 to 32"):
        SimCSE(small_model, truncate_dim=wrong)
    with pytest.raises(UserError, match="truncate_dim is"):
        SimCSE(small_model).encode(TEXTS, truncate_dim=wrong)


def test_an_index_knows_its_width(small_model: Path, tmp_path: Path) -> None:
    cut, whole = SimCSE(small_model, truncate_dim=8), SimCSE(small_model)
    assert cut.build_index(TEXTS).width == 8
    assert cut.search(TEXTS[1])[0].text == TEXTS[1]
    cut.save(tmp_path / "cut")
    whole.build_index(TEXTS)
    whole.save(tmp_path / "whole")
    with pytest.raises(UserError, match=r"truncate_dim=8, not none.\nOpen it with --truncate_dim=8,"):
        whole.load_index(tmp_path / "cut")
    with pytest.raises(UserError, match=r"truncate_dim=none, not 8.\nOpen it with no --truncate_dim,"):
        cut.load_index(tmp_path / "whole")
    assert cut.load_index(tmp_path / "cut").width == 8


# Files of vectors -----------------------------------------------------------------------------------------------------


def embedded(model: SimCSE, out: Path, normalize: bool = True, storage: str = "float32") -> Path:
    """Write the vectors of TEXTS as the command `embed` does."""
    about = {"model": "there", "fingerprint": model.fingerprint, "normalized": normalize, "texts": "key"}
    write_vectors(out, TEXTS, lambda part: model.encode(part, normalize=normalize), model.width, about, storage)
    return out


@pytest.mark.parametrize(("normalize", "storage"), [(True, "float32"), (False, "float32"), (True, "float16")])
def test_an_index_takes_the_vectors_of_a_file(
    small_model: Path, tmp_path: Path, normalize: bool, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimCSE(small_model, truncate_dim=8)
    expected = model.build_index(TEXTS).nearest(model.encode(TEXTS), 3)
    out, queries = embedded(model, tmp_path / "v.parquet", normalize, storage), model.encode(TEXTS)
    monkeypatch.setattr(model.encoder, "encode", None)  # nothing is encoded
    index = model.build_index(out)
    assert [index.text(n) for n in range(len(TEXTS))] == TEXTS
    np.testing.assert_allclose(
        index.nearest(queries, 3)[0], expected[0], rtol=0, atol=1e-3 if "16" in storage else 1e-6
    )
    assert model.add(out).tolist() == [5, 6, 7, 8, 9]


def test_the_vectors_of_another_model_are_refused(small_model: Path, tmp_path: Path) -> None:
    model = SimCSE(small_model)
    other_pooler = SimCSE(small_model, pooler="cls_before_pooler")
    out = embedded(other_pooler, tmp_path / "v.parquet")
    with pytest.raises(UserError, match=r"pooler=cls_bef.*, not avg[\s\S]*Give --pooler=cls_bef.*, or --column=text"):
        model.build_index(out)
    other = out.with_name("w.parquet")
    write_vectors(other, TEXTS, lambda part: np.ones((len(part), 4)), 4, {"model": "m", "fingerprint": "00-avg-64"})
    with pytest.raises(UserError, match=r"other weights[\s\S]*Give the model that made them, m, or"):
        model.build_index(other)
    plain = tmp_path / "lines.txt"
    plain.write_text("\n".join(TEXTS))
    assert not is_vector_file(plain)
    assert not is_vector_file(tmp_path / "nowhere.parquet")
    whole = out.read_bytes()
    out.write_bytes(whole[:4] + bytes(len(whole) // 3) + whole[4 + len(whole) // 3 :])
    with pytest.raises(UserError, match="is damaged"):
        list(read_vectors(out, other_pooler.fingerprint))


# Evaluation -----------------------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_each_width_is_a_row_of_the_model(small_model: Path, small_run: Path, tmp_path: Path) -> None:
    texts = 0
    opened = [open_model(str(small_model)), open_model(str(small_run))]
    model: Any = opened[0]
    encode = model.encode

    def counting(given: list[str], *args: Any, **options: Any) -> np.ndarray:
        nonlocal texts
        texts += len(given)
        return encode(given, *args, **options)

    model.encode = counting
    suite, said = TaskSuite(("geometry",), pairs=("demo:dev",)), []
    results = judge_models(opened, suite, said.append, widths=[4, 16])
    assert [entry.name for entry in results.entries] == [
        str(small_model),
        f"{small_model} (width 4)",
        f"{small_model} (width 16)",
        str(small_run),
        f"{small_run} (width 4)",
    ]
    pairs = load_graded_pairs("demo:dev")
    assert texts <= 4 * len(pairs.gold)  # once for the scores and once for the geometry, not once a width
    for result, folder, width in zip(
        results.models, [small_model] * 3 + [small_run] * 2, [32, 4, 16, 16, 4], strict=True
    ):
        cut = open_model(str(folder), truncate_dim=width)
        expected = evaluate_sts(cut.encode, {"": pairs}, "demo:dev", "as given")
        assert result.scores["demo:dev"].value == pytest.approx(expected.value, abs=1e-4)
        assert result.width == width
        assert result.space is not None
        assert result.space.effective_rank <= width
        assert result.protocol.get("truncate_dim") == (width if result.whole else None)
        assert result.protocol["fingerprint"] == cut.fingerprint
    before = open_model(str(small_run), truncate_dim=4).before_training()
    space = results.models[4].space_before
    assert before is not None
    assert space is not None
    assert suite.measure_space(before[0]).metrics() == pytest.approx(space.metrics(), rel=1e-5)
    assert results.models[3].curves
    assert not results.models[4].curves
    assert any("demo:dev, width 4: " in line for line in said)
    assert {(row.other, row.task) for row in results.differences} >= {(f"{small_model} (width 4)", "demo:dev")}
    write_report(results, tmp_path)
    assert (tmp_path / "score_by_width.png").stat().st_size > 1000


def test_wrong_widths_are_named(small_model: Path) -> None:
    with pytest.raises(UserError, match="truncate_dim is 33"):
        judge_models([open_model(str(small_model))], TaskSuite((), pairs=("demo:dev",)), widths=[8, 33])
    assert read_widths(["128", "64", "64"]) == [64, 128]
    for wrong in ("0", "-3", "all", ""):
        with pytest.raises(UserError, match=f"--truncate_dim: '{wrong}'"):
            read_widths(["64", wrong])

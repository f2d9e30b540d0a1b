"""`SimCSE`: one text or many, streams, similarities and search, by the vectors that the encoder gives."""

import json
import os
import pickle
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from simcse_jax import SimCSE
from simcse_jax.embedding_model import open_model
from simcse_jax.serving.index.rows import STORAGES
from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.system.errors import UserError
from tests.small_models import export_small

TEXTS = [
    "a red dog sleeps",
    "two children play in the park",
    "",
    "a red dog sleeps",
    "music " * 40,
    "a man plays music",
]


@pytest.fixture(scope="module")
def model(small_model: Path) -> SimCSE:
    return SimCSE(small_model)


@pytest.fixture(scope="module")
def expected(small_model: Path) -> np.ndarray:
    return open_model(str(small_model)).encode(TEXTS, normalize=True)


def test_a_string_a_list_and_a_matrix_for_nothing(model: SimCSE, expected: np.ndarray) -> None:
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
    one = model.encode(TEXTS[1])
    assert one.shape == (model.width,)
    np.testing.assert_allclose(one, expected[1], atol=1e-6)
    np.testing.assert_allclose(model.encode(tuple(TEXTS), batch_size=2), expected, atol=1e-6)
    assert model.encode([]).shape == (0, model.width)
    raw = model.encode(TEXTS, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01
    assert isinstance(model.encode(TEXTS, return_numpy=False), jax.Array)
    assert isinstance(model.encode(TEXTS, batch_size=4, return_numpy=False), jax.Array)


def test_streams_are_read_as_they_are_used(model: SimCSE, expected: np.ndarray, tmp_path: Path) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for text in TEXTS:
            read += 1
            yield text

    stream = model.encode(texts(), batch_size=2)
    assert read == 0
    first = next(stream)
    assert (read, first.shape) == (2, (2, model.width))
    np.testing.assert_allclose(np.concatenate([first, *stream]), expected, atol=1e-6)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS[:2]) + "\n")
    np.testing.assert_allclose(np.concatenate(list(model.encode(file))), expected[:2], atol=1e-6)


def test_every_method_takes_texts_through_one_gate(small_model: Path) -> None:
    model = SimCSE(small_model)
    series, array = pd.Series(["a dog", "music"]), np.array(["a dog"])
    assert model.encode(series).shape == (2, model.width)
    assert model.similarity(series, array).shape == (2, 1)
    assert model.count_tokens(series).shape == (2,)
    assert len(model.build_index(series)) == 2
    assert model.add(np.str_("a cat")).shape == (1,)
    assert [hits[0].text for hits in model.search(array)] == ["a dog"]
    assert model.paraphrases(pd.Series(["a dog", "a dog"])) == []
    for texts in (pa.array(["a dog", "music"]), pa.chunked_array([["a dog"], ["music"]])):
        np.testing.assert_array_equal(model.encode(texts), model.encode(series))
        assert np.shape(model.similarity(texts, array)) == (2, 1)
    for text in (np.array("a dog"), np.array("a dog", object), pa.scalar("a dog")):
        np.testing.assert_array_equal(model.encode(text), model.encode("a dog"))
        assert model.similarity(text, "a dog") == pytest.approx(1, abs=1e-6)
        assert model.search(text)[0].text == "a dog"
        assert model.add(text).shape == (1,)
        with pytest.raises(TypeError, match=r"\[text\]"):
            model.build_index(text)
    assert len(model.build_index(series)) == 2
    singles: list[Any] = ["file.txt", b"file.txt"]
    for single in singles:
        with pytest.raises(TypeError, match=r"pathlib\.Path\(FILE\)"):
            model.build_index(single)
    for method in (model.paraphrases, model.count_tokens):
        path: Any = Path("file.txt")
        with pytest.raises(TypeError, match="read_text"):
            method(path)
    calls = (model.encode, model.count_tokens, model.build_index, model.add, model.search, model.paraphrases)
    call: Any
    for call in (*calls, lambda texts: model.similarity("a", texts)):
        wrong: Any
        for wrong in (pd.DataFrame({"q": ["a"]}), {"q": ["a"]}):
            with pytest.raises(TypeError, match=r"df\['q'\]"):
                call(wrong)
        with pytest.raises(UserError, match="Text 1"):
            call(["a cat", "bad \ud83d"])
    assert len(model.build_index(["a"])) == 1


def test_mistakes_are_named(model: SimCSE, small_model: Path) -> None:
    mixed: Any = iter(["a", "b", "c", 7])
    with pytest.raises(TypeError, match=r"Text 3 is int 7"):
        list(model.encode(mixed, batch_size=2))
    wrong: Any
    for wrong in (0, 1.5, "8", None):
        with pytest.raises(ValueError, match="batch_size is"):
            model.encode(TEXTS, batch_size=wrong)
        with pytest.raises(UserError, match="max_length is"):
            SimCSE(small_model, max_length=wrong or 1)
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        list(model.encode(Path("nowhere.txt")))
    anything: Any = SimCSE
    for call in (
        lambda: anything(small_model, device="cpu"),
        lambda: anything.encode(model, "a", normalize_to_unit=True, device="cpu"),
        lambda: anything.encode(model, "a", show_progress_bar=True),
    ):
        with pytest.raises(TypeError, match=r"normalize\b|show_progress\b|JAX_PLATFORMS"):
            call()


def test_cosines_are_at_most_1_and_a_text_reaches_1(small_model: Path) -> None:
    model, texts = SimCSE(small_model), [f"a {color} dog {n}" for n in range(40) for color in ("red", "blue")]
    found = model.similarity(texts, texts)
    assert found.max() <= 1
    assert found.min() >= -1
    for storage in STORAGES:
        index = model.build_index(texts, storage=storage)
        for text, hits in zip(texts, model.search(texts, len(texts), threshold=1.0), strict=True):
            assert text in [hit.text for hit in hits]
            assert max(hit.score for hit in hits) <= 1
        assert index.lowest(0.5) == pytest.approx(0.5, abs=2e-3)
    assert (0, 1, pytest.approx(1, abs=1e-6)) in model.paraphrases(["A dog", "a dog", "music"], threshold=1.0)


def test_a_pickled_model_is_opened_again_and_an_index_is_refused(small_model: Path, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(small_model, copied)
    model = SimCSE(copied, pooler="cls", max_length=20)
    pickled = pickle.dumps(model)
    again = pickle.loads(pickled)
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    model.build_index(TEXTS)
    with pytest.raises(TypeError, match="save"):
        pickle.dumps(model)
    pickled = pickle.dumps(SimCSE(copied))
    shutil.rmtree(copied)
    shutil.copytree(export_small(tmp_path / "other", seed=1), copied)
    with pytest.raises(UserError, match="changed"):
        pickle.loads(pickled)


def test_a_forked_process_says_spawn(
    model: SimCSE, expected: np.ndarray, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SentenceIndex(model.width, "abc")
    index.add(TEXTS, expected)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for call in (lambda: model.encode("a"), lambda: index.search(expected), lambda: SimCSE(small_model)):
        with pytest.raises(UserError, match="spawn"):
            call()


def test_a_vector_that_is_not_finite_is_an_error(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimCSE(small_model)
    broken = np.ones((3, model.width), np.float32)
    broken[1, 2] = np.nan
    monkeypatch.setattr(model.encoder._sentences, "encode", lambda *_: broken)
    with pytest.raises(UserError, match="text 1, 'b'"):
        model.encode(["a", "b", "c"])


@pytest.mark.usefixtures("dead_hub")
def test_a_model_that_is_not_there_is_told_in_a_few_lines() -> None:
    with pytest.raises(UserError, match="no folder runs/nothing") as caught:
        SimCSE("runs/nothing")
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) < 15


def test_similarity_of_strings_lists_and_matrices(model: SimCSE, expected: np.ndarray) -> None:
    cosines = expected @ expected.T
    np.testing.assert_allclose(model.similarity(TEXTS, TEXTS), cosines, atol=2e-6)
    assert model.similarity(TEXTS[0], TEXTS[1]) == pytest.approx(cosines[0, 1], abs=2e-6)
    assert isinstance(model.similarity(TEXTS[0], TEXTS[1]), float)
    np.testing.assert_allclose(model.similarity(TEXTS[0], TEXTS), cosines[0], atol=2e-6)
    np.testing.assert_allclose(model.similarity(3 * expected, TEXTS[1]), cosines[:, 1], atol=2e-6)
    with pytest.raises(ValueError, match=r"\[6, 3\]"):
        model.similarity(expected[:, :3], TEXTS)


def test_an_index_from_the_first_sentence_to_the_next_start(small_model: Path, tmp_path: Path) -> None:
    model = SimCSE(small_model)
    with pytest.raises(UserError, match="build_index"):
        model.search("a dog")
    assert len(model.build_index(TEXTS[:4])) == 4
    hits = model.search("a red dog sleeps", top_k=2)
    assert [(hit.text, hit.id) for hit in hits] == [("a red dog sleeps", 0), ("a red dog sleeps", 3)]
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert model.add("a man plays music").tolist() == [4]
    model.remove([0, 3])
    assert model.search("a red dog sleeps")[0].id in (1, 2, 4)
    model.save(tmp_path / "index")
    again = SimCSE(small_model)
    again.load_index(tmp_path / "index")
    assert again.search(["a man plays music", "a dog"], 3) == model.search(["a man plays music", "a dog"], 3)
    everything = model.search("a man plays music", 100)
    assert len(everything) == 3
    above = model.search("a man plays music", 100, threshold=everything[1].score)
    assert above == everything[:2]


def test_an_index_of_another_model_is_refused(small_model: Path, tmp_path: Path) -> None:
    model = SimCSE(small_model)
    model.build_index(TEXTS)
    model.save(tmp_path / "index")
    for name, other in (
        ("weights", SimCSE(export_small(tmp_path, seed=1))),
        ("max_length", SimCSE(small_model, max_length=16)),
        ("pooler", SimCSE(small_model, pooler="cls")),
    ):
        with pytest.raises(UserError, match=name):
            other.load_index(tmp_path / "index")


def test_texts_are_cut_where_the_call_says_or_the_folder_or_at_128(small_model: Path, tmp_path: Path) -> None:
    said, long = tmp_path / "said", tmp_path / "long"
    for folder in (said, long):
        shutil.copytree(small_model, folder)
    (said / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    sizes = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps(sizes | {"max_position_embeddings": 200}))
    (long / "sentence_bert_config.json").write_text("{}")
    (long / "tokenizer_config.json").write_text("{}")
    given = {small_model: (None, 16, 512), said: (None, 16, 512), long: (None, 16, 180)}
    found = {folder.name: [SimCSE(folder, max_length=each).max_length for each in given[folder]] for folder in given}
    assert found == {small_model.name: [64, 16, 64], "said": [9, 16, 64], "long": [128, 16, 180]}
    with pytest.raises(UserError, match="3 to 64"):
        SimCSE(small_model, max_length=2)

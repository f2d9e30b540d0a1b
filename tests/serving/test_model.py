"""`SimCSE`: one text or many, streams, similarities and search, by the vectors that the encoder gives."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from simcse_jax import SimCSE
from simcse_jax.embedding_model import open_model
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


def test_what_is_no_text(model: SimCSE) -> None:
    with pytest.raises(TypeError, match=r"Text 1 is int 7"):
        model.encode(["a", 7])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode(TEXTS, batch_size=0)
    with pytest.raises(TypeError, match="str"):
        model.build_index("a sentence")
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        list(model.encode(Path("nowhere.txt")))


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


def test_texts_are_cut_at_128_tokens_or_where_the_model_does(small_model: Path) -> None:
    assert SimCSE(small_model).encoder.max_length == 64
    assert SimCSE(small_model, max_length=16).encoder.max_length == 16
    with pytest.raises(UserError, match="3 to 64"):
        SimCSE(small_model, max_length=2)


def test_paraphrases(model: SimCSE) -> None:
    pairs = model.paraphrases(["a red dog sleeps", "two children play in the park", "a red dog sleeps."], 0.5)
    assert pairs[0][:2] == (0, 2)

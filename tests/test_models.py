"""The small encoders in models/: their size, the masked-LM head of wiki-small, and what their embeddings know."""

from pathlib import Path

import numpy as np
import pytest

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.data.vocabulary import id_count
from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.sts import TASKS, evaluate_sts, load_sts
from simcse_jax.model_folder.pretrained import load_params

MODELS = Path(__file__).parent.parent / "models"
FOLDER = MODELS / "wiki-small"


@pytest.mark.parametrize("name", ["wiki-small", "mini"])
def test_it_is_small_and_says_nothing_of_where_it_was_made(name: str) -> None:
    folder = MODELS / name
    assert (folder / "model.safetensors").stat().st_size < 10e6
    for path in (*folder.glob("*.json"), folder / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert not any(place in text for place in ("/tmp/", "site-packages", "../shared"))


def test_it_has_a_head_that_knows_its_words() -> None:
    config = read_architecture(FOLDER)
    params = load_params(FOLDER, config, "none", mlm_head=True)
    assert params["mlm"]["bias"].shape == (id_count(load_tokenizer(FOLDER)),) == (config.vocab_size,)
    assert np.isfinite(params["layers"]["ffn"]["up"]["kernel"]).all()


def test_like_sentences_are_alike() -> None:
    texts = ["A man plays the guitar.", "A man is playing a guitar.", "The river flows into the northern sea."]
    z = open_model(str(FOLDER)).encode(texts, normalize=True)
    cosines = z @ z.T
    assert cosines[0, 1] > cosines[0, 2] + 0.1


def test_mini_knows_what_sentences_are_about() -> None:
    """The two that are alike share no word."""
    texts = ["Someone makes music.", "A woman plays the violin.", "The dam was built to store water."]
    margins = {}
    for name in ("wiki-small", "mini"):
        z = open_model(str(MODELS / name)).encode(texts, normalize=True)
        margins[name] = z[0] @ z[1] - z[0] @ z[2]
    assert margins["mini"] > max(0.2, margins["wiki-small"] + 0.2)


@pytest.mark.slow
def test_mini_has_the_scores_of_its_card(real_data: Path) -> None:
    card = (MODELS / "mini" / "README.md").read_text(encoding="utf-8").splitlines()
    written = [
        float(cell.strip(" *")) for line in card if line.startswith("| **mini**") for cell in line.split("|")[2:-1]
    ]
    encode, folder = open_model(str(MODELS / "mini")).encode, senteval_folder(str(real_data / "senteval"))
    found = [evaluate_sts(encode, load_sts(folder, task), task).value for task in TASKS]
    assert [*found, np.mean(found)] == pytest.approx(written, abs=0.02)
    assert written[-1] >= 72

"""The small pretrained encoder in models/: its size, its masked-LM head, and its embeddings."""

from pathlib import Path

import numpy as np

from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.data.vocabulary import id_count
from simcse_jax.embedding_model import open_model
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.model_folder.pretrained import load_params

FOLDER = Path(__file__).parent.parent / "models" / "wiki-small"


def test_it_is_small_and_says_nothing_of_where_it_was_made() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 10e6
    for path in (*FOLDER.glob("*.json"), FOLDER / "README.md"):
        assert "/tmp/" not in path.read_text(encoding="utf-8")


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

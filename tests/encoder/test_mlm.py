"""The head of masked language modelling against PyTorch's, and its way to Hugging Face's classes and back."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from simcse_jax import SimCSE
from simcse_jax.data.tokenizer import train_wordpiece
from simcse_jax.encoder.families.table import read_architecture
from simcse_jax.encoder.mlm import Predictor, mlm_scores, replace_tokens
from simcse_jax.encoder.model import Encoder
from simcse_jax.group import MaskedGroup
from simcse_jax.model_folder.export import export_model
from simcse_jax.model_folder.pretrained import load_params
from tests.packed import pack
from tests.torch_models import FAMILIES, VARIANTS, pad, random_model

LENGTHS = (7, 12, 3, 9)


def loaded(folder: Path) -> tuple[Encoder, Any]:
    config = read_architecture(folder)
    return Encoder(config, has_mlm_head=True), load_params(folder, config, "none", mlm_head=True)


def masked_group(rng: np.random.Generator) -> tuple[list[np.ndarray], Any, MaskedGroup, list[tuple[int, int]]]:
    """Sentences, their group, a "masked" copy that is the group itself, and (sentence, position) of each place."""
    tokens = [rng.integers(5, 120, length).astype(np.int32) for length in LENGTHS]
    group = pack(tokens, 16)
    at = [(sentence, position) for sentence, length in enumerate(LENGTHS) for position in range(1, length, 2)]
    places = [int(group.first_tokens[sentence]) + position for sentence, position in at]
    labels = [int(tokens[sentence][position]) for sentence, position in at]
    spare = np.zeros(3, np.int32)
    masked = MaskedGroup(group.ids, np.r_[places, spare].astype(np.int32), np.r_[labels, spare - 1].astype(np.int32))
    return tokens, group, masked, at


OF_EACH = {family: (family, {}) for family in FAMILIES} | VARIANTS


@pytest.mark.parametrize(("name", "unroll"), [(name, n % 2 == 0) for n, name in enumerate(OF_EACH)])
def test_scores_are_those_of_pytorch(name: str, unroll: bool, tmp_path: Path) -> None:
    family, changes = OF_EACH[name]
    model = random_model(family, "ForMaskedLM", **changes)
    model.save_pretrained(tmp_path)
    encoder, params = loaded(tmp_path)
    tokens, group, masked, at = masked_group(np.random.default_rng(0))
    ids, mask = pad(tokens, encoder.architecture.pad_token_id)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
    stacked = jax.tree.map(lambda x: x[None], (group, masked))
    run = jax.jit(lambda params: mlm_scores(encoder.clone(unroll=unroll), params, *stacked))
    found = np.asarray(run(params))
    assert found.shape == (1, len(masked.places), 120)
    np.testing.assert_allclose(
        found[0, : len(at)], [expected[sentence, position] for sentence, position in at], rtol=2e-4, atol=2e-4
    )


def test_an_export_with_both_heads_is_read_by_the_libraries_of_others(tmp_path: Path) -> None:
    """As a masked language model by transformers, with its head by sentence-transformers; and by us."""
    original = random_model("bert", "ForMaskedLM")
    original.save_pretrained(tmp_path / "source")
    encoder, params = loaded(tmp_path / "source")
    width, rng = encoder.architecture.hidden_size, np.random.default_rng(0)
    params["head"] = {"kernel": rng.normal(size=(width, width)), "bias": rng.normal(size=width)}
    params["head"] = jax.tree.map(np.float32, params["head"])
    train_wordpiece(["a story of stories", "two stories"] * 5, 60, tmp_path / "tokenizer")
    export_model(tmp_path / "out", params, encoder.architecture, tmp_path / "tokenizer", "cls", card={})

    masked, report = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert (type(masked).__name__, list(report["missing_keys"])) == ("BertForMaskedLM", [])
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(masked.eval()(input_ids=ids).logits, original(input_ids=ids).logits)
    texts = ["a story", "two stories of a story"]
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(SimCSE(str(tmp_path / "out")).encode(texts), theirs, atol=1e-5)
    again = load_params(tmp_path / "out", read_architecture(tmp_path / "out"), "load", mlm_head=True)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_predictor_writes_the_likeliest_other_word(tmp_path: Path) -> None:
    """Where tokens are hidden, and nowhere else; never the token itself, nor a special one."""
    model = random_model("bert", "ForMaskedLM")
    model.save_pretrained(tmp_path)
    encoder, params = loaded(tmp_path)
    tokens, group, hidden, at = masked_group(np.random.default_rng(0))
    # Half of the tokens, or the likeliest would hardly be among them.
    special = np.arange(encoder.architecture.vocab_size) < 60
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], (group, hidden))
    ids = np.asarray(replace_tokens(Predictor(encoder, special), params, *stacked))[0]
    padded, mask = pad(tokens, encoder.architecture.pad_token_id)
    with torch.no_grad():
        scores = model(input_ids=padded, attention_mask=mask).logits.numpy()
    expected = group.ids.copy()
    for (sentence, position), place in zip(at, hidden.places, strict=False):
        row = scores[sentence, position].copy()
        row[special] = row[tokens[sentence][position]] = -np.inf
        expected.ravel()[place] = row.argmax()
    np.testing.assert_array_equal(ids, expected)
    assert (ids != group.ids).sum() == len(at)

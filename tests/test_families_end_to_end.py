"""Every family from a published folder to one that sentence-transformers reads: two losses, dev scores, export."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from simcse_jax import SimCSE
from simcse_jax.model_folder.run_folder import export_run
from tests.small_models import FROM_FOLDER, train_small
from tests.test_export import train_tokenizer
from tests.torch_models import FAMILIES, random_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_trained_and_read_by_sentence_transformers(family: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    train_tokenizer(family, source)
    random_model(family, "ForMaskedLM", vocab_size=500, max_position_embeddings=66).save_pretrained(source)
    changes = FROM_FOLDER | {"model__name": str(source), "mlm__weight": 0.1, "model__train_pooler": "cls"}
    run = train_small(tmp_path / "run", tmp_path / "cache", **changes)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["mlm_loss"]) for line in lines if "loss" in line)
    texts = ["A man plays the guitar.", "two dogs", ""]
    ours = SimCSE(str(run)).encode(texts)
    export_run(run, tmp_path / "out")
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(SimCSE(str(tmp_path / "out")).encode(texts), ours, atol=1e-6)

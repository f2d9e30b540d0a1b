"""Test that mteb runs our models by its own protocol and gets our scores."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.mteb_encoder import MtebEncoder
from simcse_jax.system.errors import UserError
from tests.small_models import export_small

mteb = pytest.importorskip("mteb", reason="pip install mteb")
PAIRS = 120


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MtebEncoder:
    return MtebEncoder(str(export_small(tmp_path_factory.mktemp("small"))))


def _task() -> Any:
    """Return an STS task of mteb with the demo's pairs."""
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    pairs = load_graded_pairs("demo:test")

    class DemoSTS(AbsTaskSTS):
        metadata = TaskMetadata(
            name="DemoSTS", type="STS", main_score="cosine_spearman", description="", reference=None,
            dataset={"path": "NA", "revision": "NA"}, category="t2t", modalities=["text"], eval_splits=["test"],
            eval_langs=["eng-Latn"], date=("2026-01-01", "2026-01-01"), dialect=[], domains=[], task_subtypes=[],
            license="not specified", annotations_creators="derived", sample_creation="created", bibtex_citation="",
        )  # fmt: skip
        min_score, max_score = 0, 5

        def load_data(self, *_: Any, **__: Any) -> None:
            columns = {"sentence1": pairs.first[:PAIRS], "sentence2": pairs.second[:PAIRS], "score": pairs.gold[:PAIRS]}
            made: Any = DatasetDict({"test": Dataset.from_dict(columns)})
            self.dataset = made
            self.data_loaded = True

    return DemoSTS()


def test_mteb_knows_it_as_an_encoder(encoder: MtebEncoder) -> None:
    from mteb.models import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert meta.name is not None
    assert meta.name.startswith("simcse_jax/")
    assert meta.revision is not None
    assert meta.revision.startswith(encoder.model.fingerprint)
    assert (meta.embed_dim, meta.max_tokens) == (32, 64)


def test_mteb_comes_to_our_score(encoder: MtebEncoder, tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    result = mteb.evaluate(encoder, _task(), cache=ResultCache(tmp_path), show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    pairs = load_graded_pairs("demo:test")
    some = type(pairs)("some", pairs.gold[:PAIRS], pairs.first[:PAIRS], pairs.second[:PAIRS])
    ours = evaluate_pairs(encoder.model.encode, some)
    assert 100 * scores["cosine_spearman"] == pytest.approx(ours["spearman"], abs=1e-3)
    assert 100 * scores["spearman"] == pytest.approx(ours["spearman"], abs=1e-3)  # by our `similarity_pairwise`
    assert 100 * scores["cosine_pearson"] == pytest.approx(ours["pearson"], abs=1e-3)


def test_similarities_are_cosines(encoder: MtebEncoder) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    expected = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    np.testing.assert_allclose(encoder.similarity(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(a, b), np.diag(expected), atol=1e-6)
    many = rng.normal(size=(200, 7))
    assert max(encoder.similarity(many, many).max(), encoder.similarity_pairwise(many, many).max()) <= 1


def test_batches_keep_their_order(encoder: MtebEncoder) -> None:
    texts = [f"{word} dog" for word in ("a", "the", "one", "no", "red")]
    batches = [{"text": texts[:2]}, {"text": texts[2:]}]
    np.testing.assert_array_equal(encoder.encode(batches), encoder.model.encode(texts))


def test_queries_documents_and_tasks_have_their_prompts(encoder: MtebEncoder, tmp_path: Path) -> None:
    from mteb.types import PromptType

    folder = tmp_path / "model"
    shutil.copytree(encoder.model.name, folder)
    settings = folder / "config_sentence_transformers.json"
    prompts = {"query": "a man: ", "document": "the dog: ", "DemoSTS": "music "}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"prompts": prompts}))
    prompted, texts, task = MtebEncoder(str(folder)), ["a red dog", "the man sings"], _task().metadata
    for kind, of, prompt in (
        (PromptType.query, None, "a man: "),
        (PromptType.document, None, "the dog: "),
        (None, task, "music "),
        (PromptType.query, task, "music "),  # a prompt of the task goes first
    ):
        found = prompted.encode([{"text": texts}], task_metadata=of, prompt_type=kind)
        np.testing.assert_array_equal(found, encoder.model.encode([prompt + text for text in texts]))


def test_revision_follows_what_changes_the_vectors(encoder: MtebEncoder) -> None:
    other = MtebEncoder(encoder.model.name, pooler="cls_before_pooler")
    assert other.mteb_model_meta.revision != encoder.mteb_model_meta.revision
    assert other.model.fingerprint == open_model(encoder.model.name).fingerprint


def test_what_is_not_ours_to_choose_is_refused(encoder: MtebEncoder) -> None:
    with pytest.raises(UserError, match="set JAX_PLATFORMS"):
        MtebEncoder(encoder.model.name, device="cuda")
    with pytest.raises(UserError, match="leave it out"):
        MtebEncoder(encoder.model.name, "main")

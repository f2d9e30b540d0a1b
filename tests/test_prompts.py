"""Prompts from the recipe to whoever encodes: one text has one vector in training, in the run and in its export."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from simcse_jax import SimCSE
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.embedding_model import open_model
from simcse_jax.encoding import SentenceEncoder
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.retrieval.folder import write_task
from simcse_jax.evaluation.retrieval.from_text import from_rows
from simcse_jax.evaluation.sts import evaluate_pairs
from simcse_jax.evaluation.suite import TaskSuite
from simcse_jax.judging import judge_models
from simcse_jax.model_folder.run_folder import export_run
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import normalize
from simcse_jax.training.display import describe
from tests.conftest import MakeOnce
from tests.small_models import demo_files, prepare_small, states_of, train_small

TEXTS = ["a red dog sleeps", "two children play in the park", "a man plays music", "music " * 20]
PROMPTS = {"query": "a man: ", "document": "the dog: "}
RECIPE: dict[str, Any] = {
    "data__files": str(demo_files() / "triplets.csv"),
    "data__positive": "columns",
    "data__prompts": ",".join(PROMPTS.values()),
    "data__max_length": 24,
    "optimizer__learning_rate": 3e-2,
}


@pytest.fixture(scope="session", params=["included", "left out"])
def run(request: pytest.FixtureRequest, make_once: MakeOnce) -> Path:
    """Return a run with prompts, whose tokens are pooled or not."""
    pooled = request.param == "included"

    def make(place: Path) -> None:
        train_small(place / "run", place / "cache", **RECIPE, data__include_prompt=pooled)

    return make_once(f"prompts-{pooled}", make) / "run"


def test_a_text_has_one_vector_everywhere(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export")
    there = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    assert there.prompts == PROMPTS
    assert there.default_prompt_name == "query"
    pooled = json.loads((run / "config.json").read_text())["recipe"]["data.include_prompt"]
    here = [SimCSE(run), SimCSE(tmp_path / "export")]
    assert here[0].fingerprint == here[1].fingerprint
    for model in here:
        assert model.prompts == PROMPTS
        assert model.encoder.texts.include_prompt is pooled
        found = {
            "the default": (model.encode(TEXTS), there.encode(TEXTS)),
            "a query": (model.encode(TEXTS, prompt_name="query"), there.encode_query(TEXTS)),
            "a document": (model.encode(TEXTS, prompt_name="document"), there.encode_document(TEXTS)),
            "words": (model.encode(TEXTS, prompt="music "), there.encode(TEXTS, prompt="music ")),
            "one": (model.encode(TEXTS[0], prompt_name="document")[None], there.encode_document(TEXTS[:1])),
            "none": (model.encode(TEXTS, prompt=""), there.encode(TEXTS, prompt="")),
        }
        for name, (ours, theirs) in found.items():
            np.testing.assert_allclose(ours, normalize(theirs), rtol=0, atol=2e-5, err_msg=name)
        assert np.abs(found["a query"][0] - found["a document"][0]).max() > 1e-3
        np.testing.assert_array_equal(found["the default"][0], found["a query"][0])
        assert model.count_tokens(TEXTS, prompt=PROMPTS["document"]).tolist() == [
            len(there.tokenizer(PROMPTS["document"] + text)["input_ids"]) for text in TEXTS
        ]


def test_the_dev_score_is_that_of_encode(run: Path) -> None:
    best = max((line for line in read_metrics(run) if "dev/spearman" in line), key=lambda line: line["dev/spearman"])
    pairs = load_graded_pairs(str(demo_files() / "dev.tsv"))
    model = open_model(str(run))
    with_prompt = evaluate_pairs(model.encode, pairs)["spearman"]
    assert with_prompt == pytest.approx(best["dev/spearman"], abs=1e-3)
    assert abs(evaluate_pairs(lambda texts: model.encode(texts, prompt=""), pairs)["spearman"] - with_prompt) > 1e-3
    before = model.before_training()
    assert before is not None
    first = read_metrics(run)[0]
    assert evaluate_pairs(before[0], pairs)["spearman"] == pytest.approx(first["dev/spearman"], abs=0.02)


def test_the_vectors_of_training_are_those_of_encode(tmp_path: Path) -> None:
    """The loss of the first step, without dropout, is InfoNCE of the vectors that the folder's model gives."""
    for pooled in (True, False):
        changes = RECIPE | {"data__include_prompt": pooled, "model__dropout": 0.0, "model__pooler": "avg"}
        prepared = prepare_small(tmp_path / f"run{pooled}", tmp_path / "cache", **changes)
        _, [metrics] = states_of(prepared, 1)
        rows = prepared.batches.example_ids(0)
        tokenizer = load_tokenizer(tmp_path / f"run{pooled}" / "tokenizer")
        mesh = prepared.program.mesh
        texts = list(csv.reader((demo_files() / "triplets.csv").read_text().splitlines()))[1:]
        params = prepared.initial_state().params
        z = []
        for column, prompt in enumerate((*PROMPTS.values(), PROMPTS["document"])):
            encoder = SentenceEncoder(
                prepared.encoder, tokenizer, mesh, "avg", max_length=24, prompt=prompt, include_prompt=pooled
            )
            z.append(normalize(encoder.encode(params, [texts[row][column] for row in rows]).astype(np.float64)))
        logits = z[0] @ np.concatenate(z[1:]).T / 0.05
        same = np.array(
            [[texts[a][0] == texts[b][c] or texts[a][1] == texts[b][c] for c in (1, 2) for b in rows] for a in rows]
        )
        own = np.eye(len(rows), 2 * len(rows), dtype=bool)
        logits[same & ~own] = -np.inf
        expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[own])
        assert metrics["loss"] == pytest.approx(expected, abs=2e-4)
        assert "prompts: 'a man: ' before sent0, 'the dog: ' before sent1, 'the dog: ' before hard_neg" in describe(
            prepared
        )


def test_what_cannot_have_a_prompt_is_refused(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data__prompts": "a,b,c,d"}, r"4 prompts[\s\S]*3 columns of text: sent0, sent1, hard_neg"),
        ({"data__prompts": '"open'}, r"data\.prompts = '\"open'"),
        ({"data__prompts": "", "data__include_prompt": False}, r"data\.include_prompt"),
        ({"data__positive": "crop", "data__files": str(demo_files() / "sentences.txt")}, r"data\.prompts"),
        ({"data__max_length": 6}, r"leaves none for the text"),
    ]
    for changes, message in wrong:
        with pytest.raises(UserError, match=message):
            prepare_small(tmp_path / "run", tmp_path / "cache", **RECIPE | changes)


def test_names_and_words_of_prompts_are_checked(run: Path) -> None:
    model = SimCSE(run)
    with pytest.raises(UserError, match=r"no prompt of the name 'passage'; it has query, document"):
        model.encode(TEXTS, prompt_name="passage")
    with pytest.raises(UserError, match="both given"):
        model.encode(TEXTS, prompt_name="query", prompt="a")
    model.build_index(TEXTS)
    vectors: Any = model.encode(TEXTS)
    with pytest.raises(UserError, match="queries are vectors"):
        model.search(vectors, prompt_name="query")


def test_an_index_keeps_the_prompt_of_its_texts(run: Path, tmp_path: Path) -> None:
    model = SimCSE(run)
    index = model.build_index(TEXTS[:2], prompt_name="document")
    model.add(TEXTS[2])
    queries = model.encode(TEXTS, prompt_name="query")
    expected = queries @ model.encode(TEXTS[:3], prompt_name="document").T
    scores, ids = index.nearest(queries, 3)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, ids, axis=1), rtol=0, atol=1e-5)
    assert model.search(TEXTS[0], 1, prompt_name="document")[0].score == pytest.approx(1, abs=1e-5)
    model.save(tmp_path / "index")
    again = SimCSE(run)
    again.load_index(tmp_path / "index")
    again.add(TEXTS[3])
    assert again.search(TEXTS[3], 1, prompt_name="document")[0].score == pytest.approx(1, abs=1e-5)
    model.build_index(TEXTS)
    model.save(tmp_path / "plain")
    again.load_index(tmp_path / "plain")
    assert again.index is not None
    assert again.index.prompt is None


def test_another_prompt_may_be_judged_and_is_said(run: Path) -> None:
    pairs = load_graded_pairs("demo:dev")
    models = [open_model(str(run)), open_model(str(run), prompt_name="document"), open_model(str(run), prompt="")]
    results = judge_models(models, TaskSuite((), pairs=("demo:dev",)))
    assert len(results.entries) == 3  # no two are runs of one recipe
    pooled = models[0].texts.include_prompt
    for result, prompt in zip(results.models, ("a man: ", "the dog: ", ""), strict=True):
        expected = evaluate_pairs(lambda texts, prompt=prompt: open_model(str(run)).encode(texts, prompt=prompt), pairs)
        assert result.scores["demo:dev"].value == pytest.approx(expected["spearman"], abs=1e-4)
        assert result.protocol["prompt"] == repr(prompt) + ("" if pooled else ", not pooled")
    assert len({model.fingerprint for model in models}) == 3
    again = pickle.loads(pickle.dumps(models[1]))
    np.testing.assert_array_equal(again.encode(TEXTS), models[1].encode(TEXTS))
    np.testing.assert_array_equal(models[1].cut_at(40).encode(TEXTS[:1]), models[1].encode(TEXTS[:1]))


def test_the_prompts_of_a_source_are_those_of_queries_and_of_documents(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(run, tmp_path / "export")
    settings = tmp_path / "export" / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    content["prompts"] |= {"ask": "a man: ", "ask_document": "a bird: "}  # the query's is the model's default, too
    settings.write_text(json.dumps(content))
    model = open_model(str(tmp_path / "export"), prompt_name="ask")
    rows = [(text, f"{text} {text}") for text in TEXTS[:3]]
    task = from_rows("made", rows, "pairs")
    encoded: dict[str | None, list[str]] = {}
    encode = model.encode

    def recorded(texts: Any, *given: Any, prompt: str | None = None, **more: Any) -> np.ndarray:
        encoded.setdefault(prompt, []).extend(texts)
        return encode(texts, *given, prompt=prompt, **more)

    monkeypatch.setattr(model, "encode", recorded)
    write_task(tmp_path / "task", task)
    [result] = judge_models([model], TaskSuite((), own=(f"retrieval:{tmp_path / 'task'}",))).models
    assert result.protocol["prompt"].startswith("'a man: '")
    assert result.protocol["prompts"] == {"document": "a bird: "}
    assert sorted(encoded["a bird: "]) == sorted(task.documents.values())
    assert sorted(encoded[None]) == sorted(task.queries.values())
    assert model.cut_at(40).role_prompts == model.role_prompts
    assert open_model(str(tmp_path / "export"), prompt_name="document").role_prompts == {}


def test_a_model_without_prompts_is_what_it_was(small_run: Path, small_model: Path) -> None:
    for folder in (small_run, small_model):
        model = open_model(str(folder))
        assert model.texts.prompts == {}
        assert "prompt" not in judge_models([model], TaskSuite((), pairs=("demo:dev",))).models[0].protocol

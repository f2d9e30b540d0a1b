"""Test a retrieval task from its files to tables and intervals."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data import demo
from simcse_jax.embedding_model import open_model
from simcse_jax.evaluation.compare import compare
from simcse_jax.evaluation.results import Entry, ModelResult
from simcse_jax.evaluation.retrieval import task as module
from simcse_jax.evaluation.retrieval.data import Judgment, Record, make_retrieval
from simcse_jax.evaluation.retrieval.from_text import from_rows
from simcse_jax.evaluation.retrieval.measures import NAMES, measure
from simcse_jax.evaluation.retrieval.task import evaluate_retrieval, rank
from simcse_jax.evaluation.suite import TaskSuite
from simcse_jax.judging import judge_models, write_results
from simcse_jax.system.errors import UserError
from tests.evaluation.retrieval.made_retrieval import (
    THEIRS,
    random_task,
    scored,
    trec_scores,
    vectors_for,
    write_folder,
)


def test_a_query_does_not_find_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pytrec_eval without those documents, as BEIR removes them; also where there are no other ranks left."""
    monkeypatch.setattr(module, "DEPTH", 40)
    rng = np.random.default_rng(3)
    texts = [Record("", f"{n}", f"text {n}") for n in range(60)]
    judgments = [
        Judgment("", f"{n}", f"{d}", "1") for n in range(30) for d in rng.choice(60, 5, replace=False) if d != n
    ]
    for self_hits, drops in (("", True), ("keep", False)):
        made = make_retrieval("made", "test", texts, texts[:30], judgments, self_hits)
        run = scored(vectors_for(), made)
        if drops:
            run = {q: {d: s for d, s in own.items() if d != q} for q, own in run.items()}
        ranking = rank(vectors_for(), made)
        for name in ("ndcg@10", "mrr@10", "recall@1"):
            expected = trec_scores(run, made.relevant)[name]
            np.testing.assert_allclose(measure(ranking, name), expected, atol=1e-9)


def test_documents_are_encoded_in_chunks_and_each_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = random_task()
    documents = {key: text if n % 3 else "the same" for n, (key, text) in enumerate(made.documents.items())}
    queries = made.queries | {next(iter(made.queries)): next(reversed(documents.values()))}
    made = dataclasses.replace(made, documents=documents, queries=queries)
    encode, seen = vectors_for(), []

    def noted(texts: list[str]) -> np.ndarray:
        seen.append(len(texts))
        return encode(texts)

    whole = evaluate_retrieval(noted, made, "made")
    assert seen == [240]  # one query is a document
    monkeypatch.setattr(module, "CHUNK", 64)
    seen.clear()
    assert evaluate_retrieval(noted, made, "made").values == whole.values
    assert seen == [40, 64, 64, 64, 9]


def test_intervals_are_over_queries() -> None:
    made = random_task()
    scores = [evaluate_retrieval(vectors_for(seed), made, "made") for seed in (0, 1)]
    entries = [Entry(name, (ModelResult(name, {}, {"made": s}),)) for name, s in zip("ab", scores, strict=True)]
    [found], _ = compare(entries, {})
    assert found.points == pytest.approx(scores[1].value - scores[0].value)
    assert found.low < found.points < found.high
    for score in scores:
        assert score.each is not None
        assert 100 * score.each.mean() == pytest.approx(score.values["ndcg@10"])
    difference = 100 * (scores[1].each - scores[0].each)  # type: ignore[operator]
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    other = evaluate_retrieval(vectors_for(1), random_task(9), "made")
    assert compare([entries[0], Entry("c", (ModelResult("c", {}, {"made": other}),))], {})[0] == ()


def test_broken_vectors_are_refused() -> None:
    with pytest.raises(UserError, match="made: 340 of 340"):
        evaluate_retrieval(lambda texts: np.full((len(texts), 4), np.nan, np.float32), random_task(), "made")


@pytest.mark.slow
def test_prompts_for_queries_and_documents_are_those_of_sentence_transformers(
    small_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, TripletEvaluator

    folder = Path(shutil.copytree(small_model, tmp_path / "model"))
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    prompts = {"query": "music loud dog: ", "document": "a man sings: "}
    path.write_text(json.dumps(settings | {"prompts": prompts}))
    rows = demo.triplets(count=60, seed=5)
    lines = [json.dumps(dict(zip(("anchor", "positive", "negative"), row, strict=True))) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    made = from_rows("made", rows, "pairs")
    tasks = (f"retrieval:{write_folder(tmp_path / 'task', made)}", f"triplets:{tmp_path / 'rows.jsonl'}")
    [plain], [found] = (
        judge_models([open_model(str(where))], TaskSuite((), own=tasks)).models for where in (small_model, folder)
    )
    peer = SentenceTransformer(str(folder))
    relevant: Any = {query: set(own) for query, own in made.relevant.items()}
    expected = InformationRetrievalEvaluator(made.queries, made.documents, relevant)(peer)
    for name, theirs in THEIRS.items():
        assert found.scores[tasks[0]].values[name] == pytest.approx(100 * expected[f"cosine_{theirs}"], abs=1e-3), name
    anchors, positives, negatives = map(list, zip(*rows, strict=True))
    accuracy = TripletEvaluator(anchors, positives, negatives)(peer)["cosine_accuracy"]
    assert found.scores[tasks[1]].value == pytest.approx(100 * accuracy, abs=1e-3)
    assert found.protocol["prompts"] == {"query": prompts["query"], "document": prompts["document"]}
    assert "prompts" not in plain.protocol
    assert [score.values for score in plain.scores.values()] != [score.values for score in found.scores.values()]


@pytest.mark.medium
def test_results_have_it_like_any_other_task(small_model: Path, tmp_path: Path) -> None:
    task = f"retrieval:{write_folder(tmp_path / 'task', random_task(documents=50))}"
    lost = f"retrieval:{tmp_path / 'lost'}"
    results = judge_models([open_model(str(small_model))], TaskSuite((), own=("demo:dev", task, lost)))
    write_results(results, tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert set(written["scores"]) == {"demo:dev", task}
    assert list(written["failures"]) == [lost]
    assert tuple(written["scores"][task]) == NAMES
    protocol = written["protocol"]["tasks"][task]
    assert (protocol["headline"], protocol["queries"], protocol["documents"]) == ("ndcg@10", 40, 50)
    page = (tmp_path / "report.html").read_text()
    assert f"{written['scores'][task]['ndcg@10']:.2f}" in page
    assert "capped map@100" in page

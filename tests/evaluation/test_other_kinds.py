"""Test reranking, triplets, pair classification and clustering against sentence-transformers, scikit-learn and mteb."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.evaluation.clustering import evaluate_clustering, load_clustering
from simcse_jax.evaluation.compare import compare
from simcse_jax.evaluation.kinds import KINDS, load_task, name_task, parse_task, score_task
from simcse_jax.evaluation.pair_classification import (
    average_precision,
    evaluate_pair_classification,
    load_labelled_pairs,
)
from simcse_jax.evaluation.reranking import evaluate_reranking, load_reranking
from simcse_jax.evaluation.results import Encode, Entry, ModelResult
from simcse_jax.evaluation.triplets import evaluate_triplets, load_triplets
from simcse_jax.system.errors import UserError
from tests.evaluation.retrieval.made_retrieval import TheirModel, random_task, vectors_for, write_folder


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _csv(path: Path, rows: list[tuple[Any, ...]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def _lists(count: int = 30) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "query": f"query {n}",
            "positive": [f"{n} positive {p}" for p in range(rng.integers(1, 5))],
            "negative": [f"{n} negative {p}" for p in range(rng.integers(1, 25))],
        }
        for n in range(count)
    ]


@pytest.mark.medium
@pytest.mark.parametrize("signs", [False, True], ids=["", "some equal cosines"])
def test_reranking_is_that_of_sentence_transformers(tmp_path: Path, signs: bool) -> None:
    from sentence_transformers.sentence_transformer.evaluation import RerankingEvaluator

    rows, encode = _lists(), vectors_for(width=4 if signs else 12, signs=signs)
    model: Any = TheirModel(encode)
    expected = RerankingEvaluator(rows)(model)
    found = evaluate_reranking(encode, load_reranking(_jsonl(tmp_path / "lists.jsonl", rows)), "made")
    assert found.headline == "map"
    for name in ("map", "ndcg@10", *(["mrr@10"] if not signs else [])):  # theirs ranks equal cosines at random
        assert found.values[name] == pytest.approx(100 * expected[name], abs=1e-4), name
    flat = [(row["query"], p, n) for row in rows for p in row["positive"] for n in row["negative"]]
    table = load_reranking(_csv(tmp_path / "flat.csv", [("query", "pos", "neg"), *flat]))
    assert evaluate_reranking(encode, table, "made").values == found.values


def test_equal_cosines_do_not_favour_the_relevant() -> None:
    from simcse_jax.evaluation.reranking import _measures

    assert _measures(np.zeros(4, np.float32), 1)[:2] == (0.25, 0.25)


@pytest.mark.medium
def test_triplets_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

    rows = [(f"a {n}", f"p {n}", f"n {n}") for n in range(200)]
    encode = vectors_for()
    model: Any = TheirModel(encode)
    anchors, positives, negatives = map(list, zip(*rows, strict=True))
    expected = TripletEvaluator(anchors, positives, negatives)(model)
    source = _csv(tmp_path / "nli.csv", [("sent0", "sent1", "hard_neg"), *rows])
    found = evaluate_triplets(encode, load_triplets(source), "made")
    assert found.value == pytest.approx(100 * expected["cosine_accuracy"], abs=1e-4)
    assert evaluate_triplets(lambda texts: np.ones((len(texts), 2)), load_triplets(source), "made").value == 0


def _labelled(count: int = 300) -> list[tuple[Any, ...]]:
    return [(n % 3 == 0, f"first {n}", f"second {n}") for n in range(count)]


@pytest.mark.medium
@pytest.mark.parametrize("signs", [False, True], ids=["", "many equal cosines"])
def test_pair_classification_is_that_of_sentence_transformers(tmp_path: Path, signs: bool) -> None:
    from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator

    rows, encode = _labelled(), vectors_for(width=4 if signs else 6, signs=signs)
    model: Any = TheirModel(encode)
    labels, first, second = map(list, zip(*rows, strict=True))
    expected = BinaryClassificationEvaluator(first, second, [int(label) for label in labels])(model)
    source = _csv(tmp_path / "pairs.csv", [("label", "sentence1", "sentence2"), *rows])
    found = evaluate_pair_classification(encode, load_labelled_pairs(source), "made")
    for name in ("ap", "f1", "accuracy", "precision", "recall"):
        assert found.values[name] == pytest.approx(100 * expected[f"cosine_{name}"], abs=1e-3), name
    for name in ("f1_threshold", "accuracy_threshold"):
        assert found.values[name] == pytest.approx(expected[f"cosine_{name}"], abs=1e-5), name


def test_intervals_of_average_precision(tmp_path: Path) -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    cosines, gold = rng.integers(0, 9, (20, 50)) / 10, rng.integers(0, 2, (20, 50)).astype(float)
    expected = [average_precision_score(labels, scores) for labels, scores in zip(gold, cosines, strict=True)]
    np.testing.assert_allclose(average_precision(cosines, gold), expected, atol=1e-12)
    assert average_precision(cosines[:1], 0 * gold[:1]) == [0]
    pairs = load_labelled_pairs(_csv(tmp_path / "pairs.csv", [("label", "sentence1", "sentence2"), *_labelled()]))
    scores = [evaluate_pair_classification(vectors_for(seed), pairs, "made") for seed in (0, 1)]
    entries = [Entry(name, (ModelResult(name, {}, {"made": s}),)) for name, s in zip("ab", scores, strict=True)]
    [found], _ = compare(entries, {})
    assert found.points == pytest.approx(scores[1].value - scores[0].value)
    assert found.low < found.points < found.high


@pytest.mark.slow
def test_clustering_is_that_of_mteb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mteb.abstasks.clustering import _evaluate_clustering_bootstrapped

    monkeypatch.setattr("simcse_jax.evaluation.clustering.DRAWN", 400)
    rows = [(f"{'abc'[n % 3]} {n}", n % 3) for n in range(150)]
    source = _csv(tmp_path / "classes.csv", [("text", "label"), *rows])
    noise = vectors_for()

    def encode(texts: list[str]) -> np.ndarray:
        middles = 1.5 * noise([text[0] for text in texts])
        return middles + noise(texts)

    data = load_clustering(source)
    vectors = encode(data.texts)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    expected, _ = _evaluate_clustering_bootstrapped(
        vectors,
        [[label] for label in data.labels],
        n_clusters=10,
        cluster_size=400,
        kmean_batch_size=512,
        max_depth=None,
        rng_state=random.Random(42),
        seed=42,
    )
    found = evaluate_clustering(encode, data, "made")
    assert found.value == pytest.approx(100 * np.mean(expected["v_measure"]["Level 0"]), abs=1e-6)
    assert 20 < found.value < 99


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("reranking", [("query", "positive"), ("a", "b")], "(?s)no column 'negative'.*query=COLUMN"),
        ("reranking", [("query", "positive", "negative"), ("a", "b", "")], "no query has both"),
        ("reranking", [("query", "positive", "negative"), ("", "b", "c")], "line 2: query must be text"),
        ("triplets", [("anchor", "positive", "negative"), ("a", "b", " ")], "line 2: negative must be text"),
        ("triplets", [("anchor", "positive", "negative")], "holds no rows"),
        (
            "pair_classification",
            [("label", "sentence1", "sentence2"), (1, "a", "b"), (0.5, "c", "d")],
            "0.5 is neither",
        ),
        ("clustering", [("text", "label"), ("a", "x"), ("b", "x")], "1 different labels"),
        ("clustering", [("text", "label"), ("a", "x"), ("b", "y")], "2 different labels"),
        ("clustering", [("text", "label"), ("a", ""), ("b", "y")], "line 2: the label ''"),
        ("clustering", [("text", "label", "split"), ("a", "x", "dev"), ("b", "x", "test")], "Choose one: .*:split="),
    ],
)
def test_what_cannot_be_scored_is_refused(tmp_path: Path, kind: str, rows: list[Any], message: str) -> None:
    task = name_task(kind, _csv(tmp_path / "rows.csv", rows))
    assert parse_task(task) == (kind, str(tmp_path / "rows.csv"))
    with pytest.raises(UserError, match=message):
        load_task(task)


def test_columns_by_option_and_split(tmp_path: Path) -> None:
    rows = [("a", "p", "n", "dev"), ("b", "q", "m", "test"), ("c", "r", "l", "validation")]
    source = _csv(tmp_path / "rows.csv", [("x", "y", "z", "split"), *rows])
    found = load_triplets(f"{source}:anchor=x,positive=y,negative=z,split=dev")
    assert (found.anchors, found.positives, found.negatives) == (["a", "c"], ["p", "r"], ["n", "l"])
    with pytest.raises(UserError, match="no column 'w'"):
        load_triplets(f"{source}:anchor=w,positive=y,negative=z")
    with pytest.raises(UserError, match="of the split 'train'"):
        load_triplets(f"{source}:anchor=x,positive=y,negative=z,split=train")


def _mean(encode: Encode) -> float:
    return float(encode(["a text"]).mean())


def test_every_kind_has_what_tables_and_training_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, measures that its score has, the headline first, a fingerprint that the content alone decides."""
    monkeypatch.setattr("simcse_jax.evaluation.clustering.DRAWN", 100)
    (tmp_path / "retrieval").mkdir()
    triplets = [("anchor", "positive", "negative"), *((f"a {n}", f"p {n}", f"n {n}") for n in range(40))]
    texts = "\n".join(f"Sentence {n} of a document." + "\n" * (n % 5 == 0) for n in range(60))
    (tmp_path / "text.txt").write_text(texts + "\n")
    sources = {
        "pairs": "demo:dev",
        "retrieval": str(write_folder(tmp_path / "retrieval", random_task(documents=50))),
        "reranking": _jsonl(tmp_path / "lists.jsonl", _lists()),
        "triplets": _csv(tmp_path / "triplets.csv", triplets),
        "pair_classification": _csv(tmp_path / "pairs.csv", [("label", "sentence1", "sentence2"), *_labelled()]),
        "clustering": _csv(tmp_path / "classes.csv", [("text", "label"), *((f"t {n}", n % 2) for n in range(40))]),
        "text": str(tmp_path / "text.txt"),
        "function": "tests.evaluation.test_other_kinds:_mean",
    }
    for kind, described in KINDS.items():
        task = name_task(kind, sources[kind])
        data = load_task(task)
        score = score_task(vectors_for(), data, task)
        assert (score.task, score.headline) == (task, described.measures[0])
        assert {*described.measures, *described.logged} <= score.values.keys()
        assert score.protocol["data"] == data.fingerprint == load_task(task).fingerprint
        json.dumps(score.protocol)

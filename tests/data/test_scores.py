"""Scores beside pairs: read from every format, kept with their pairs, and refused where they are wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.corpus import Corpus, load_corpus
from simcse_jax.data.examples import ColumnExamples
from simcse_jax.data.held_out import leave_out
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.tokenizer import load_tokenizer
from simcse_jax.system.errors import UserError
from tests.small_models import prepare_small, states_of

ROWS = [("a man plays", "a man sings", 1.5), ("a dog runs", "", 3), ("a cat", "the cat", 5), ("two men", "a man", 0)]


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Any:
    return load_tokenizer(small_model)


def write(path: Path, rows: list[tuple[Any, ...]] = ROWS) -> str:
    names = ("sentence1", "sentence2", "score")
    records = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join(separator.join(map(str, row)) for row in [names, *rows]) + "\n")
    return str(path)


def load(tmp_path: Path, file: str, tokenizer: Any, columns: tuple[str, ...] = (), **given: Any) -> Corpus:
    scores = ScoreColumn("score", **given)
    return load_corpus([file], tokenizer, 16, columns, tmp_path / "cache", scores=scores)


@pytest.mark.parametrize("columns", [(), ("sentence2", "sentence1")])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_each_pair_keeps_its_score(tmp_path: Path, tokenizer: Any, suffix: str, columns: tuple[str, ...]) -> None:
    file = write(tmp_path / f"pairs{suffix}")
    for _ in ("tokenised", "from the cache"):
        corpus = load(tmp_path, file, tokenizer, columns)
        assert corpus.scores is not None
        assert corpus.scores.tolist() == [1.5, 5, 0]  # the pair with an empty sentence is left out
    assert sorted(corpus.columns) == ["sentence1", "sentence2"]
    plain = load_corpus([file], tokenizer, 16, columns, tmp_path / "cache")
    assert plain.scores is None
    assert plain.fingerprint != corpus.fingerprint
    np.testing.assert_array_equal(plain.hashes, corpus.hashes)


def test_scores_stay_with_the_pairs_that_are_not_held_out(tmp_path: Path, tokenizer: Any) -> None:
    corpus = leave_out(load(tmp_path, write(tmp_path / "pairs.csv"), tokenizer), ["the cat"])
    assert corpus.scores is not None
    assert corpus.scores.tolist() == [1.5, 0]


def test_a_split_is_chosen_beside_scores(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "p.csv").write_text("score,a,b,split\n1,x y,z,train\n2,u v,w,test\n3,s t,r,train\n")
    corpus = load(tmp_path, str(tmp_path / "p.csv"), tokenizer)
    assert corpus.scores is not None
    assert corpus.scores.tolist() == [1, 3]


def test_batches_hold_the_score_of_each_example(tmp_path: Path, tokenizer: Any) -> None:
    rows = [(f"a man {n}", f"the man {n}", n) for n in range(40)]
    corpus = load(tmp_path, write(tmp_path / "p.csv", rows), tokenizer)
    batches = Batches(ColumnExamples(corpus, corpus.scores), Layout(8, 2, 16), 0)
    batch = batches(3)
    assert batch.grades is not None
    np.testing.assert_array_equal(batch.grades.ravel(), batches.example_ids(3))
    np.testing.assert_array_equal(batches(3, [1, 3]).grades, batch.grades[[1, 3]])


@pytest.mark.parametrize(
    ("suffix", "score", "words"),
    [
        (".csv", "high", r"p.csv, line 6: the score 'high' is not a number"),
        (".csv", "", r"p.csv, line 6: the score is blank"),
        (".tsv", "nan", r"p.tsv, line 6: the score is nan"),
        (".tsv", "3,5", r"p.tsv, line 6: the score '3,5' has a decimal comma. Write 3.5"),
        (".jsonl", None, r"p.jsonl, line 5: the score is blank"),
        (".jsonl", [1], r"p.jsonl, line 5: the score '\[1\]' is not a number"),
        (".jsonl", 5.5, r"p.jsonl, line 5: the score in 'score' is 5.5, and data.score_range allows 0 to 5"),
        (".parquet", -1.0, r"p.parquet, row 5: the score in 'score' is -1"),
    ],
)
def test_a_wrong_score_is_refused_with_its_place(
    tmp_path: Path, tokenizer: Any, suffix: str, score: Any, words: str
) -> None:
    file = write(tmp_path / f"p{suffix}", [*ROWS, ("a man", "a woman", score)])
    with pytest.raises(UserError, match=words):
        load(tmp_path, file, tokenizer, lowest=0, highest=5)


def test_data_without_the_column_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "p.csv").write_text("a,b\nx,y\n")
    (tmp_path / "p.txt").write_text("x\ny\n")
    for name in ("p.csv", "p.txt"):
        with pytest.raises(UserError, match=rf"{name} has no column 'score' of scores(.|\n)*data.scores=COLUMN"):
            load(tmp_path, str(tmp_path / name), tokenizer)


PAIRS: dict[str, Any] = {
    "objective__loss": "cosent",
    "data__scores": "score",
    "data__positive": "columns",
    "eval__data": "",
    "data__packed": False,
}


@pytest.mark.parametrize("loss", ["cosent", "angle"])
def test_a_run_learns_the_order_of_the_scores(tmp_path: Path, loss: str) -> None:
    words = ["red", "green", "blue", "old", "new", "big", "small", "one", "two", "ten"]
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(64):
        some = rng.permutation(words)[:8]
        shared = int(rng.integers(0, 5))
        rows.append((" ".join(some[:4]), " ".join([*some[:shared], *some[4 : 8 - shared]]), shared))
    flags = PAIRS | {"objective__loss": loss, "data__files": write(tmp_path / "p.csv", rows), "train__batch_size": 64}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **flags, train__steps=60, model__vocab_size=150)
    _, metrics = states_of(run, 60)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["ordered"] > 0.85


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__scores": ""}, r"data\.scores = ''(.|\n)*--config\.data\.scores=score"),
        ({"objective__loss": "info_nce"}, r"data\.scores = 'score' has no effect with objective\.loss = 'info_nce'"),
        ({"data__positive": "dropout"}, r"data\.positive = 'dropout'(.|\n)*data\.positive=columns"),
        ({"data__score_range": "5,0"}, r"data\.score_range = '5,0'(.|\n)*data\.score_range=0,5"),
        ({"data__score_range": "0..5"}, r"data\.score_range = '0..5'"),
        ({"objective__symmetric": True}, r"objective\.symmetric = True has no effect with objective\.loss = 'cosent'"),
        ({"data__columns": "sentence1,sentence2,other"}, r"takes pairs with a score, and the data has 3 text columns"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "p.csv").write_text("sentence1,sentence2,other,score\n" + "a man,the man,two men,3\n" * 20)
    flags = {"data__columns": "sentence1,sentence2", "model__vocab_size": 150}
    with pytest.raises(UserError, match=words):
        prepare_small(
            tmp_path / "run", tmp_path / "cache", **flags | PAIRS | {"data__files": str(tmp_path / "p.csv")} | changes
        )

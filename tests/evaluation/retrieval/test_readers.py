"""Test how retrieval tasks are read: each layout, and each mistake named with its file and line, or noted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from simcse_jax.evaluation.retrieval.data import Retrieval
from simcse_jax.evaluation.retrieval.sources import load_retrieval
from simcse_jax.system.errors import UserError
from tests.evaluation.retrieval.made_retrieval import random_task, write_folder

CORPUS = [
    {"_id": "d1", "title": "Whales", "text": "They are mammals. "},
    {"_id": "d2", "title": "", "text": "None"},
    {"_id": 3, "text": "NA"},
]
QUERIES = [{"_id": "q1", "text": "are whales fish?"}, {"_id": "q2", "text": "nothing"}, {"_id": "q3", "text": "x"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t3\t0\nq2\td2\t1\n"
READ = {"d1": "Whales They are mammals.", "d2": "None", "3": "NA"}


def _folder(folder: Path, qrels: str = QRELS, **tables: Any) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in ({"corpus": CORPUS, "queries": QUERIES} | tables).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def _is_read(task: Retrieval) -> None:
    assert task.documents == READ
    assert task.queries == {"q1": "are whales fish?", "q2": "nothing"}
    assert task.relevant == {"q1": {"d1": 2}, "q2": {"d2": 1}}


def test_a_folder_of_beir(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "plain")
    _is_read(load_retrieval(str(folder)))
    packed = _folder(tmp_path / "packed")
    for path in packed.glob("*.jsonl"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    task = load_retrieval(str(packed))
    _is_read(task)
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td2\t1\n")
    dev = load_retrieval(f"{folder}:split=dev")
    assert (dev.relevant, dev.split) == ({"q3": {"d2": 1}}, "dev")
    assert dev.fingerprint != task.fingerprint == load_retrieval(str(folder)).fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trec.txt", "q1 0 d1 2\nq1 0 3 0\nq2 Q0 d2 1\n"),
        ("trec.qrels", "q1\t0\td1\t2\n\nq1\t0\t3\t0\nq2\t0\td2\t1\n"),
        ("no_header.tsv", "q1\td1\t2\nq1\t3\t0\nq2\td2\t1\r\n"),
        ("other_order.tsv", "score\tcorpus-id\tquery-id\n2\td1\tq1\n0\t3\tq1\n1.0\td2\tq2\n"),
        ("named.csv", "qid,docid,relevance\nq1,d1,2\nq1,3,0\nq2,d2,1\n"),
        ("rows.jsonl", '{"qid": "q1", "docid": "d1", "score": 2}\n{"qid": "q2", "docid": "d2", "score": 1}\n'),
    ],
)
def test_judgments_in_three_files(tmp_path: Path, name: str, content: str) -> None:
    folder = _folder(tmp_path)
    (tmp_path / name).write_text(content)
    _is_read(load_retrieval(f"corpus={folder}/corpus.jsonl,queries={folder}/queries.jsonl,qrels={tmp_path / name}"))


def test_texts_in_tables(tmp_path: Path) -> None:
    (tmp_path / "corpus.tsv").write_text("d1\tWhales They are mammals.\nd2\tNone\n3\tNA\n")
    (tmp_path / "queries.csv").write_text("qid,query\nq1,are whales fish?\nq2,nothing\n")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    _is_read(load_retrieval(str(tmp_path)))
    for pairs in ("query-id\tcorpus-id\nq1\td1\nq2\td2\n", "QID\tIter\tdocid\nq1\t0\td1\nq2\t0\td2\n"):
        (tmp_path / "pairs.tsv").write_text(pairs)
        files = {"corpus": "corpus.tsv", "queries": "queries.csv", "qrels": "pairs.tsv"}
        ungraded = load_retrieval(",".join(f"{key}={tmp_path / name}" for key, name in files.items()))
        assert ungraded.relevant == {"q1": {"d1": 1}, "q2": {"d2": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\td1\tgood\n"}, r"test.tsv, line 2: the grade 'good'"),
        ({"qrels": "q1\td1\t0.5\n"}, "line 1: the grade '0.5'"),
        ({"qrels": "q1\td1\tnan\n"}, "line 1: the grade 'nan'"),
        ({"qrels": "q1\td1\tinf\n"}, "line 1: the grade 'inf'"),
        ({"qrels": "q1\td1\t0\nq2\td2\t-1\n"}, "no document is relevant"),
        ({"qrels": "q1\td1\t1\nq1\td1\t2\n"}, "line 2: the document 'd1' has the grade 2"),
        ({"qrels": "d1\tq1\t1\nd2\tq2\t1\n"}, "(?s)none of the 2 queries.*'d1'.*'q1'"),
        ({"qrels": "q1\tx\t1\nq2\ty\t1\n"}, "none of the 2 relevant documents.*'x'"),
        ({"qrels": "q1\td1\n"}, "line 1: 'q1', 'd1' are no judgment"),
        ({"qrels": "q1\td1\t1\nq2\td2\n"}, "line 2: 2 columns"),
        ({"qrels": "q1 0 d1 1 run\n"}, "no judgment"),
        ({"qrels": "query-id\tcorpus-id\trelevant\nq1\td1\t0\n"}, "line 1: none of the columns relevant is known"),
        ({"qrels": "\n"}, "test.tsv is empty"),
        ({"corpus": []}, "corpus.jsonl is empty"),
        ({"corpus": [*CORPUS, {"_id": "d1", "text": "other"}]}, "line 4: the id 'd1' is that of .*line 1"),
        ({"corpus": [{"id": "d1", "words": "x"}]}, "columns or keys _id and text"),
        ({"corpus": [{"_id": "d1", "text": ["x"]}]}, "line 1: the text is no string"),
        ({"corpus": [{"_id": None, "text": "x"}, {"_id": "d1", "text": "y"}]}, "line 1: the document has no id"),
        ({"queries": [*QUERIES, {"_id": "q1", "text": "other"}]}, "line 4: the id 'q1'"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    folder = _folder(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_retrieval(str(folder))


def test_places_that_are_not_there(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "task")
    (tmp_path / "bare").mkdir()
    (tmp_path / "text.txt").write_text("x")
    for source, message in (
        ("/nowhere/at/all", "(?s)/nowhere/at/all.*corpus.jsonl.*corpus=FILE"),
        (str(tmp_path / "bare"), "has no corpus.jsonl"),
        (str(tmp_path / "text.txt"), "is a file"),
        (f"{folder}:split=train", "(?s)'train'.*has test.*split=test"),
        (f"{folder}:splt=dev", "splt=dev is no option"),
        (f"{folder}:self=maybe", "self=maybe must be drop or keep"),
        ("corpus=a.jsonl,queries=b.jsonl", "qrels=FILE is missing"),
        (f"corpus={folder}/corpus.jsonl,queries={folder}/queries.jsonl,qrels=/no.tsv", "there is no file /no.tsv"),
        ("nanobeir:NFCorpsu", "(?s)nfcorpsu.*NFCorpus"),
        ("nanobeir:NFCorpus:split=dev", "Leave out split="),
    ):
        with pytest.raises(UserError, match=message):
            load_retrieval(source)


def test_what_is_odd_is_noted(tmp_path: Path) -> None:
    qrels = QRELS + "q1\td1\t2\nq3\td1\t-1\nunknown\td1\t1\nq2\tlost\t1\n"
    copies = [*CORPUS, CORPUS[1], {"_id": "d9", "text": "NA"}, {"_id": "d0", "text": ""}]
    task = load_retrieval(str(_folder(tmp_path, qrels, corpus=copies)))
    for part in (
        "only 2 queries",
        "documents repeated with their ids, counted once: 1",
        "blank documents: 1",
        "repeated judgments, counted once: 1",
        "negative judgments, not relevant as in trec_eval: 1",
        "judged queries without a relevant document, left out: 1",
        "unknown queries that are judged, left out: 1 ('unknown')",
        "unknown documents that are relevant, counted as not found: 1 ('lost')",
        "documents that repeat the text of another (equal scores, ranked by id): 1",
    ):
        assert part in task.note, part
    assert task.relevant["q2"] == {"d2": 1, "lost": 1}
    assert list(task.documents) == sorted(task.documents)


def test_an_ordinary_task_has_no_note(tmp_path: Path) -> None:
    made = random_task()
    task = load_retrieval(str(write_folder(tmp_path, made)))
    assert task.note == ""
    assert (task.relevant, task.queries, task.documents) == (made.relevant, made.queries, made.documents)


def test_documents_with_the_id_of_a_query(tmp_path: Path) -> None:
    """As in BEIR they are left out, unless judgments say that ids are numbered apart."""
    texts = [{"_id": str(n), "text": f"text {n}"} for n in range(30)]
    paired = "".join(f"{n}\t{n}\t1\n" for n in range(30))
    shifted = "".join(f"{n}\t{(n + 1) % 30}\t1\n" for n in range(30))
    for qrels, option, drops, said in (
        (shifted, "", True, "left out of its ranking: 30 (self=keep"),
        (shifted, ":self=keep", False, "kept in its ranking: 30 (self=drop"),
        (paired, "", False, "kept in its ranking, as some are judged relevant: 30"),
        (paired, ":self=drop", True, "of which 30 are relevant"),
    ):
        folder = _folder(tmp_path / "x", qrels, corpus=texts, queries=texts)
        task = load_retrieval(f"{folder}{option}")
        assert task.drops_self is drops
        assert said in task.note

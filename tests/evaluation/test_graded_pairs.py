"""Test graded pairs: each format is read right, no column is guessed, each mistake is named with its file and line."""

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.system.errors import UserError

SENTEVAL = (
    "main-captions\tMSRvid\t2012test\t0001\t5.000\tA \"plane\" takes off.\tAn air plane, off.\n"
    "main-news\theadlines\t2015\t0002\t1.25\t\"Open quote stays.\tNone\tlicence\tsource\n"
    "main-news\theadlines\t2015\t0003\t0\tLine\u2028separator\x85kept\tNA\n"
)  # fmt: skip
SENTEVAL_PAIRS = (
    [5.0, 1.25, 0.0],
    ['A "plane" takes off.', '"Open quote stays.', "Line\u2028separator\x85kept"],
    ["An air plane, off.", "None", "NA"],
)


def _written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _read(source: str) -> tuple[list[float], list[str], list[str]]:
    pairs = load_graded_pairs(source)
    assert pairs.gold.dtype == np.float64
    return pairs.gold.tolist(), pairs.first, pairs.second


PLAIN = '1\ta b\tc\n2.5\t"d\tNone\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.tsv", PLAIN),
        ("blank_lines.tsv", "\n1\ta b\tc\n \t \n2.5\t\"d\tNone\n\n"),
        ("windows.tsv", "\ufeff" + PLAIN.replace("\n", "\r\n")),
        ("plain.txt", PLAIN),
        ("plain.csv", '1,a b,c\n2.5,"""d",None\n'),
        ("last.csv", 'a b,c,1\n"""d",None,2.5\n'),
        ("unknown_header.csv", 'gold standard,one,two\n1,a b,c\n2.5,"""d",None\n'),
        ("named.tsv", "sentence2\tindex\tScore\tsentence1\nc\t7\t1\ta b\nNone\t8\t2.5\t\"d\n"),
        ("sick.txt", "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta b\tc\t1\n2\t\"d\tNone\t2.5\n"),
        ("qqp.tsv", "id\tquestion1\tquestion2\tis_duplicate\n0\ta b\tc\t1\n1\t\"d\tNone\t2.5\n"),
        ("mrpc.txt", "\ufeffQuality\t#1 ID\t#1 String\t#2 String\r\n1\t7\ta b\tc\r\n2.5\t7\t\"d\tNone\r\n"),
        ("one_split.csv", 'split,score,sentence1,sentence2\ndev,1,a b,c\ndev,2.5,"""d",None\n'),
        ("y.csv:split=validation", 'split,score,sentence1,sentence2\nval,1,a b,c\ntest,3,x,y\nval,2.5,"""d",None\n'),
        ("x.csv:split=dev", 'split,score,sentence1,sentence2\ndev,1,a b,c\ntest,3,x,y\ndev,2.5,"""d",None\n'),
        ("x.csv:score=S,sentence1=u,sentence2=v", 'n,u,v,S\n1,a b,c,1\n2,"""d",None,2.5\n'),
        ("x.tsv:score=4,sentence1=2,sentence2=3", "1\ta b\tc\t1\n2\t\"d\tNone\t2.5\n"),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, name: str, content: str) -> None:
    _written(tmp_path, name.partition(":")[0], content)
    assert _read(f"{tmp_path}/{name}") == ([1, 2.5], ["a b", '"d'], ["c", "None"])


def test_every_format_gives_the_same_pairs(tmp_path: Path) -> None:
    rows = [{"similarity": 1, "text_a": 'a "b"', "text_b": "c"}, {"similarity": 2.5, "text_a": "d", "text_b": "None"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    quoted = '1\t"a ""b"""\tc\n2.5\td\tNone\n'
    sources = [
        _written(tmp_path, "a.jsonl", lines),
        _written(tmp_path, "a.jsonl.gz", gzip.compress(lines.encode())),
        _written(tmp_path, "a.tsv", quoted),
        _written(tmp_path, "carriage_returns.tsv", quoted.replace("\n", "\r")),
        _written(tmp_path, "a.csv.gz", gzip.compress(quoted.replace("\t", ",").encode())),
        str(tmp_path / "a.parquet"),
    ]
    parquet.write_table(pa.Table.from_pylist(rows), sources[-1])
    assert [_read(source) for source in sources] == [([1, 2.5], ['a "b"', "d"], ["c", "None"])] * len(sources)


def test_csv_cells_hold_commas_quotes_tabs_and_lines(tmp_path: Path) -> None:
    content = 'score,sentence1,sentence2\r\n1,"a, ""b""","c\nd"\r\n-2e1,"e\tf",null\r\n'
    assert _read(_written(tmp_path, "a.csv", content)) == ([1, -20], ['a, "b"', "e\tf"], ["c\nd", "null"])


@pytest.mark.parametrize(
    "place", ["sts-dev.csv", "STSBenchmark/sts-dev.csv", "downstream/STS/STSBenchmark/sts-dev.csv"]
)
def test_senteval_folder(tmp_path: Path, place: str) -> None:
    path = _written(tmp_path / "data", place, SENTEVAL)
    assert _read(path) == _read(str(tmp_path / "data")) == SENTEVAL_PAIRS


def test_senteval_archive_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "senteval.tar"
    with tarfile.open(path, "w") as archive:
        for name, text in (("STS/STSBenchmark/readme.txt", "no"), ("STS/STSBenchmark/sts-dev.csv", SENTEVAL)):
            member = tarfile.TarInfo(f"SentEval/data/downstream/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    asked = []

    def hub_file(repo: str, filename: str, kind: str, revision: str) -> Path | None:
        asked.append((repo, filename, kind, revision))
        return path if filename == "senteval.tar" else None

    monkeypatch.setattr("simcse_jax.system.hub.hub_file", hub_file)
    assert _read(str(path)) == _read("hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar") == SENTEVAL_PAIRS
    with pytest.raises(UserError, match=r"(?s)o/n.*a/b\.tsv"):
        load_graded_pairs("hf://datasets/o/n@v1/a/b.tsv")
    with pytest.raises(UserError, match="hf://datasets/OWNER/NAME/FILE"):
        load_graded_pairs("hf://datasets/owner/name")
    assert asked == [
        ("princeton-nlp/datasets-for-simcse", "senteval.tar", "dataset", "main"),
        ("o/n", "a/b.tsv", "dataset", "v1"),
    ]


def test_demo_pairs() -> None:
    dev, test = load_graded_pairs("demo:dev"), load_graded_pairs("demo:test")
    assert len(dev.gold) == len(dev.first) == len(dev.second) > 100
    assert dev.first != test.first
    with pytest.raises(UserError, match="demo:train"):
        load_graded_pairs("demo:train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "\n \n", "empty"),
        ("a.tsv", "1\ta\tb\n2\tc\n", "line 2: .*2 columns"),
        ("a.csv", "1,a,b\n2,c\n", "line 2: .*2 columns"),
        ("a.tsv", SENTEVAL + "main-news\tx\ty\tz\t3\tcut\n", "line 4: .*6 columns"),
        ("a.tsv", "1\ta\tb\n2\tx\ty\nhigh\tc\td\n", "line 3: .*'high'"),
        ("a.tsv", "1\ta\tb\n2\tx\ty\n\n\tc\td\n", "line 4: .*blank, ''.*remove"),
        ("a.tsv", "\ta\tb\n2\tx\ty\n3\tc\td\n", "line 1: .*blank"),  # no header
        ("a.csv", "score,sentence1,sentence2\n1,a,b\n2,c,\"['d', 'e']\"\n", r"line 3: \['d', 'e'\] is a list"),
        ("a.jsonl", '{"score": 1, "sentence1": ["a", "b"], "sentence2": "c"}\n', "line 1: .* is a list"),
        ("a.csv", "True,a,b\nFalse,c,d\n", "(?s)line 1: .*score=COLUMN"),
        ("a.tsv", "1\ta\tb\nNaN\tc\td\n", "line 2: .*NaN"),
        ("a.csv", 'score,a,b\n1,"c\nc",d\nx,e,f\n', "line 4: .*'x'"),
        ("a.csv", '1,a,b\n2,"c,d\n3,e,f\n', r"(?s)line 2: .*quote"),
        ("a.tsv", "1\ta\tb\n2\t \td\n", "line 2: .*blank"),
        ("a.csv", ",gold standard,x,y\n0,5,a,b\n", "(?s)line 1: .*score.*2 'gold standard'"),
        ("a.tsv", "1\ta\tb\t5\n2\tc\td\t0\n", "(?s)line 1: .*1 '1', 2 'a', 3 'b', 4 '5'"),  # a number before each line
        ("a.tsv", "0\t1\t2\ta\tb\t1\n1\t3\t4\tc\td\t0\n", "(?s)line 1: .*6 '1'"),  # QQP without its header
        ("a.csv", "1,a,3\n2,b,4\n", "line 1: "),  # which of the numbers is the score?
        ("a.csv", "a,b,c\nd,e,f\n", "line 1: "),
        ("a.csv", "score,sentence1,sentence2\n5,7,a\n3,8,b\n", "sentence1.* 7"),
        ("a.csv", "n,u,v\n" + "".join(f"{n},a{n},b{n}\n" for n in range(9)), "line numbers"),
        ("a.csv", "split,score,sentence1,sentence2\ndev,1,a,b\ntest,2,c,d\n", "dev, test.*a.csv:split=dev"),
        ("a.csv:split=all", "split,score,sentence1,sentence2\ntrain,1,a,b\ndev,2,c,d\n", "'all'.*train.*:split=dev"),
        ("a.tsv:split=dev", "1\ta\tb\n2\tc\td\n", "no header"),
        ("a.csv:score=like", "score,sentence1,sentence2\n1,a,b\n2,c,d\n", "'like'"),
        ("a.csv:gold=score", "score,sentence1,sentence2\n1,a,b\n2,c,d\n", "gold=score"),
        ("a.tsv", "score\tsentence1\tsentence2\n1\ta\tb\n", "at least 2"),
        ("a.tsv", "3\ta\tb\n3.0\tc\td\n", "all 2 scores"),
        ("a.tsv", "1\ta\tb\n2\tcaf\u00e9\td\n".encode("latin1"), "line 2: .*UTF-8"),
        ("a.tsv", "1\ta\tb\n2\tc\td\n".encode("utf-16"), "utf-16"),
        ("a.xlsx", "x", r"\.csv, \.tsv"),
        ("a.tar", "no archive", "tar"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    file = name.partition(":")[0]
    _written(tmp_path, file, content)
    with pytest.raises(UserError, match=message) as raised:
        load_graded_pairs(f"{tmp_path}/{name}")
    assert file in str(raised.value)


def test_european_csv_is_read_or_converted_by_the_command_of_the_message(tmp_path: Path) -> None:
    expected = ([4.5, 1.25], ["a, b", "c"], ["d", "NA"])
    header, rows = "score;sentence1;sentence2\r\n", "4.5;a, b;d\r\n1.25;c;NA\r\n"
    for content in (rows, header + rows):
        assert _read(_written(tmp_path, "points.csv", content)) == expected
    decimal = rows.replace(".", ",")
    for name, content in (("named.csv", header + decimal), ("a.csv", decimal)):
        source = _written(tmp_path, name, content)
        with pytest.raises(UserError) as raised:
            load_graded_pairs(source)
        command = re.search('python (-c) "(.*)"', str(raised.value))
        assert command is not None, raised.value
        subprocess.run([sys.executable, *command.groups()], check=True)
        assert _read(source.replace(".csv", ".commas.csv")) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "is_duplicate,question1,question2\nTrue,a,b\nFALSE,c,d\n"),
        (
            "a.jsonl",
            '{"label": true, "text1": "a", "text2": "b"}\n{"label": false, "text1": "c", "text2": "d"}\n',
        ),
        ("a.csv:score=3,sentence1=1,sentence2=2", "a,b,true\nc,d,false\n"),
    ],
)
def test_true_and_false_are_scores_where_the_column_is_named(tmp_path: Path, name: str, content: str) -> None:
    _written(tmp_path, name.partition(":")[0], content)
    assert _read(f"{tmp_path}/{name}") == ([1, 0], ["a", "c"], ["b", "d"])


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.tsv"):
        load_graded_pairs(str(tmp_path / "nowhere.tsv"))
    with pytest.raises(UserError, match=r"sts-dev\.csv"):
        load_graded_pairs(str(tmp_path))

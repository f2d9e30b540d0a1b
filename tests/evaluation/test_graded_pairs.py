"""Test graded pairs: each format is read right, each mistake is named with its file and line."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs
from simcse_jax.system.errors import UserError

SENTEVAL = (
    "main-captions\tMSRvid\t2012test\t0001\t5.000\tA \"plane\" takes off.\tAn air plane, off.\n"
    "main-news\theadlines\t2015\t0002\t1.25\t\"Open quote stays.\tNone\tlicence\tsource\n"
    "main-news\theadlines\t2015\t0003\t0\tLine\u2028separator\x85kept\tNA\n"
)  # fmt: skip
SENTEVAL_GOLD = [5.0, 1.25, 0.0]
SENTEVAL_FIRST = ['A "plane" takes off.', '"Open quote stays.', "Line\u2028separator\x85kept"]
SENTEVAL_SECOND = ["An air plane, off.", "None", "NA"]


def _written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _check_senteval(pairs: GradedPairs) -> None:
    assert pairs.gold.dtype == np.float64
    assert pairs.gold.tolist() == SENTEVAL_GOLD
    assert pairs.first == SENTEVAL_FIRST
    assert pairs.second == SENTEVAL_SECOND


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.tsv", "1\ta b\tc\n2.5\t\"d\tNone\n"),
        ("blank-lines.tsv", "\n1\ta b\tc\n\n2.5\t\"d\tNone\n\n"),
        ("windows.tsv", "\ufeff1\ta b\tc\r\n2.5\t\"d\tNone\r\n"),
        ("plain.csv", '1,a b,c\n2.5,"""d",None\n'),
        ("tabs.csv", "1\ta b\tc\n2.5\t\"d\tNone\n"),
        ("any-header.tsv", "gold standard\tone\tother\n1\ta b\tc\n2.5\t\"d\tNone\n"),
        ("named.csv", 'sentence1,split,score,sentence2\na b,x,1,c\n"""d",x,2.5,None\n'),
        ("named.tsv", "Sentence2\tSentence1\tScore\nc\ta b\t1\nNone\t\"d\t2.5\n"),
        ("indexed.csv", ',sentence1,sentence2,label\n0,a b,c,1\n1,"""d",None,2.5\n'),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, name: str, content: str) -> None:
    pairs = load_graded_pairs(_written(tmp_path, name, content))
    assert pairs.gold.tolist() == [1, 2.5]
    assert (pairs.first, pairs.second) == (["a b", '"d'], ["c", "None"])


def test_csv_cells_hold_commas_quotes_tabs_and_lines(tmp_path: Path) -> None:
    content = 'score,sentence1,sentence2\r\n1,"a, ""b""","c\nd"\r\n-2e1,"e\tf",null\r\n'
    pairs = load_graded_pairs(_written(tmp_path, "a.csv", content))
    assert (pairs.first, pairs.second) == (['a, "b"', "e\tf"], ["c\nd", "null"])
    assert pairs.gold.tolist() == [1, -20]


@pytest.mark.parametrize(
    "place", ["sts-dev.csv", "STSBenchmark/sts-dev.csv", "downstream/STS/STSBenchmark/sts-dev.csv"]
)
def test_senteval_folder(tmp_path: Path, place: str) -> None:
    path = _written(tmp_path / "data", place, SENTEVAL)
    _check_senteval(load_graded_pairs(path))
    _check_senteval(load_graded_pairs(str(tmp_path / "data")))


def test_senteval_archive_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    _check_senteval(load_graded_pairs(str(path)))
    _check_senteval(load_graded_pairs("hf://datasets/princeton-nlp/datasets-for-simcse/senteval.tar"))
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
        ("a.tsv", "1\ta\tb\nhigh\tc\td\n", "line 2: .*'high'"),
        ("a.tsv", "1\ta\tb\n\n\tc\td\n", "line 3: .*''"),
        ("a.tsv", "1\ta\tb\nNaN\tc\td\n", "line 2: .*NaN"),
        ("a.csv", 'score,a,b\n1,"c\nc",d\nx,e,f\n', "line 4: .*'x'"),
        ("a.csv", '1,a,b\n2,"c,d\n3,e,f\n', r"(?s)line 2: .*quote"),
        ("a.tsv", "1\ta\tb\n2\t \td\n", "line 2: .*blank"),
        ("a.csv", "score,sentence1,text\n1,a,b\n", "line 1: .*sentence2"),
        ("a.csv", ",gold standard,x,y\n0,5,a,b\n", "line 1: .*first column"),
        ("a.tsv", "score\tsentence1\tsentence2\n1\ta\tb\n", "at least 2"),
        ("a.tsv", "3\ta\tb\n3.0\tc\td\n", "all 2 scores"),
        ("a.tsv", "1\ta\tb\n2\tcaf\u00e9\td\n".encode("latin1"), "line 2: .*UTF-8"),
        ("a.xlsx", "x", r"\.tsv, \.csv"),
        ("a.tar", "no archive", "tar"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    source = _written(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as raised:
        load_graded_pairs(source)
    assert name in str(raised.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.tsv"):
        load_graded_pairs(str(tmp_path / "nowhere.tsv"))
    with pytest.raises(UserError, match=r"sts-dev\.csv"):
        load_graded_pairs(str(tmp_path))
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"empty\.tar"):
        load_graded_pairs(str(tmp_path / "empty.tar"))


@pytest.mark.slow
def test_real_stsb_is_read_whole(real_data: Path) -> None:
    folder = real_data / "senteval" / "downstream" / "STS" / "STSBenchmark"
    for split, count in (("dev", 1500), ("test", 1379), ("train", 5749)):
        pairs = load_graded_pairs(str(folder / f"sts-{split}.csv"))
        assert len(pairs.gold) == len(pairs.first) == len(pairs.second) == count
        assert 0 <= pairs.gold.min() < pairs.gold.max() <= 5
    for above in (folder, real_data / "senteval"):
        assert len(load_graded_pairs(str(above)).gold) == 1500

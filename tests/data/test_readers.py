import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from simcse_jax.data.readers import format_of, open_table
from simcse_jax.system.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, *columns: str) -> list:
    table = open_table(path)
    return list(table.rows(columns or table.columns))


def test_text_lines_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\u2028still two\x0b\x85\n \t\n\nthree")
    assert open_table(path).columns == ("text",)
    assert read(path) == [("one",), ("two\u2028still two\x0b\x85",), None, None, ("three",)]


def test_csv_is_read_literally(tmp_path):
    path = write(tmp_path / "a.csv", '\ufeffsent0,sent1\r\nNone,NA\r\nnull,"a ""b"", c\nd"\r\n\r\n,nan\r\n')
    assert read(path) == [("None", "NA"), ("null", 'a "b", c\nd'), ("", ""), ("", "nan")]
    assert read(path, "sent1")[1] == ('a "b", c\nd',)


def test_csv_with_an_index_column_and_a_very_long_cell(tmp_path):
    path = write(tmp_path / "a.csv", ",text\n0," + "x" * 200_000 + "\n")
    table = open_table(path)
    assert (table.columns, table.other_columns) == (("text",), ("(unnamed)",))
    assert [len(cells[0]) for cells in read(path) if cells] == [200_000]


def test_tsv_quotes_are_text_unless_they_enclose_the_cell(tmp_path):
    path = write(tmp_path / "a.tsv", 'a\tb\n"Yes" he said\t5" long\n"He said ""hi"""\t"whole"\n')
    assert read(path) == [('"Yes" he said', '5" long'), ('He said "hi"', "whole")]


def test_jsonl(tmp_path):
    rows = [{"label": 1, "a": "x", "b": None}, {"b": "\u2028", "a": "None", "label": 2}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    table = open_table(path)
    assert (table.columns, table.other_columns) == (("a", "b"), ("label",))
    assert read(path) == [("x", ""), ("None", "\u2028")]


def test_parquet(tmp_path):
    columns = {"n": [1, 2], "a": ["x", None], "b": pa.array(["p", "q"]).dictionary_encode()}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = open_table(tmp_path / "a.parquet")
    assert (table.columns, table.other_columns) == (("a", "b"), ("n",))
    assert read(tmp_path / "a.parquet") == [("x", "p"), ("", "q")]


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_compressed(tmp_path, suffix, compress):
    text = write(tmp_path / f"a.txt.{suffix}", compress("één\n둘\n".encode()))
    table = write(tmp_path / f"a.CSV.{suffix}", compress(b"sent0,sent1\na,b\n"))
    assert read(text) == [("één",), ("둘",)]
    assert read(table) == [("a", "b")]
    with pytest.raises(UserError, match=r"line \d.*damaged or cut short"):
        read(write(tmp_path / f"cut.txt.{suffix}", text.read_bytes()[:-6]))
    with pytest.raises(UserError, match="damaged"):
        read(write(tmp_path / f"no.txt.{suffix}", b"plain text"))


def test_the_key_follows_the_content_not_the_name(tmp_path):
    first, same, other = (
        write(tmp_path / name, text) for name, text in (("a.txt", "x\n"), ("b.txt", "x\n"), ("c.txt", "y\n"))
    )
    assert open_table(first).key() == open_table(same).key() != open_table(other).key()
    assert open_table(write(tmp_path / "d.csv", "x\n")).key() != open_table(first).key()


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.txt", ".txt"), ("A.Jsonl.XZ", ".jsonl"), ("a.parquet.gz", None), ("a.json", None)]
)
def test_format_of(name, suffix):
    assert format_of(name) == suffix


BAD = {
    "empty.txt": (b"", "is empty"),
    "latin.txt": (
        b"fine\ncaf\xe9\n",
        r"line 2: not UTF-8 \(byte 0xe9 at place 4.*\n.*iconv -f latin1 -t utf-8",
    ),
    "wide.csv": ("a,b\nc,d\n".encode("utf-16"), "is UTF-16.*iconv -f utf-16"),
    "latin.csv": (b"a,b\nx,y\nz,\xff\n", "latin.csv, line 3: not UTF-8"),
    "ragged.csv": (b'a,b\nx,"y\ny"\nonly\n', r"line 4: 1 cells, but the header has 2 \(a, b\)"),
    "ragged.tsv": (b"a\tb\nx\ty\tz\n", "line 2: 3 cells.*tab"),
    "quote.csv": (b'a,b\nx,y\n"open,z\nmore\n', r"line 3: not valid CSV(.|\n)*doubled"),
    "semicolon.csv": (b"sent0;sent1\na;b\n", "has ';' for commas"),
    "tabs.csv": (b"sent0\tsent1\na\tb\n", r"rename it to tabs\.tsv"),
    "headless.csv": (b"A man is playing a guitar on a stage.,Somebody plays.\n", "needs? a header(.|\n)*sed -i"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "the column 'a' occurs 2 times"),
    "blank.csv": (b"\n\n", "nothing but blank lines"),
    "broken.jsonl": (b'{"a": "x"}\n{"a": \n', "line 2: not JSON"),
    "list.jsonl": (b'["x"]\n', "line 1: a JSON object"),
    "keys.jsonl": (b'{"a": "x"}\n{"b": "x"}\n', "line 2: no key 'a'; it has b"),
    "number.jsonl": (b'{"a": "x"}\n\n{"a": 5}\n', "line 3: 'a' is '5', which is not a string"),
    "half.jsonl": (b'{"a": "x\\ud800"}\n', "line 1: .*surrogate"),
    "blank.jsonl": (b"\n", "no JSON objects"),
    "not.parquet": (b"PAR1 but not really", "not a readable parquet"),
    "sheet.xlsx": (b"x", r"unknown file type '\.xlsx'.*\.csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path, name):
    content, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) < 10

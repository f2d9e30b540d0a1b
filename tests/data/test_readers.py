"""Files of every format give the rows that are in them, and what cannot be read is refused with its line."""

import gzip
import json
import lzma
import traceback
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset

from simcse_jax.data import lines
from simcse_jax.data.readers import format_of, open_table, read_records
from simcse_jax.data.rows import choose_columns
from simcse_jax.data.sources import dataset_table
from simcse_jax.data.tables import HEAD
from simcse_jax.system.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, *columns: str) -> list[Any]:
    table = open_table(path)
    return list(table.rows(columns or table.columns))


def json_lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


GOOD: dict[str, tuple[str, list[Any]]] = {
    "text.txt": (
        "\ufeffone\r\ntwo\u2028still two\x0b\x85\n \t\n\nthree",
        [("one",), ("two\u2028still two\x0b\x85",), None, None, ("three",)],
    ),
    "mac.txt": ("one\rtwo\r", [("one",), ("two",)]),
    "literal.csv": (
        '\ufeffsent0,sent1\r\nNone,NA\r\nnull,"a ""b"", c\nd"\r\n\r\n,nan\r\n',
        [("None", "NA"), ("null", 'a "b", c\nd'), ("", ""), ("", "nan")],
    ),
    "mac.csv": ('a,b\rx,"y ""z"""\rp,q\r', [("x", 'y "z"'), ("p", "q")]),
    "plain_european.csv": ("sent0;sent1\r\na;b\r\n", [("a", "b")]),
    "european.csv": ('sent0;sent1\r\na, b;"c;d"\r\n', [("a, b", "c;d")]),
    "brackets.csv": ("a,b\n[sic] x [y],(z)\n[1],('one')\n", [("[sic] x [y]", "(z)"), ("[1]", "('one')")]),
    "index.csv": (",text\n0," + "x" * 200_000 + "\n", [("x" * 200_000,)]),
    "quotes.tsv": (
        'a\tb\n"Yes" he said\t5" long\n"He said ""hi"""\t"whole"\n',
        [('"Yes" he said', '5" long'), ('He said "hi"', "whole")],
    ),
    "keys.jsonl": (
        json_lines({"label": 1, "a": "x"}, {}, {"b": "\u2028", "a": "None", "label": 2}) + "\n",
        [("x", ""), ("", ""), ("None", "\u2028")],
    ),
    "lists.jsonl": (
        json_lines({"query": "q", "pos": ["p", "o"], "neg": ["n"]}, {"query": "r", "pos": ["s"], "neg": ["m", "k"]}),
        [("q", "p", "n", ""), ("q", "o", "n", ""), ("r", "s", "m", "k")],
    ),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_rows_are_what_the_file_says(tmp_path, name, suffix, compress):
    content, rows = GOOD[name]
    assert read(write(tmp_path / (name + suffix), compress(content.encode()))) == rows


def test_columns_are_found_and_chosen_by_name(tmp_path):
    table = open_table(write(tmp_path / "a.jsonl", GOOD["keys.jsonl"][0]))
    assert (table.columns, table.other_columns) == (("a", "b"), ("label",))
    assert read(write(tmp_path / "a.csv", GOOD["literal.csv"][0]), "sent1")[1] == ('a "b", c\nd',)
    lists = write(tmp_path / "lists.jsonl", GOOD["lists.jsonl"][0])
    assert open_table(lists).columns == ("query", "pos", "neg", "neg.2")
    assert read(lists, "query", "neg") == [("q", "n"), ("r", "m")]  # those left out do not make rows
    many = json_lines({"query": "q", "pos": ["p"], "neg": [f"n{n}" for n in range(15)]})
    assert len(choose_columns([open_table(write(tmp_path / "many.jsonl", many))])[0]) == 17
    tags = open_table(write(tmp_path / "tags.jsonl", json_lines({"text": "a", "tags": ["x", "y"], "more": None})))
    assert choose_columns([tags]) == [("text",)]
    assert list(tags.rows(["text", "tags", "more"])) == [("a", "x", ""), ("a", "y", "")]


def late(first: dict[str, Any], last: dict[str, Any]) -> str:
    return json_lines(*[{"q": f"the text {n}"} | first for n in range(HEAD)], last)


LATER = {  # the columns that are read by default, why they are refused or "", and columns to name
    late({"p": "b c", "neg": None}, {"q": "a", "p": "b", "neg": "c"}): (("q", "p"), "no 'neg'", ("q", "p", "neg")),
    late({"p": None}, {"q": "a", "p": "b"}): (("q",), "no 'p'", ("q", "p")),
    late({"p": "b c", "neg": ["c d"]}, {"neg": ["c", "d"]}): (("q", "p", "neg"), "1 texts of 'neg'", ("q", "p", "neg")),
    late({}, {"q": "a", "error": "b"}): (("q",), "", ("q",)),
    late({"label": None}, {"q": "a", "label": "b"}): (("q",), "", ("q", "label")),
}


@pytest.mark.parametrize("content", LATER, ids=range(len(LATER)))
def test_text_after_the_first_records_is_not_lost_unless_columns_are_named(tmp_path, content):
    columns, refusal, named = LATER[content]
    table = open_table(write(tmp_path / "a.jsonl", content))
    assert choose_columns([table]) == [columns]
    assert len(list(table.rows(named, True))) == HEAD + 1
    if refusal:
        with pytest.raises(UserError, match=f"line 1001 .*{refusal}"):
            list(table.rows(columns))
    else:
        assert len(list(table.rows(columns))) == HEAD + 1


def test_a_schema_says_what_is_text(tmp_path):
    kinds = {"q": pa.string(), "pos": pa.list_(pa.large_string()), "neg": pa.list_(pa.string()), "n": pa.int64()}
    rows = [dict.fromkeys(kinds)] * HEAD + [{"q": "a", "pos": ["b"], "neg": ["c"], "n": 1}]
    content = pa.Table.from_pylist(rows, pa.schema(kinds))
    parquet.write_table(content, tmp_path / "a.parquet")
    for table in (open_table(tmp_path / "a.parquet"), dataset_table(Dataset(content), "a")):
        assert choose_columns([table]) == [("q", "pos", "neg")]
        assert list(table.rows(table.columns))[-1] == ("a", "b", "c")


def test_parquet_is_read_as_jsonl_is(tmp_path):
    columns = {
        "n": [1, 2],
        "a": ["x", None],
        "b": pa.array(["p", "q"]).dictionary_encode(),
        "neg": [["m"], ["k", "l"]],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(columns), path)
    table = open_table(path)
    assert (table.columns, table.other_columns) == (("a", "b", "neg", "neg.2"), ("n",))
    assert read(path) == [("x", "p", "m", ""), ("", "q", "k", "l")]
    assert list(read_records(path, "a")) == [
        (0, [*columns]),
        (1, [1, "x", "p", ["m"]]),
        (2, [2, None, "q", ["k", "l"]]),
    ]


def test_records_have_no_header(tmp_path):
    path = write(tmp_path / "a.tsv.gz", gzip.compress(b'4.5\t"He said ""yes"""\tNo\n\n1\tb\tc\n'))
    assert list(read_records(path, "a")) == [(1, ["4.5", 'He said "yes"', "No"]), (3, ["1", "b", "c"])]
    assert list(read_records(write(tmp_path / "a.csv", "4.5,a\n"), "a")) == [(1, ["4.5", "a"])]
    assert list(read_records(write(tmp_path / "a.jsonl", json_lines({"s": 1}, {"t": "x"})), "a")) == [
        (0, ["s", "t"]),
        (1, [1, None]),
        (2, [None, "x"]),
    ]


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


LATE = json_lines(*[{"a": "x", "neg": ["y"]}] * HEAD)
BAD: dict[str, tuple[str | bytes, str]] = {
    "empty.txt": (b"", "is empty"),
    "western.txt": (b"fine\ncaf\xe9 au lait\n", r"line 2: not UTF-8 .*place 4(.|\n)*iconv -f cp1252 -t utf-8"),
    "mixed.txt": ("Köppen\n".encode() + b"caf\xe9\n", r"line 2: not UTF-8 .*\nThe lines before it are UTF-8"),
    "chinese.csv": ("a,b\n一个男人,在弹吉他\n".encode("gbk"), r"line 2(.|\n)*一个男人(.|\n)*iconv -f gb18030"),
    "russian.txt": ("Привет мир\n".encode("cp1251"), "iconv -f cp1251"),
    "wide.csv": ("a,b\nc,d\n".encode("utf-16"), "iconv -f utf-16 "),
    "bare.csv": ("a,b\nc,d\n".encode("utf-16-le"), "iconv -f utf-16le"),
    "bare2.txt": ("一个男人\n在弹吉他\n".encode("utf-16-le"), "iconv -f utf-16le"),
    "bare3.txt": ("abc\nd\n".encode("utf-16-be"), "iconv -f utf-16be"),
    "wide4.txt": ("abc\nd\n".encode("utf-32"), "iconv -f utf-32 "),
    "bare4.txt": ("abc\nd\n".encode("utf-32-le"), "iconv -f utf-32le"),
    "bare5.txt": ("一个男人\nd\n".encode("utf-32-be"), "iconv -f utf-32be"),
    "binary.txt": (b"\x89\0\0\x01\x01\0", "in no encoding"),
    "latin.csv": (b"a,b\nx,y\nz,\xff\n", "latin.csv, line 3: not UTF-8"),
    "ragged.csv": (b'a,b\nx,"y\ny"\nonly\n', r"line 4: 1 cells, but the header has 2 \(a, b\)"),
    "ragged.tsv": (b"a\tb\nx\ty\tz\n", "line 2: 3 cells.*tab"),
    "quote.csv": (b'a,b\nx,y\n"open,z\nmore\n', r"line 3: not valid CSV(.|\n)*doubled"),
    "listed.csv": (b'query,pos\nx,"[""a"", ""b""]"\n', r"line 2: the column 'pos' holds a list(.|\n)*\.jsonl"),
    "array.tsv": (b"query\tneg\nx\ty\nz\t['a' 'b']\n", "line 3: the column 'neg' holds a list"),
    "tabs.csv": (b"sent0\tsent1\na\tb\n", r"rename it to tabs\.tsv"),
    "headless.csv": (b"A man is playing a guitar on a stage.,Somebody plays.\n", "needs? a header(.|\n)*sed -i"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "the column 'a' occurs 2 times"),
    "blank.csv": (b"\n\n", "nothing but blank lines"),
    "many.csv": (",".join(f"c{n}" for n in range(10**5)) + "\nx,y\n", "100000 .*99,988 more"),
    "broken.jsonl": (b'{"a": "x"}\n{"a": \n', "line 2: not JSON"),
    "deep.jsonl": (b'{"a": ' + b"[" * 10**5 + b"\n", "line 1: not JSON"),
    "list.jsonl": (b'["x"]\n', "line 1: a JSON object"),
    "number.jsonl": (b'{"a": "x"}\n\n{"a": 5}\n', "line 3: 'a' holds something that is not a string"),
    "late.jsonl": (LATE + json_lines({"a": "x", "hard_neg": "z"}), r"line 1001 .*'hard_neg'.*\(line 1 and on\).*no"),
    "later.jsonl": (LATE + json_lines({"a": "x", "neg": ["y", "z"]}), r"line 1001 has 2 texts of 'neg'.*1 texts"),
    "half.jsonl": (b'{"a": "x\\ud800"}\n', "line 1: .*surrogate"),
    "blank.jsonl": (b"\n", "only blank lines"),
    "title.jsonl": (json_lines({"neg": ["x", "y"], "neg.2": "z"}), "a column 'neg.2'.* lists of 'neg'"),
    "not.parquet": (b"PAR1 but not really", "not a readable parquet"),
    "sheet.xlsx": (b"x", r"unknown file type '\.xlsx'.*\.csv"),
    "cut.txt.gz": (gzip.compress(b"one\ntwo\n")[:-6], r"line \d.*damaged or cut short"),
    "cut.txt.xz": (lzma.compress(b"one\ntwo\n")[:-6], r"line \d.*damaged or cut short"),
    "no.txt.gz": (b"plain text", r"not compressed as its suffix \.gz says(.|\n)*no\.txt\b"),
    "no.jsonl.xz": (gzip.compress(b"{}"), r"not compressed as its suffix \.xz(.|\n)*no\.jsonl\.gz"),
    "packed.csv": (gzip.compress(b"a,b\n"), r"compressed: mv .*packed\.csv\.gz"),
    "bomb.txt.gz": (gzip.compress(b"a\n" + b"x" * (lines.LONGEST_LINE + 1)), r"line 2 has more than 16 MiB"),
    "bomb.csv.xz": (
        lzma.compress(b"a\n" + b'"' + (b"x" * 999 + b"\n") * (lines.LONGEST_LINE // 999), preset=0),
        "line 2: not valid CSV",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path, name):
    content, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1500
    traceback.clear_frames(caught.tb)  # so that generators close their files before these are collected, with a warning

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from simcse_jax.data import corpus as corpus_module
from simcse_jax.data import token_files
from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.corpus import Corpus, load_corpus, read_sentences
from simcse_jax.data.examples import ColumnExamples
from simcse_jax.data.scores import ScoreColumn
from simcse_jax.data.sources import dataset_table
from simcse_jax.data.tables import TextTable
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.group import NO_TEXT
from simcse_jax.system import hub
from simcse_jax.system.errors import UserError

SENTENCES = [
    "a man is playing a guitar",
    "two dogs run over the wet grass",
    "한 남자가 기타를 치고 있다",
    "一个男人在弹吉他",
    "None",
    "the man sings",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece(SENTENCES * 4, 300, folder)
    return load_tokenizer(folder)


@pytest.fixture
def load(tokenizer, tmp_path):
    """load_corpus with that tokenizer and a cache of this test."""

    def call(*files: object, max_length: int = 12, **more) -> Corpus:
        more = {"cache_dir": tmp_path / "cache", **more}
        return load_corpus([str(file) for file in files], tokenizer, max_length, **more)

    return call


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def as_lists(corpus: Corpus) -> list:
    return [[ids.tolist() for ids in row] for row in corpus.token_ids(np.arange(len(corpus)))]


@pytest.mark.parametrize("max_length", [3, 6, 8, 512])
def test_token_ids_are_those_of_transformers(load, tokenizer, tmp_path, max_length):
    corpus = load(write(tmp_path / "a.txt", "\n".join(SENTENCES)), max_length=max_length)
    expected = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in SENTENCES]
    assert as_lists(corpus) == [[ids] for ids in expected]
    assert corpus.lengths.tolist() == [[len(ids)] for ids in expected]
    full = [len(tokenizer(text)["input_ids"]) for text in SENTENCES]
    assert corpus.report.truncated == sum(length > max_length for length in full)
    assert corpus.report.truncated_share == corpus.report.truncated / len(full)
    assert corpus.report.mean_length == pytest.approx(np.mean(full))
    assert sum(count for _, count in corpus.report.histogram) == len(full)
    assert corpus.report.histogram[-1][0] == max(full)


def test_types_and_hashes(load, tmp_path):
    corpus = load(write(tmp_path / "a.csv", "sent0,sent1,hard_neg\nthe man,a man,None\na man,the man,null\n"))
    assert corpus.columns == ("sent0", "sent1", "hard_neg")
    assert (corpus.lengths.shape, corpus.lengths.dtype) == ((2, 3), np.int32)
    assert (corpus.hashes.shape, corpus.hashes.dtype) == ((2, 3), np.uint64)
    assert corpus.hashes[0, 0] == corpus.hashes[1, 1]
    assert len(np.unique(corpus.hashes)) == 4
    assert corpus.documents is None
    ids = corpus.token_ids(np.array([1, 0, 1]))
    assert ids[0][0].dtype == np.int32
    assert not ids[0][0].flags.owndata
    np.testing.assert_array_equal(ids[0][1], ids[1][0])
    assert corpus.token_ids(np.array([], np.int64)) == []
    with pytest.raises(IndexError):
        corpus.token_ids(np.array([2]))


def test_the_tokenizer_stays_as_it_was(load, tokenizer, tmp_path):
    tokenizer(["the man", "a"], padding="max_length", truncation=True, max_length=7)  # leaves its mark on the backend
    before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    corpus = load(write(tmp_path / "a.txt", "a man is playing a guitar\na\n"), max_length=9)
    assert corpus.lengths.tolist() == [[8], [3]]
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before


def test_random_access_across_chunks(load, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", 7)
    lines = [" ".join(["man"] * (i % 9 + 1) + ["guitar"] * (i % 4)) for i in range(101)]
    corpus = load(write(tmp_path / "a.txt", "\n".join(lines)))
    assert len(corpus._chunk_ends) > 5
    rows = np.random.default_rng(0).permutation(101)
    found = corpus.token_ids(rows)
    everything = as_lists(corpus)
    assert [row[0].tolist() for row in found] == [everything[row][0] for row in rows]
    assert corpus.lengths[:, 0].tolist() == [len(row[0]) for row in everything]
    assert [len(row[0]) for row in everything] == [min(12, i % 9 + 1 + i % 4 + 2) for i in range(101)]


def test_empties_documents_and_duplicates(load, tmp_path):
    first = write(tmp_path / "a.txt", "\n\na man\nthe man\n\n \na man\n\u200b\n")
    second = write(tmp_path / "b.txt", "the man\n\n")
    corpus = load(first, second)
    assert corpus.documents is not None
    assert corpus.documents.tolist() == [0, 0, 1, 2]
    assert corpus.report.documents == 3
    assert corpus.report.empties == 6  # five blank lines, and one in which the tokenizer finds nothing
    assert "  blank lines: 6; " in "\n".join(corpus.report.lines())
    assert corpus.report.duplicates == 2
    assert corpus.report.examples == len(corpus) == 4


def test_rows_are_duplicates_where_all_their_texts_agree_in_order(load, tmp_path):
    rows = ["sent0,sent1", "a man,the dog", "the wet grass,the dog", "the dog,a man", "a man,a guitar", "a man,the dog"]
    assert load(write(tmp_path / "a.csv", "\n".join(rows))).report.duplicates == 1


def test_texts_that_differ_in_case_only_are_no_duplicates(load, tmp_path):
    """Not even where the tokenizer lower-cases: equal token ids, unequal hashes, so each is a negative of the other."""
    corpus = load(write(tmp_path / "a.txt", "the man sings\nThe Man sings\nthe man sings\n"))
    assert as_lists(corpus)[0] == as_lists(corpus)[1]
    assert corpus.hashes[0] != corpus.hashes[1]
    assert corpus.report.duplicates == 1
    text_ids = Batches(ColumnExamples(corpus), Layout(3, 3, 12), 0)(0).text_ids
    assert len(np.unique(text_ids)) == 2


COLUMNS = {
    "id,hard_neg1,sent1,source,sent0,hard_neg0\n7,x,p,web,q,y\n": (
        ("sent0", "sent1", "hard_neg1", "hard_neg0"),
        ("id", "source"),
    ),
    "premise,claim\nq,p\n": (("premise", "claim"), ()),
    "id,question,answer\nx7,q,p\n": (("question", "answer"), ("id",)),
    "sentence1,sentence2,label\nq,p,entailment\n": (("sentence1", "sentence2"), ("label",)),
    "n,first,second,how\n1,q,p,0.5\n2,q,p,\n": (("first", "second"), ("n", "how")),
    "topic,sentence1,sentence2,neg,genre\nx,q,p,n,web\n": (("sentence1", "sentence2", "neg"), ("topic", "genre")),
    "neg,query,pos,neg2\nx,q,p,y\n": (("query", "pos", "neg", "neg2"), ()),
    "uuid,docid,guid,pairID,url,goldLabel,q,p\nx,x,x,x,x,x,q,p\n": (
        ("q", "p"),
        ("uuid", "docid", "guid", "pairID", "url", "goldLabel"),
    ),
    "question,gold_passage\nq,p\n": (("question", "gold_passage"), ()),
    "valid,answer_no\nq,p\n": (("valid", "answer_no"), ()),
}


@pytest.mark.parametrize("content", COLUMNS)
def test_ids_labels_scores_and_numbers_are_no_text(load, tmp_path, content):
    columns, ignored = COLUMNS[content]
    header, *rows = (line.split(",") for line in content.splitlines())
    records = "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    for path in (write(tmp_path / "a.csv", content), write(tmp_path / "a.jsonl", records)):
        corpus = load(path)
        assert (corpus.columns, corpus.report.ignored_columns) == (columns, ignored)
        assert all(name in "\n".join(corpus.report.lines()) for name in (*columns, *ignored))
    assert load(path, columns=columns[::-1]).columns == columns[::-1]
    assert corpus.lengths.tolist() == [[3] * len(columns)] * len(rows)


REFUSED = {
    "topic,first,second\nx,q,p\n": r"3 columns of text \(topic, first, second\)(.|\n)*data.columns=",
    ",".join(f"neg{n}" for n in range(10**5)) + "\n": "100,000 columns of text",
    "label,score\nx,1\n": r"no column of text \(only label, score\)",
    "sentence,hard_negative\nq,n\n": r"hard negatives \(hard_negative\)(.|\n)*only sentence(.|\n)*data.columns=",
    "sent0,hard_neg\nq,n\n": r"hard negatives \(hard_neg\)(.|\n)*only sent0",
}


@pytest.mark.parametrize("content", REFUSED)
def test_columns_whose_names_do_not_tell_are_refused(load, tmp_path, content):
    with pytest.raises(UserError, match=REFUSED[content]):
        load(write(tmp_path / "a.csv", content))


def test_a_column_of_a_few_words_is_a_label(load, tmp_path):
    rows = "".join(f"{SENTENCES[n % 2]} {n},{'web' if n % 3 else 'mail'},{SENTENCES[5]}\n" for n in range(60))
    corpus = load(write(tmp_path / "a.csv", "first,where,second\n" + rows))
    assert (corpus.columns, corpus.report.ignored_columns) == (("first", "second"), ("where",))


def test_columns_that_are_named_must_hold_text(load, tmp_path):
    path = write(tmp_path / "a.csv", "id,sent0\n7,the man\n8,a man\n")
    for columns, message in (
        (["text"], r"a\.csv has no column 'text'. It has id, sent0"),
        (["sent0", "sent0"], "names one twice"),
    ):
        with pytest.raises(UserError, match=message):
            load(path, columns=columns)


def test_numbers_alone_are_text_where_the_user_says_so(load, tmp_path):
    path = write(tmp_path / "a.csv", "text,code\n" + "the man,\n" * 100 + "the man,7\n")
    with pytest.raises(
        UserError, match=r"'code' holds nothing but numbers(.|\n)*columns=text\)(.|\n)*columns=text,code"
    ):
        load(path)
    assert len(load(path, columns=["text", "code"])) == 1
    assert len(load(write(tmp_path / "a.txt", "2023\n2024\n"))) == 2


def test_a_row_may_lack_hard_negatives(load, tmp_path):
    content = "sent0,sent1,hard_neg\na man,the man,dogs run\nthe man,a man,\na man,a man,\u200b\n,a man,dogs run\n"
    corpus = load(write(tmp_path / "a.csv", content))
    assert corpus.lengths.tolist() == [[4, 4, 4], [4, 4, 0], [4, 4, 0]]
    assert [len(ids) for row in corpus.token_ids(np.arange(3)) for ids in row] == corpus.lengths.ravel().tolist()
    assert (corpus.report.empties, corpus.report.missing, corpus.report.mean_length) == (1, 2, 4)
    assert "missing hard negatives: 2" in "\n".join(corpus.report.lines())
    batches = Batches(ColumnExamples(corpus), Layout(2, 2, 8), 0)
    batch, lengths = batches(0), corpus.lengths[batches.example_ids(0)]
    np.testing.assert_array_equal(batch.text_ids == NO_TEXT, lengths.T == 0)
    np.testing.assert_array_equal(batch.inputs.groups.lengths[0], lengths.T.ravel())
    assert (batch.inputs.groups.segments > 0).sum() == lengths.sum()
    other = write(tmp_path / "b.csv", "sent0,sent1,hard_neg\na man,the man,\n")
    assert load(tmp_path / "a.csv", other).report.missing == 3
    with pytest.raises(UserError, match="'hard_neg' holds nothing in all rows"):
        load(other)
    assert list(read_sentences([str(tmp_path / "a.csv")])) == [
        *("a man", "the man", "dogs run"),
        *("the man", "a man", "a man", "a man", "\u200b"),
    ]


def test_rows_of_one_split_are_read(load, tmp_path):
    path = write(tmp_path / "a.csv", "split,text\ntrain,a man\ndev,the man\ntrain,dogs run\ntest,the grass\n")
    train, dev = load(path), load(path, split="dev")
    assert (len(train), len(dev), train.report.other_splits) == (2, 1, 2)
    assert train.columns == ("text",)
    assert list(read_sentences([str(path)])) == ["a man", "dogs run"]
    assert len(load(write(tmp_path / "b.csv", "split,text\n1,a man\n2,the man\n"))) == 2  # no such words
    with pytest.raises(UserError, match="no row is of the split 'train'"):
        load(write(tmp_path / "c.csv", "split,text\ndev,a man\n"))


def test_text_that_the_vocabulary_lacks_is_said(load, tmp_path):
    corpus = load(write(tmp_path / "a.txt", "a man\n\u0434\u0430 man\n"))
    assert corpus.report.unknown_share == 0.25
    assert any("warning" in line and "model.name" in line for line in corpus.report.lines())
    assert not any("warning" in line for line in load(write(tmp_path / "b.txt", "a man\n")).report.lines())


def test_what_other_lengths_would_cut_is_said(load, tmp_path):
    lines = ["a " * length for length in (1, 5, 12, 20, 20, 27)]
    assert "longer than 6 and truncated: 5 (83.3%); than 8: 66.7%; than 16: 50.0%; than 24: 16.7%" in "\n".join(
        load(write(tmp_path / "a.txt", "\n".join(lines)), max_length=6).report.lines()
    )


def test_several_files_read_by_name(load, tmp_path):
    write(tmp_path / "a.csv", "claim,premise\na man,guitar\n")
    write(tmp_path / "b.jsonl", '{"premise": "dogs run", "claim": "the man"}\n')
    corpus = load(tmp_path / "*.*")
    assert corpus.columns == ("claim", "premise")
    single = load(write(tmp_path / "one.csv", "claim\na man\nthe man\n"))
    assert corpus.hashes[:, 0].tolist() == single.hashes[:, 0].tolist()
    with pytest.raises(UserError, match=r"same number of columns(.|\n)*a\.csv: 2(.|\n)*one\.csv: 1"):
        load(tmp_path / "*.csv")


def test_second_start_comes_from_the_cache(load, tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "a man\nthe man\n")
    first = load(path)
    monkeypatch.setattr(corpus_module, "build", lambda *_: pytest.fail("tokenised again"))
    moved = tmp_path / "moved.txt"
    path.rename(moved)
    second = load(moved)
    assert second.report.from_cache
    assert not first.report.from_cache
    assert second.report.files == (str(moved),)
    assert (as_lists(second), second.fingerprint) == (as_lists(first), first.fingerprint)
    assert "from the cache" in second.report.lines()[0]


def test_fingerprint_is_of_the_content(load, tokenizer, tmp_path):
    text = load(write(tmp_path / "a.txt", "a man\nthe man\n"))
    same = load(write(tmp_path / "a.jsonl", '{"t": "a man"}\n{"t": "the man"}\n'), write(tmp_path / "b.txt", "dogs\n"))
    table = load(write(tmp_path / "a.csv", "t\na man\nthe man\n"))
    json_lines = load(tmp_path / "a.jsonl")
    assert table.fingerprint == json_lines.fingerprint  # the format is no content; documents are
    others = [
        text,
        same,
        load(tmp_path / "a.csv", max_length=3),
        load(write(tmp_path / "c.csv", "t\nthe man\na man\n")),
        load(write(tmp_path / "d.txt", "a man\n\nthe man\n")),
    ]
    assert len({table.fingerprint, *(other.fingerprint for other in others)}) == 6


class StoppedError(BaseException):
    """Stand for Ctrl-C or a kill."""


def test_the_fingerprint_by_which_old_runs_know_their_data(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "the", "dogs", "##s"]
    write(tmp_path / "vocab.txt", "\n".join(tokens))
    write(tmp_path / "config.json", '{"model_type": "bert"}')
    table = write(tmp_path / "a.csv", "sent0,sent1,hard_neg,grade\na man,the mans,dogs,1.5\nthe dogs,a cat,,2\n")
    scores = ScoreColumn("grade", 0, 5)
    tokenizer = load_tokenizer(tmp_path)
    assert load_corpus([str(table)], tokenizer, 12, cache_dir=tmp_path, scores=scores).fingerprint == (
        "12aee942ceb2a4e26ce6592405e19070"
    )
    text = write(tmp_path / "a.txt", "a man\n\nthe dogs\na man\n")
    assert load_corpus([str(text)], tokenizer, 4, cache_dir=tmp_path).fingerprint == "b4ffdeb6df26e71efd6038dea682e361"


@pytest.mark.parametrize("damage", ["killed", "cut", "flipped", "no meta", "bad meta"])
def test_a_half_written_cache_does_no_harm(load, tmp_path, damage, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", 1)
    monkeypatch.setattr(token_files, "SHARD_ROWS", 1)
    path = write(tmp_path / "a.txt", "a man\nthe man\n")
    if damage == "killed":
        replace = os.replace

        def killed(source, target):
            if Path(source).is_dir():  # the last thing that is done
                raise StoppedError
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(corpus_module.shutil, "rmtree", lambda *_, **__: None)  # a kill -9 cleans nothing up
            patch.setattr(os, "replace", killed)
            with pytest.raises(StoppedError):
                load(path)
        assert list((tmp_path / "cache" / "corpora").glob("*.partial/tokens-00000.arrow"))
        assert not load(path).report.from_cache
    else:
        load(path)
        (folder,) = (child for child in (tmp_path / "cache" / "corpora").iterdir() if child.is_dir())
        tokens, meta = folder / "tokens-00001.arrow", folder / "corpus.json"
        if damage == "cut":
            tokens.write_bytes(tokens.read_bytes()[:-100])
        elif damage == "flipped":
            content = bytearray(tokens.read_bytes())
            content[-200] ^= 1
            tokens.write_bytes(content)
        elif damage == "no meta":
            meta.unlink()
        else:
            meta.write_text('{"bytes": ')
        assert not load(path).report.from_cache
    assert len(load(path)) == 2
    assert load(path).report.from_cache
    assert not list((tmp_path / "cache" / "corpora").glob("*.partial"))


def test_a_start_that_was_stopped_goes_on_after_its_shards(load, tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "\n".join(SENTENCES * 3 + ["", "the man", "\u200b", "a guitar"]))
    whole = load(path, cache_dir=tmp_path / "other")
    monkeypatch.setattr(token_files, "BLOCK", 3)
    monkeypatch.setattr(token_files, "SHARD_ROWS", 6)
    made = []
    tokenise = token_files.tokenise

    def stopped(block, *more):
        made.append(len(block))
        if len(made) == 5:
            raise StoppedError
        return tokenise(block, *more)

    monkeypatch.setattr(token_files, "tokenise", stopped)
    with pytest.raises(StoppedError):
        load(path)
    (partial,) = (tmp_path / "cache" / "corpora").glob("*.partial")
    assert sorted(child.name for child in partial.iterdir()) == ["tokens-00000.arrow", "tokens-00001.arrow"]
    (partial / ".tokens-00002.arrow.partial").write_bytes(b"of a kill -9")
    at_work, left = (partial.with_name(partial.name.replace(".partial", f"-{n}.partial")) for n in (2, 3))
    at_work.mkdir()
    left.mkdir()
    os.utime(left, (0, 0))
    first = partial / "tokens-00000.arrow"
    inode = first.stat().st_ino
    resumed = load(path)
    assert made == [3] * (5 + 3)  # of 7 blocks, the first 4 are not tokenised again
    assert (resumed.fingerprint, resumed.report) == (whole.fingerprint, whole.report)
    assert as_lists(resumed) == as_lists(whole)
    np.testing.assert_array_equal(resumed.documents, whole.documents)
    assert {file.stat().st_ino for file in (tmp_path / "cache" / "corpora").glob("*/tokens-00000.arrow")} == {inode}
    folders = {child.name for child in (tmp_path / "cache" / "corpora").iterdir() if child.is_dir()}
    assert folders == {partial.name.partition(".")[0], at_work.name}
    assert load(path).report.from_cache


def test_of_a_bad_row_after_whole_shards_nothing_is_left(load, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", 1)
    monkeypatch.setattr(token_files, "SHARD_ROWS", 1)
    rows = ["text,grade", "a man,1", "the man,2", "dogs,x"]
    with pytest.raises(UserError, match="line 4"):
        load(write(tmp_path / "a.csv", "\n".join(rows)), scores=ScoreColumn("grade", 0, 5))
    assert not [child for child in (tmp_path / "cache" / "corpora").iterdir() if child.is_dir()]


def test_a_shard_that_was_damaged_since_it_was_left(load, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", 1)
    monkeypatch.setattr(token_files, "SHARD_ROWS", 1)
    path, tokenise = write(tmp_path / "a.txt", "a man\nthe man\n"), token_files.tokenise

    def stopped(block, *more):
        if block[0][1] == ("the man",):
            raise StoppedError
        return tokenise(block, *more)

    with monkeypatch.context() as patch:
        patch.setattr(token_files, "tokenise", stopped)
        with pytest.raises(StoppedError):
            load(path)
    (shard,) = (tmp_path / "cache" / "corpora").glob("*.partial/tokens-00000.arrow")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged, and was removed"):
        load(path)
    assert len(load(path)) == 2


def test_a_stop_before_the_first_shard_leaves_nothing(load, tmp_path, monkeypatch):
    def stopped(*_):
        raise StoppedError

    monkeypatch.setattr(token_files, "tokenise", stopped)
    with pytest.raises(StoppedError):
        load(write(tmp_path / "a.txt", "a man\n"))
    assert not [child for child in (tmp_path / "cache" / "corpora").iterdir() if child.is_dir()]


def test_a_cache_of_an_earlier_version_is_read(load, tmp_path):
    path = write(tmp_path / "a.txt", "a man\nthe man\n")
    load(path)
    (tokens,) = (tmp_path / "cache" / "corpora").glob("*/tokens-00000.arrow")
    tokens.rename(tokens.with_name("tokens.arrow"))
    assert load(path).report.from_cache


def test_a_bad_file_leaves_nothing_behind(load, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a man\n\xff\n")
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        load(path)
    assert not [child for child in (tmp_path / "cache" / "corpora").iterdir() if child.is_dir()]
    path.write_bytes(b"a man\n")
    assert len(load(path)) == 1


BAD = {
    "a,b\nx,\ny, \n": r"the column 'b' holds nothing in all 2 rows(?s:.*)data\.columns=a",
    "a,b\n,x\ny,\n": "no row is left",
    "a,b\n": "no rows, only a header",
    "a,b\n\u200b,x\n": "no row is left",
}


@pytest.mark.parametrize("content", BAD)
def test_nothing_to_train_on(load, tmp_path, content):
    with pytest.raises(UserError, match=BAD[content]):
        load(write(tmp_path / "a.csv", content))
    with pytest.raises(UserError, match="nothing but blank lines"):
        load(write(tmp_path / "a.txt", "\n \n"))


def test_missing_files(load, tmp_path, dead_hub):
    write(tmp_path / "wiki_sentences.txt", "a\n")
    with pytest.raises(UserError, match=r"wiki_sentence\.txt does not exist(.|\n)*Did you mean .*wiki_sentences\.txt"):
        load(tmp_path / "wiki_sentence.txt")
    with pytest.raises(UserError, match=r"No file matches '.*\*\.csv'(.|\n)*wiki_sentences\.txt"):
        load(tmp_path / "*.csv")
    with pytest.raises(UserError, match=r"The folder .*nowhere does not exist"):
        load(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(UserError, match=r"is a folder\. Name its files"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"The file data/a\.txt does not exist"):
        load("data/a.txt")
    with pytest.raises(UserError, match=r"No file is named .*data\.files"):
        load("")
    with pytest.raises(UserError, match="max_length=2 leaves no room"):
        load(tmp_path / "wiki_sentences.txt", max_length=2)
    with pytest.raises(UserError, match="Unknown generated data"):
        load("demo:poems")


def test_cache_folder_that_cannot_be_made(load, tmp_path):
    path = write(tmp_path / "a.txt", "a man\n")
    with pytest.raises(UserError, match="SIMCSE_CACHE"):
        load(path, cache_dir=path)


def test_cache_folder_from_the_environment(load, tmp_path, monkeypatch):
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "elsewhere"))
    load(write(tmp_path / "a.txt", "a man\n"), cache_dir=None)
    assert list((tmp_path / "elsewhere" / "corpora").glob("*/tokens-00000.arrow"))


def test_hub_files(load, hub_server):
    hub_server.add("owner/text", "deep/wiki.txt", "a man\nthe man\n", kind="dataset")
    corpus = load("hf://datasets/owner/text/deep/wiki.txt")
    assert len(corpus) == 2
    assert corpus.report.files == ("hf://datasets/owner/text/deep/wiki.txt",)
    assert len(load("hf://datasets/owner/text@v1/deep/wiki.txt")) == 2
    assert any("/resolve/v1/" in request for request in hub_server.requests)
    with pytest.raises(UserError, match=r"'owner/text' \(revision main\) has no file 'none\.txt'"):
        load("hf://datasets/owner/text/none.txt")
    with pytest.raises(UserError, match="is not a Hub file"):
        load("hf://owner/text")


@pytest.mark.parametrize("name", ["owner/text", "hf://datasets/owner/text/wiki.txt"])
@pytest.mark.parametrize("away", ["dead_hub", "offline_hub"])
def test_hub_without_network(load, request, monkeypatch, name, away):
    request.getfixturevalue(away)
    monkeypatch.setattr(hub, "_RETRY_WAIT_S", 0.05)
    started = time.monotonic()
    with pytest.raises(UserError, match="owner/text"):
        load(name)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("entry", "config", "split"),
    [
        ("owner/text", None, "train"),
        ("owner/text:validation", None, "validation"),
        ("owner/text:train[:10%]", None, "train[:10%]"),
        ("owner/text:pair", "pair", "train"),
        ("owner/text:pair:test", "pair", "test"),
    ],
)
def test_hub_data_set(load, hub_server, monkeypatch, entry, config, split):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs["split"]))
        return datasets.Dataset.from_dict({"label": [0, 1], "text": ["a man", None], "more": ["x", "y"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = load(entry, columns=["text"])
    assert asked == [("owner/text", config, split)]
    assert (len(corpus), corpus.report.empties, corpus.report.ignored_columns) == (1, 1, ("more", "label"))


def test_key_of_a_data_set_follows_its_content():
    import datasets

    tables: list[TextTable] = [
        dataset_table(datasets.Dataset.from_dict({"text": texts}), "x") for texts in (["a"], ["a"], ["b"])
    ]
    assert tables[0].key() == tables[1].key() != tables[2].key()


def test_read_sentences(tmp_path):
    first = write(tmp_path / "a.csv", "sent0,sent1,source\na,b,web\n,d,web\ne,f,web\n")
    second = write(tmp_path / "b.csv", "sent0,sent1\ng,h\n")
    assert list(read_sentences([str(first), str(second)])) == ["a", "b", "e", "f", "g", "h"]
    assert list(read_sentences([str(first)], limit=3)) == ["a", "b", "e"]
    assert list(read_sentences([str(first)], columns=["source"])) == ["web", "web", "web"]


def test_demo_data(load, monkeypatch):
    from simcse_jax.data import demo

    monkeypatch.setattr(demo, "sentences", lambda: ["a man", "the man"])
    monkeypatch.setattr(demo, "triplets", lambda: [("a man", "the man", "dogs run")])
    assert load("demo:sentences").columns == ("text",)
    assert load("demo:sentences").report.from_cache
    assert load("demo:triplets").columns == ("sent0", "sent1", "hard_neg")
    monkeypatch.setattr(demo, "sentences", lambda: ["a man", "the guitar"])
    assert not load("demo:sentences").report.from_cache  # another world


def test_byte_level_tokenizer_and_any_script(real_data, tmp_path):
    tokenizer = load_tokenizer(real_data / "vocab" / "roberta")
    path = write(tmp_path / "a.txt", "\n".join(SENTENCES))
    corpus = load_corpus([str(path)], tokenizer, 10, cache_dir=tmp_path / "cache")
    expected = [tokenizer(text, truncation=True, max_length=10)["input_ids"] for text in SENTENCES]
    assert as_lists(corpus) == [[ids] for ids in expected]


def test_real_triplets(real_data, tmp_path):
    tokenizer = load_tokenizer(real_data / "vocab" / "bert-base-uncased")
    corpus = load_corpus([str(real_data / "nli" / "nli_triplets.csv")], tokenizer, 32, cache_dir=tmp_path)
    assert len(corpus) == 8976
    assert corpus.columns == ("sent0", "sent1", "hard_neg")
    assert corpus.report.ignored_columns == ("source",)

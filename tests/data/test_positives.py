"""Positives: what is changed, by how much, by chance of (seed, step) alone, and what does not suit is refused."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from simcse_jax.data.batches import Batches, Layout
from simcse_jax.data.changes import Change, Tokens, crop, repetition, word_deletion
from simcse_jax.data.corpus import Corpus, load_corpus
from simcse_jax.data.examples import ChangedCopies, ColumnExamples, Examples, NextSentences
from simcse_jax.data.masking import Masking
from simcse_jax.data.positives import POSITIVES, Source, changed_copy, views_of
from simcse_jax.data.readers import open_table
from simcse_jax.data.rows import RowCounts, choose_columns, read_rows
from simcse_jax.data.synonyms import SHIPPED, load_replacements, replace_words
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.data.vocabulary import Vocabulary, vocabulary_of
from simcse_jax.system.errors import UserError
from simcse_jax.training.loop import train
from tests.small_models import prepare_small

CLS, SEP, LONGEST = 2, 3, 40
# Tokens from 200 on go on with a word.
VOCABULARY = Vocabulary(np.arange(300) < 5, np.arange(300) >= 200, mask_id=4)
TOKENS = Tokens(None, VOCABULARY, LONGEST)
KEY = np.arange(4, dtype=np.uint32) + np.uint32(11)


def sentences(count: int, seed: int = 0, least: int = 1) -> list[np.ndarray]:
    """Return sentences of words of one or two tokens; the number of the word in its sentence is in its tokens."""
    counts = np.random.default_rng(seed).integers(least, 19, count)
    return [np.array([CLS, *pieces(range(words)), SEP], np.int32) for words in counts]


def pieces(numbers: Iterable[int]) -> list[int]:
    return [token for n in numbers for token in ([5 + n] if n % 3 else [5 + n, 200 + n])]


def words(sentence: np.ndarray) -> list[int]:
    """Return the numbers of a sentence's words; each is whole, between [CLS] and [SEP]."""
    assert sentence.dtype == np.int32
    assert (sentence[0], sentence[-1]) == (CLS, SEP)
    numbers = [int(token) - 5 for token in sentence[1:-1] if token < 200]
    assert sentence[1:-1].tolist() == pieces(numbers)
    return numbers


def changed(change: Change, tokens: list[np.ndarray], key: np.ndarray = KEY) -> list[np.ndarray]:
    before = [t.copy() for t in tokens]
    after = change.apply(tokens, np.arange(len(tokens)), key)
    for old, kept, new in zip(before, tokens, after, strict=True):
        np.testing.assert_array_equal(old, kept)  # the anchors stay what they are
        assert len(new) <= change.bound(np.array([len(old)], np.int32))[0]
    return after


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_a_crop_keeps_one_stretch_of_whole_words(rate: float) -> None:
    tokens = sentences(4000)
    cut, of, starts = 0, 0, []
    for old, new in zip(tokens, changed(crop(TOKENS, rate=rate), tokens), strict=True):
        before, after = words(old), words(new)
        assert after
        assert after == list(range(after[0], after[0] + len(after)))
        gone = len(before) - len(after)
        assert rate * len(before) - 1 < gone <= rate * len(before) + 1 or len(after) == 1
        cut, of = cut + gone, of + len(before)
        if gone:
            starts.append(after[0] / gone)
    assert cut / of == pytest.approx(rate, abs=0.02 if rate < 0.5 else 0.06)  # one word is always left
    assert np.mean(starts) == pytest.approx(0.5, abs=0.03)


def test_a_word_that_the_vocabulary_lacks_is_a_word() -> None:
    tokenizer: Any = load_tokenizer(Path(__file__).parents[2] / "models" / "wiki-small")
    vocabulary, unknown = vocabulary_of(tokenizer), tokenizer.unk_token_id
    given = Tokens(tokenizer, vocabulary, 40)
    tokens = np.array(tokenizer("the \U00013000 dog \U00013001 \U00013002 runs").input_ids, np.int32)
    assert (tokens == unknown).sum() == 3
    for change in (crop(given, rate=0.5), word_deletion(given, rate=0.5), repetition(given, rate=0.9)):
        counts = {int((new == unknown).sum()) for new in changed(change, [tokens] * 200)}
        assert counts - {3}, change
    alone = np.array([tokens[0], unknown, unknown, tokens[-1]], np.int32)
    assert [len(new) for new in changed(word_deletion(given, rate=0.0), [alone])] == [3]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_words_are_deleted_whole_and_anywhere(rate: float) -> None:
    tokens = sentences(4000)
    deleted: Counter[float] = Counter()
    of, expected = 0, np.zeros(4)
    for old, new in zip(tokens, changed(word_deletion(TOKENS, rate=rate), tokens), strict=True):
        before, after = words(old), words(new)
        assert after == sorted(after)
        gone = sorted(set(before) - set(after))
        if rate == 0:
            assert len(gone) == min(1, len(before) - 1)
        of += len(before)
        quarters = [int(4 * n / len(before)) for n in before]
        expected += len(gone) * np.bincount(quarters, minlength=4) / len(before)
        deleted.update(int(4 * n / len(before)) for n in gone)
    if rate:
        assert deleted.total() / of == pytest.approx(rate, abs=0.01)
    assert stats.chisquare([deleted[n] for n in range(4)], expected).pvalue > 1e-4  # no part of a sentence is favoured


def test_repetition_doubles_tokens_in_place() -> None:
    tokens, change = sentences(4000, least=4), repetition(TOKENS, rate=0.32)
    shares, grown = [], changed(change, tokens)
    quarters, expected = np.zeros(4), np.zeros(4)
    for old, new in zip(tokens, grown, strict=True):
        at, twice = 0, 0
        doubled = np.zeros(len(old), bool)
        for n, token in enumerate(old):
            assert new[at] == token
            at += 1
            if at < len(new) and new[at] == token:
                assert token not in (CLS, SEP)
                at, twice = at + 1, twice + 1
                doubled[n] = True
        places = 4 * np.arange(len(old) - 2) // (len(old) - 2)
        quarters += np.bincount(places[doubled[1:-1]], minlength=4)
        expected += twice * np.bincount(places, minlength=4) / len(places)
        assert at == len(new) <= LONGEST
        most = min(max(2, int(0.32 * len(old))), LONGEST - len(old))
        assert twice <= most
        if len(old) + most <= LONGEST and most > 2:
            shares.append(twice / most)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)  # any number up to the most, as likely
    assert stats.chisquare(quarters, expected).pvalue > 1e-4  # no part of a sentence is favoured
    full = [np.full(LONGEST, 7, np.int32)]
    np.testing.assert_array_equal(changed(change, full)[0], full[0])  # no room


TEXTS = [
    "a big dog runs in the large park",
    "the small child sleeps",
    "Big cars make people happy and glad",
    "nothing to see here",
    "unbelievable",
] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece([*TEXTS, "huge little kid many cheerful rest"], 300, folder)
    return load_tokenizer(folder)


def synonyms(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "synonyms.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_synonyms_stand_for_words(rate: float, tokenizer: Any, tmp_path: Path) -> None:
    path = synonyms(tmp_path, "big, large, huge  # sizes\n\nchild, little kid\nhappy, glad, cheerful\n")
    replacements = load_replacements(path, tokenizer)
    change = replace_words(Tokens(tokenizer, vocabulary_of(tokenizer), 32), rate, replacements)
    tokens = [np.array(tokenizer(text)["input_ids"], np.int32) for text in TEXTS]
    seen = Counter()
    for text, new in zip(TEXTS, changed(change, tokens), strict=True):
        seen[text, tokenizer.decode(new, skip_special_tokens=True)] += 1
    found = {old: {new for (text, new) in seen if text == old} for old in TEXTS}
    assert found["nothing to see here"] == {"nothing to see here"}
    assert found["the small child sleeps"] >= {"the small little kid sleeps"}
    dogs = found["a big dog runs in the large park"]
    sizes = {(text.split()[1], text.split()[6]) for text in dogs}
    assert sizes <= {(a, b) for a in ("big", "large", "huge") for b in ("big", "large", "huge")}
    if rate == 0:
        assert all((a == "big") != (b == "large") for a, b in sizes)  # exactly one word
        assert len(sizes) == 4
    else:
        assert any(a != "big" and b != "large" for a, b in sizes)


def test_a_replacement_too_long_for_the_row_is_passed_over(tokenizer: Any, tmp_path: Path) -> None:
    path = synonyms(tmp_path, "child, little kid")
    ids = np.array(tokenizer("the small child sleeps")["input_ids"], np.int32)
    for longest, grows in ((len(ids), 0), (len(ids) + 9, 1)):
        given = Tokens(tokenizer, vocabulary_of(tokenizer), longest)
        change = replace_words(given, 0.0, load_replacements(path, tokenizer))
        new = changed(change, [ids])[0]
        assert (len(new) > len(ids)) == grows


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("Big", {"Large", "Huge"}),
        ("big", {"large", "huge"}),
        ("It was big", {"It was large", "It was huge"}),
        ("It was big.", {"It was large.", "It was huge."}),
        ("(big)", {"(large)", "(huge)"}),
    ],
)
def test_synonyms_of_a_byte_level_tokenizer(text: str, made: set[str], real_data: Path) -> None:
    """RoBERTa's tokens tell a word after a space from one at the start, and do not tell marks from pieces of words."""
    from transformers import RobertaTokenizerFast

    roberta = RobertaTokenizerFast.from_pretrained(real_data / "vocab" / "roberta")
    replacements = load_replacements(SHIPPED, roberta)
    assert len(replacements) > 1000
    change = replace_words(Tokens(roberta, vocabulary_of(roberta), 32), 0.0, replacements)
    tokens = [np.array(roberta(text)["input_ids"], np.int32)]
    keys = [KEY + np.uint32(n) for n in range(30)]
    found = [roberta.decode(change.apply(tokens, np.arange(1), key)[0], skip_special_tokens=True) for key in keys]
    assert set(found) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big, large\nsmall\n", r"line 2: 'small' names one word.\nWrite: big, large, huge"),
        ("# nothing\n", "holds no synonym that the model's tokenizer knows"),
        (None, r"cannot be read(.|\n)*leave it out"),
    ],
)
def test_a_file_of_no_synonyms_is_refused(text: str | None, message: str, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "none.txt" if text is None else synonyms(tmp_path, text)
    with pytest.raises(UserError, match=message):
        load_replacements(path, tokenizer)


def examples_of(kind: str, data: Corpus, tokenizer: Any, seed: int = 0, **options: Any) -> Examples:
    given = {"rate": 0.3, "window": 1, "synonyms": "", "mask_model": ""} | options
    return POSITIVES[kind].make_examples(Source(data, tokenizer, seed), given)


def corpus(tmp_path: Path, tokenizer: Any, text: str, name: str = "text.txt") -> Corpus:
    path = tmp_path / name
    path.write_text(text)
    return load_corpus([str(path)], tokenizer, 32, cache_dir=tmp_path / "cache")


DOCUMENTS = [[f"{'abcde'[d]} {n}" for n in range(size)] for d, size in enumerate((5, 1, 2, 9, 3))]


@pytest.mark.parametrize("window", [1, 3])
def test_the_next_sentence_is_of_the_same_document(window: int, tmp_path: Path) -> None:
    train_wordpiece(["a b c d e 0 1 2 3 4 5 6 7 8"] * 50, 100, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = "\n\n".join("\n".join(document) for document in DOCUMENTS)
    examples = examples_of("next_sentence", corpus(tmp_path, tokenizer, text), tokenizer, window=window)
    assert len(examples) == 4 + 0 + 1 + 8 + 2
    distances: Counter[int] = Counter()
    hashes = set()
    for step in range(300):
        rows = np.random.default_rng(step).permutation(len(examples))
        drawn = examples.draw(rows, step)
        for (first, second), lengths in zip(drawn.token_ids(np.arange(len(rows))), drawn.lengths, strict=True):
            assert lengths.tolist() == [len(first), len(second)]
            (a, i), (b, j) = (str(tokenizer.decode(t, skip_special_tokens=True)).split() for t in (first, second))
            assert a == b
            distances[int(j) - int(i)] += 1
        hashes.update(map(tuple, drawn.hashes.tolist()))
    assert set(distances) == set(range(1, window + 1))
    if window == 3:  # of 15 examples, 8 have three sentences after them, 3 two and 4 one
        shares = [distances[n] / distances.total() for n in (1, 2, 3)]
        assert shares == pytest.approx([(8 / 3 + 3 / 2 + 4) / 15, (8 / 3 + 3 / 2) / 15, 8 / 3 / 15], abs=0.03)
    pairs = {(DOCUMENTS[d][i], DOCUMENTS[d][i + n]) for d in range(5) for i in range(9) for n in range(1, window + 1)
             if i + n < len(DOCUMENTS[d])}  # fmt: skip
    assert len(hashes) == len(pairs)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "text.txt",
            "a dog\na cat\nthe park\n",
            r"has no blank line between documents(.|\n)*between their chapters(.|\n)*data.positive=dropout",
        ),
        (
            "text.txt",
            "a dog\n" * 2500 + "\na cat\na dog\n",
            r"2 documents of 1,251 sentences on average(.|\n)*Put a blank",
        ),
        ("text.txt", "a dog\n\na cat\n\nthe park\n", "every document of the data is a single sentence"),
        ("text.csv", "text\na dog\na cat\n", r"takes .txt files(.|\n)*Write it as .txt"),
    ],
)
def test_next_sentences_want_documents(name: str, text: str, message: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        examples_of("next_sentence", corpus(tmp_path, tokenizer, text, name), tokenizer)


@pytest.mark.parametrize("kind", POSITIVES)
def test_texts_and_views_of_every_kind(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Anchors and positives together are two: two texts, or one text twice."""
    data = corpus(tmp_path, tokenizer, "\n".join(TEXTS[:4]) + "\n\n" + "\n".join(TEXTS[1:5]))
    columns = ("a", "b") if kind == "columns" else ("a",)
    if kind == "columns":
        data = corpus(tmp_path, tokenizer, "a,b\na dog,a cat\n", "pairs.csv")
    examples = examples_of(kind, data, tokenizer)
    assert examples.texts * views_of(kind, columns) == 2
    assert type(examples) is {
        **dict.fromkeys(("dropout", "columns", "mask"), ColumnExamples),
        "next_sentence": NextSentences,
    }.get(kind, ChangedCopies)
    with pytest.raises(UserError, match=r"data\.positive = "):
        views_of(kind, ("a",) if kind == "columns" else ("a", "b"))


def test_a_positive_of_numbers_is_named_with_the_way_to_read_it(tokenizer: Any, tmp_path: Path) -> None:
    text = "id,question,answer\n" + "".join(f"{n},how many dogs {n},{n + 1}\n" for n in range(9))
    data = corpus(tmp_path, tokenizer, text, "pairs.csv")
    with pytest.raises(UserError, match=r"columns=question,answer") as raised:
        views_of("columns", data.columns, data.report.ignored_columns)
    assert "not read" in str(raised.value)
    table = [open_table(tmp_path / "pairs.csv")]
    rows = list(read_rows(table, choose_columns(table, ["question", "answer"]), RowCounts(), named=True))
    assert rows[1][1] == ("how many dogs 1", "2")


@pytest.mark.parametrize("kind", ["next_sentence", "crop", "word_deletion", "synonym", "repetition"])
def test_a_positive_is_a_function_of_seed_and_step(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Of the same rows, so that nothing else tells steps and seeds apart."""
    text = "\n\n".join("\n".join(TEXTS[:5]) for _ in range(40))
    data = corpus(tmp_path, tokenizer, text)

    def drawn(seed: int, step: int) -> list[list[int]]:
        examples = examples_of(kind, data, tokenizer, seed, window=3)
        found = examples.draw(np.arange(150), step).token_ids(np.arange(150))
        return [positive.tolist() for _, positive in found]

    one = drawn(3, 7)
    assert one == drawn(3, 7)
    for other in (drawn(3, 8), drawn(4, 7)):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > 20


@pytest.mark.parametrize("kind", [kind for kind in POSITIVES if kind != "columns"])
def test_a_part_of_a_batch_is_that_of_the_whole(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Whatever the groups, and whoever makes them."""
    text = "\n\n".join("\n".join(TEXTS[n : n + 5]) for n in range(0, 100, 5))
    data, vocabulary = corpus(tmp_path, tokenizer, text), vocabulary_of(tokenizer)

    def made(step: int, groups: list[int] | None = None, size: int = 16, one_per_row: bool = False) -> Any:
        examples = examples_of(kind, data, tokenizer, window=3)
        hiding = Masking(vocabulary, 0.3, whole_word=False, seed=0, all_masked=True) if kind == "mask" else None
        return Batches(examples, Layout(64, size, 32, one_per_row), 0, replacing=hiding)(step, groups)

    def arrays(batch: Any) -> list[Any]:
        return jax.tree.leaves((batch.inputs.groups, batch.inputs.replacement))

    whole = made(1)
    for one, two in zip(arrays(whole), arrays(made(1, [2, 3])), strict=True):
        np.testing.assert_array_equal(one[2:], two)
    if kind == "mask":
        used = whole.inputs.replacement.labels >= 0
        ids = np.take_along_axis(
            whole.inputs.replacement.ids.reshape(len(used), -1), whole.inputs.replacement.places, 1
        )
        assert (ids[used] == tokenizer.mask_token_id).all()  # no token to predict is left, or another

    def texts(batch: Any) -> dict[tuple[int, int], int]:
        fields = [np.asarray(field)[batch.inputs.groups.segments > 0] for field in batch.inputs.groups[:4]]
        return {(int(s), int(p)): int(i) for i, _, p, s in zip(*fields, strict=True)}

    assert texts(whole) == texts(made(1, size=64)) == texts(made(1, one_per_row=True))
    if kind != "next_sentence":  # a copy is no negative of another copy of the same text
        np.testing.assert_array_equal(*whole.text_ids)
        assert len(np.unique(whole.text_ids)) == 5
    assert texts(whole) != texts(made(0))


def test_files_are_documents_too(tokenizer: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a big dog\nthe small child\nBig cars\n")
    data = load_corpus([str(tmp_path / "*.txt")], tokenizer, 32, cache_dir=tmp_path / "cache")
    examples = examples_of("next_sentence", data, tokenizer)
    assert len(examples) == 4


def test_a_positive_from_outside_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md says: a plain function and one line in the table."""

    def reversal(tokens: Tokens, *, rate: float) -> Change:
        def apply(sentences: Any, places: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
            return [np.r_[ids[:1], ids[-2:0:-1], ids[-1:]] for ids in sentences]

        return Change(apply)

    monkeypatch.setitem(POSITIVES, "reversal", changed_copy(reversal))
    keys: Any = {"data__positive": "reversal", "data__rate": 0.5}
    run = prepare_small(tmp_path / "run", tmp_path / "cache", **keys)
    inputs = run.batches(0).inputs
    ids, first, lengths = (
        np.asarray(x)[0] for x in (inputs.groups.ids, inputs.groups.first_tokens, inputs.groups.lengths)
    )
    half = len(first) // 2  # anchors, then positives
    for n in range(half):
        one, other = (ids.ravel()[first[m] : first[m] + lengths[m]] for m in (n, n + half))
        np.testing.assert_array_equal(one[1:-1], other[-2:0:-1])
    train(run, tmp_path / "run")
    assert sum('"loss"' in line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4

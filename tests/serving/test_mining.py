"""Mining against its definition, written out pair by pair; and the training file that comes of it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data.corpus import load_corpus
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.serving import mining
from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.serving.mining import Triplet, hard_negatives, paraphrases, read_pairs, write_negatives
from simcse_jax.system.errors import UserError

VECTORS = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
COSINES = VECTORS @ VECTORS.T
TEXTS = [f"sentence {n}" for n in range(60)]


@pytest.fixture(params=[1024, 7])
def queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search all sentences in one block, or in many."""
    monkeypatch.setattr(mining, "QUERIES", request.param)


# Paraphrases ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("threshold", [0.5, 0.8, -1.0, 1.0])
def test_every_pair_once_the_most_similar_first(threshold: float) -> None:
    found = paraphrases(TEXTS, VECTORS, threshold)
    places = itertools.combinations(range(60), 2)
    expected = {(i, j): COSINES[i, j] for i, j in places if COSINES[i, j] >= threshold}
    assert {pair[:2] for pair in found} == expected.keys()
    assert len(found) == len(expected)
    for pair in found:
        assert pair.score == pytest.approx(expected[pair[:2]], abs=1e-6)
    assert [pair.score for pair in found] == sorted((pair.score for pair in found), reverse=True)


@pytest.mark.usefixtures("queries")
def test_repeated_texts_are_one_sentence_and_a_pair_counts_from_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = VECTORS[[ord(text) for text in "\0\1\0\2\1\0"]]
    assert {pair[:2] for pair in paraphrases(list("abacba"), repeated, -1.0)} == {(0, 1), (0, 3), (1, 3)}
    monkeypatch.setattr(mining, "MOST", 2)
    near = np.argsort(-(COSINES - 3 * np.eye(60)), axis=1)[:, :2]
    expected = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    assert {pair[:2] for pair in paraphrases(TEXTS, VECTORS, -1.0)} == expected


def test_paraphrases_of_little_and_of_what_is_wrong() -> None:
    assert paraphrases([], VECTORS[:0], 0.5) == []
    assert paraphrases(["a"], VECTORS[:1], 0.5) == []
    with pytest.raises(UserError, match="threshold is 85"):
        paraphrases(TEXTS, VECTORS, 85)
    with pytest.raises(UserError, match="length"):
        paraphrases(TEXTS, 2 * VECTORS, 0.5)


# Hard negatives -------------------------------------------------------------------------------------------------------

# The anchor of pair n is sentence n; its positive is one of the last five sentences.
PAIRS = [(TEXTS[n], TEXTS[55 + n % 5]) for n in range(20)]


def mined(pairs: list[tuple[str, str]] = PAIRS, corpus: list[str] = TEXTS, **settings: Any) -> dict[str, Triplet]:
    index = SentenceIndex(6, "made")
    index.add(corpus, VECTORS)
    anchors, positives = (VECTORS[[TEXTS.index(pair[side]) for pair in pairs]] for side in (0, 1))
    settings = {"ranks": (1, 60), "margin": 0.0, "ceiling": 1.0} | settings
    return {triplet.anchor: triplet for triplet in hard_negatives(pairs, anchors, positives, index, **settings)}


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize(
    ("ranks", "margin", "ceiling"),
    [((1, 58), 0.0, 1.0), ((1, 5), 0.0, 1.0), ((10, 30), 0.2, 1.0), ((1, 58), 0.0, 0.3), ((20, 20), 0.1, 0.9)],
)
def test_negatives_are_those_of_the_definition(ranks: tuple[int, int], margin: float, ceiling: float) -> None:
    expected = {}
    for n, (anchor, positive) in enumerate(PAIRS):
        others = [c for c in np.argsort(-COSINES[n]).tolist() if TEXTS[c] not in (anchor, positive)]
        limit = min(COSINES[n, 55 + n % 5] - margin, ceiling)
        good = [TEXTS[c] for c in others[ranks[0] - 1 : ranks[1]] if COSINES[n, c] <= limit]
        expected |= {anchor: good[0]} if good else {}
    found = mined(ranks=ranks, margin=margin, ceiling=ceiling)
    assert {anchor: triplet.negative for anchor, triplet in found.items()} == expected
    assert 0 < len(expected) < 20
    for triplet in found.values():
        assert triplet.negative_score <= min(triplet.positive_score - margin, ceiling)


def test_no_other_positive_of_the_anchor_is_a_negative() -> None:
    first = mined()[TEXTS[0]]
    other = (TEXTS[0], first.negative)
    for pairs in ([*PAIRS, other], [other, *PAIRS]):
        assert mined(pairs)[TEXTS[0]].negative not in (first.negative, first.positive)


def test_equal_texts_of_the_corpus_count_once() -> None:
    near = [c for c in np.argsort(-COSINES[0]).tolist() if c not in (0, 55)]
    corpus = [*TEXTS]
    corpus[near[0]] = TEXTS[0]  # the anchor again
    for place in near[1:9]:
        corpus[place] = "repeated"
    # As its own positive, so that no score is above the positive's.
    found = [mined([(TEXTS[0], TEXTS[0])], corpus, ranks=(rank, rank)) for rank in (1, 2, 3)]
    corpus[55] = "as near as it is"
    expected = ["repeated", *(TEXTS[c] for c in np.argsort(-COSINES[0]).tolist() if c not in (0, *near[:9]))]
    assert [some[TEXTS[0]].negative for some in found] == expected[:3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": (0, 5)}, "0 to 5"),
        ({"ranks": (9, 5)}, "9 to 5"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"ceiling": 95}, "ceiling is 95"),
    ],
)
def test_hard_negatives_of_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mined(**settings)


# Training files -------------------------------------------------------------------------------------------------------

TRIPLETS = [
    Triplet("a man plays", 'he said "play", twice', "a man, who sleeps", 0.9, 0.5),
    Triplet("None", "NA", "two\nlines", 0.9, 0.5),
    Triplet("a lone\rreturn", "ünïcödé", "line\u2028separator", 0.9, 0.5),
]


def test_what_is_written_trains(tmp_path: Path) -> None:
    out = tmp_path / "mined.csv"
    assert write_negatives(out, iter(TRIPLETS)) == 3
    assert read_pairs([str(out)]) == [(triplet.anchor, triplet.positive) for triplet in TRIPLETS]
    assert read_pairs([str(out)], ["sent0", "hard_neg"])[1] == ("None", "two\nlines")
    train_wordpiece([text for triplet in TRIPLETS for text in triplet[:3]], 120, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    corpus = load_corpus([str(out)], tokenizer, 32, cache_dir=tmp_path / "cache")
    assert corpus.columns == ("sent0", "sent1", "hard_neg")
    for row, triplet in zip(corpus.token_ids(np.arange(3)), TRIPLETS, strict=True):
        assert [ids.tolist() for ids in row] == tokenizer(list(triplet[:3]))["input_ids"]


def test_rows_of_other_splits_are_not_mined(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("split,query,pos\ntrain,a cat,one cat\ntest,a dog,one dog\n")
    assert read_pairs([str(tmp_path / "a.csv")]) == [("a cat", "one cat")]


def test_an_earlier_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "mined.csv"
    write_negatives(out, TRIPLETS)
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"No pair[\s\S]*--ranks"):
        write_negatives(out, [])

    def broken() -> Iterator[Triplet]:
        yield TRIPLETS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_negatives(out, broken())
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mined.csv"]
    write_negatives(out, TRIPLETS[:1])
    assert len(read_pairs([str(out)])) == 1


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mined\.csv"):
        write_negatives(tmp_path / "mined.txt", TRIPLETS)
    with pytest.raises(UserError, match="nowhere"):
        write_negatives(tmp_path / "nowhere" / "mined.csv", TRIPLETS)
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"lines\.txt has one column"):
        read_pairs([str(tmp_path / "lines.txt")])

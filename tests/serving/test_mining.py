"""Mining against its definition, written out pair by pair; and the training file that comes of it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data.corpus import load_corpus
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.serving import mining
from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.serving.mining import Nearest, Triplet, hard_negatives, paraphrases, read_pairs, write_negatives
from simcse_jax.system.errors import UserError


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def some_vectors(count: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, width)))


def nearest_of(vectors: np.ndarray) -> Nearest:
    index = SentenceIndex(vectors.shape[1], "made")
    index.add(names(len(vectors)), vectors)
    return index.nearest


def names(count: int) -> list[str]:
    return [f"sentence {n}" for n in range(count)]


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(mining, "QUERIES", 7)


# Paraphrases ----------------------------------------------------------------------------------------------------------


def all_pairs(vectors: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    cosines = vectors @ vectors.T
    places = itertools.combinations(range(len(vectors)), 2)
    return {(i, j): float(cosines[i, j]) for i, j in places if cosines[i, j] >= threshold}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("threshold", [0.5, 0.8, -1.0, 1.0])
def test_every_pair_once_the_most_similar_first(threshold: float) -> None:
    vectors = some_vectors(60)
    found = paraphrases(names(60), vectors, threshold)
    expected = all_pairs(vectors, threshold)
    assert {(pair.first, pair.second) for pair in found} == expected.keys()
    assert len(found) == len(expected)
    for pair in found:
        assert pair.score == pytest.approx(expected[pair.first, pair.second], abs=1e-6)
    assert [pair.score for pair in found] == sorted((pair.score for pair in found), reverse=True)


@pytest.mark.usefixtures("blocks")
def test_repeated_texts_are_one_sentence() -> None:
    texts = ["a", "b", "a", "c", "b", "a"]
    vectors = some_vectors(3)
    by_text = dict(zip("abc", vectors, strict=True))
    repeated = np.stack([by_text[text] for text in texts])
    expected = {(0, 1), (0, 3), (1, 3)}
    assert {pair[:2] for pair in paraphrases(texts, repeated, -1.0)} == expected
    # An index that holds the repetitions gives the same, if it is asked for enough.
    assert {pair[:2] for pair in paraphrases(texts, repeated, -1.0, nearest=nearest_of(repeated))} == expected


@pytest.mark.usefixtures("blocks")
def test_top_k_counts_from_either_side() -> None:
    vectors = some_vectors(40)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    near = np.argsort(-cosines, axis=1)[:, :2]
    expected = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    assert {pair[:2] for pair in paraphrases(names(40), vectors, -1.0, top_k=2)} == expected


def test_an_index_that_finds_few() -> None:
    vectors = some_vectors(5)
    exact = nearest_of(vectors)

    def lossy(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, ids = exact(queries, k)
        scores[:, 2:], ids[:, 2:] = -np.inf, -1
        return scores, ids

    found = paraphrases(names(5), vectors, -1.0, nearest=lossy)
    cosines = vectors @ vectors.T - 3 * np.eye(5)
    assert {pair[:2] for pair in found} == {(min(i, j), max(i, j)) for i, j in enumerate(cosines.argmax(1).tolist())}


def test_little_and_nothing() -> None:
    assert paraphrases([], np.zeros((0, 4), np.float32), 0.5) == []
    assert paraphrases(["a"], some_vectors(1), 0.5) == []


def test_paraphrases_of_what_is_wrong() -> None:
    vectors = some_vectors(3)
    with pytest.raises(UserError, match="threshold is 85"):
        paraphrases(names(3), vectors, 85)
    with pytest.raises(UserError, match="top_k is 0"):
        paraphrases(names(3), vectors, 0.5, top_k=0)
    with pytest.raises(ValueError, match=r"4 texts, but vectors of shape \(3, 6\)"):
        paraphrases(names(4), vectors, 0.5)
    with pytest.raises(ValueError, match="not of length 1"):
        paraphrases(names(3), 2 * vectors, 0.5)


# Hard negatives -------------------------------------------------------------------------------------------------------

CORPUS = names(50)
POSITIVE = 45  # the anchor of pair n is sentence n; its positive is one of the last


def some_pairs() -> list[tuple[str, str]]:
    return [(CORPUS[n], CORPUS[POSITIVE + n % 5]) for n in range(20)]


def mined(
    pairs: list[tuple[str, str]] | None = None, text: Callable[[int], str] = CORPUS.__getitem__, **settings: Any
) -> dict[str, Triplet]:
    vectors, pairs = some_vectors(50), pairs or some_pairs()
    places = {name: n for n, name in enumerate(CORPUS)}
    anchors, positives = (vectors[[places[pair[side]] for pair in pairs]] for side in (0, 1))
    settings = {"ranks": (1, 50), "margin": 0.0, "ceiling": 1.0} | settings
    triplets = list(hard_negatives(pairs, anchors, positives, nearest_of(vectors), text, **settings))
    return {triplet.anchor: triplet for triplet in triplets}


def by_definition(ranks: tuple[int, int], margin: float, ceiling: float) -> dict[str, str]:
    vectors, found = some_vectors(50), {}
    for n, (anchor, positive) in enumerate(some_pairs()):
        cosines, label = vectors @ vectors[n], vectors[n] @ vectors[POSITIVE + n % 5]
        others = [int(c) for c in np.argsort(-cosines) if CORPUS[c] not in (anchor, positive)]
        window = others[ranks[0] - 1 : ranks[1]]
        good = [c for c in window if cosines[c] <= min(label - margin, ceiling)]
        if good:
            found[anchor] = CORPUS[good[0]]
    return found


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("ranks", "margin", "ceiling", "count"),
    [
        ((1, 48), 0.0, 1.0, 19),
        ((1, 5), 0.0, 1.0, 3),
        ((10, 30), 0.2, 1.0, 7),
        ((1, 48), 0.0, 0.3, 19),
        ((20, 20), 0.1, 0.9, 5),
    ],
)
def test_negatives_are_those_of_the_definition(
    ranks: tuple[int, int], margin: float, ceiling: float, count: int
) -> None:
    found = mined(ranks=ranks, margin=margin, ceiling=ceiling)
    expected = by_definition(ranks, margin, ceiling)
    assert {anchor: triplet.negative for anchor, triplet in found.items()} == expected
    assert len(expected) == count
    for triplet in found.values():
        assert triplet.negative_score <= min(triplet.positive_score - margin, ceiling)


def test_no_other_positive_of_the_anchor_is_a_negative() -> None:
    first = mined()[CORPUS[0]]
    other = (CORPUS[0], first.negative)
    for pairs in ([*some_pairs(), other], [other, *some_pairs()]):
        again = [triplet for triplet in mined(pairs).values() if triplet.anchor == CORPUS[0]]
        assert again
        assert all(triplet.negative not in (first.negative, first.positive) for triplet in again)


def test_equal_texts_of_the_corpus_count_once() -> None:
    vectors, anchor = some_vectors(50), 0
    near = [int(c) for c in np.argsort(-(vectors @ vectors[anchor])) if c not in (anchor, POSITIVE)]

    def text(n: int) -> str:
        if n == near[0]:
            return CORPUS[anchor]  # the anchor again, elsewhere in the corpus
        return "twice" if n in near[1:3] else CORPUS[n]

    pair = [(CORPUS[anchor], CORPUS[POSITIVE])]
    vector = vectors[[anchor]]

    def negative(rank: int) -> str:
        settings = {"ranks": (rank, rank), "margin": 0.0, "ceiling": 1.0}
        # As its own positive, so that no score is above the positive's.
        return next(hard_negatives(pair, vector, vector, nearest_of(vectors), text, **settings)).negative

    assert [negative(rank) for rank in (1, 2, 3)] == ["twice", CORPUS[near[3]], CORPUS[near[4]]]


WRONG = {
    "ranks from 0": ({"ranks": (0, 5)}, "0 to 5"),
    "ranks reversed": ({"ranks": (9, 5)}, "9 to 5"),
    "margin": ({"margin": -0.1}, "margin is -0.1"),
    "ceiling": ({"ceiling": 95}, "ceiling is 95"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
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
    assert len(corpus) == 3
    for row, triplet in zip(corpus.token_ids(np.arange(3)), TRIPLETS, strict=True):
        assert [ids.tolist() for ids in row] == tokenizer(list(triplet[:3]))["input_ids"]


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

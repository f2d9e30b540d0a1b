"""Mining against its definition, written out pair by pair; and the training file that comes of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_jax.data.corpus import load_corpus
from simcse_jax.data.tokenizer import load_tokenizer, train_wordpiece
from simcse_jax.serving import mining
from simcse_jax.serving.index.sentence_index import SentenceIndex
from simcse_jax.serving.mining import Example, Rules, hard_negatives, read_pairs, write_negatives
from simcse_jax.system.errors import UserError
from tests.serving.made_vectors import COSINES, TEXTS, VECTORS


@pytest.fixture(params=[1024, 7])
def queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search all sentences in one block, or in many."""
    monkeypatch.setattr(mining, "QUERIES", request.param)


# Hard negatives -------------------------------------------------------------------------------------------------------

# The anchor of pair n is sentence n; its positive is one of the last five sentences.
PAIRS = [(TEXTS[n], TEXTS[55 + n % 5]) for n in range(20)]


def mined(pairs: list[tuple[str, str]] = PAIRS, corpus: list[str] = TEXTS, **settings: Any) -> dict[str, Example]:
    index = SentenceIndex(6, "made")
    index.add(corpus, VECTORS)
    anchors, positives = (VECTORS[[TEXTS.index(pair[side]) for pair in pairs]] for side in (0, 1))
    rules = Rules(**({"ranks": (1, 60), "margin": 0.0, "ceiling": 1.0} | settings))
    return {found.anchor: found for found in hard_negatives(pairs, anchors, positives, index, rules)}


def admitted(n: int, **settings: Any) -> list[str]:
    """Return all texts that may be a hard negative of pair n, the most similar first."""
    low, high = settings.get("ranks", (1, 60))
    positive = 55 + n % 5
    others = [c for c in np.argsort(-COSINES[n]).tolist() if c not in (n, positive)][low - 1 : high]
    label = COSINES[n, positive]
    limits = [label - settings.get("margin", 0.0), label - abs(label) * settings.get("relative_margin", 0.0)]
    limit = min(*limits, settings.get("ceiling", 1.0))
    return [TEXTS[c] for c in others if settings.get("floor", -1.0) <= COSINES[n, c] <= limit]


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"ranks": (1, 58)},
        {"ranks": (1, 5)},
        {"ranks": (10, 30), "margin": 0.2},
        {"ceiling": 0.3},
        {"ceiling": 0.9, "floor": 0.2},
        {"relative_margin": 0.3},
        {"ranks": (2, 20), "margin": 0.1, "relative_margin": 0.1, "floor": -0.2, "ceiling": 0.6},
    ],
)
def test_negatives_are_those_of_the_definition(settings: dict[str, Any], negatives: int) -> None:
    expected = {anchor: tuple(admitted(n, **settings)[:negatives]) for n, (anchor, _) in enumerate(PAIRS)}
    found = mined(negatives=negatives, **settings)
    assert {anchor: example.negatives for anchor, example in found.items()} == {a: t for a, t in expected.items() if t}
    assert 0 < len(found) < 20 or settings.get("ranks") == (1, 58)
    for example in found.values():
        assert len(example.negative_scores) == len(example.negatives)
        assert list(example.negative_scores) == sorted(example.negative_scores, reverse=True)


@pytest.mark.usefixtures("queries")
def test_a_sample_is_of_all_that_is_admitted_and_of_the_seed() -> None:
    settings: dict[str, Any] = {"ranks": (3, 40), "margin": 0.1, "negatives": 4, "sampled": True}
    every = {anchor: admitted(n, ranks=(3, 40), margin=0.1) for n, (anchor, _) in enumerate(PAIRS)}
    seeds = [mined(seed=seed, **settings) for seed in range(30)]
    assert seeds[0] == mined(seed=0, **settings) != seeds[1]
    for anchor, texts in every.items():
        drawn = [found[anchor].negatives for found in seeds if anchor in found]
        assert all(len(some) == min(4, len(texts)) for some in drawn)
        assert all([*some] == [text for text in texts if text in some] for some in drawn)  # the most similar first
        if len(texts) <= 8:
            assert {text for some in drawn for text in some} == {*texts}


def test_no_other_positive_of_the_anchor_is_a_negative() -> None:
    first = mined()[TEXTS[0]]
    other = (TEXTS[0], first.negatives[0])
    for pairs in ([*PAIRS, other], [other, *PAIRS]):
        assert mined(pairs)[TEXTS[0]].negatives[0] not in (first.negatives[0], first.positive)


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
    assert [some[TEXTS[0]].negatives[0] for some in found] == expected[:3]
    [together] = mined([(TEXTS[0], TEXTS[0])], corpus, ranks=(1, 3), negatives=3).values()
    assert list(together.negatives) == expected[:3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": (0, 5)}, "0 to 5"),
        ({"ranks": (9, 5)}, "9 to 5"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"relative_margin": 3.0}, "relative_margin is 3"),
        ({"ceiling": 95}, "ceiling is 95"),
        ({"floor": -2}, "floor is -2"),
        ({"floor": 0.95}, "floor is 0.95, above the ceiling"),
        ({"negatives": 0}, "negatives is 0"),
        ({"negatives": 4, "ranks": (1, 3)}, "negatives is 4; the ranks 1 to 3 admit 1 to 3"),
    ],
)
def test_rules_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_negatives": 3, "absolute_margin": 0.0, "range_max": 20},
        {"num_negatives": 2, "absolute_margin": 0.1, "range_max": 20},
        {"num_negatives": 2, "relative_margin": 0.05, "range_max": 20},
        {"num_negatives": 4, "absolute_margin": 0.0, "max_score": 0.95, "min_score": 0.5, "range_max": 50},
    ],
)
def test_the_negatives_are_those_of_sentence_transformers(settings: dict[str, Any], small_model: Path) -> None:
    """Where the definitions agree: no repeated anchor, no anchor in the corpus, ranks from the first."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from simcse_jax import SimCSE
    from tests.small_models import demo_files

    sentences = dict.fromkeys((demo_files() / "sentences.txt").read_text().splitlines()[:80])
    pairs = [(text, f"{text} in the park") for text in sentences if text]
    corpus = list(dict.fromkeys(positive for _, positive in pairs))
    table = Dataset.from_dict({"anchor": [anchor for anchor, _ in pairs], "positive": [text for _, text in pairs]})
    there: Any = mine_hard_negatives(
        table,
        SentenceTransformer(str(small_model), device="cpu"),
        output_format="triplet",
        sampling_strategy="top",
        verbose=False,
        **settings,
    )
    expected: dict[str, list[str]] = {}
    for row in there:
        expected.setdefault(row["anchor"], []).append(row["negative"])
    model = SimCSE(small_model)
    index = model.build_index(corpus)
    anchors, positives = (model.encode([pair[side] for pair in pairs]) for side in (0, 1))
    names = {"absolute_margin": "margin", "relative_margin": "relative_margin", "max_score": "ceiling"}
    names |= {"min_score": "floor", "num_negatives": "negatives"}
    rules: dict[str, Any] = {"margin": 0.0, "ceiling": 1.0} | {
        names[key]: value for key, value in settings.items() if key in names
    }
    found = hard_negatives(pairs, anchors, positives, index, Rules(ranks=(1, settings["range_max"]), **rules))
    assert {example.anchor: list(example.negatives) for example in found} == expected
    assert len(expected) > 9


# Training files -------------------------------------------------------------------------------------------------------

EXAMPLES = [
    Example("a man plays", 'he said "play", twice', ("a man, who sleeps",), 0.9, (0.5,)),
    Example("None", "NA", ("two\nlines",), 0.9, (0.5,)),
    Example("a lone\rreturn", "ünïcödé", ("line\u2028separator",), 0.9, (0.5,)),
]


def test_what_is_written_trains(tmp_path: Path) -> None:
    out = tmp_path / "mined.csv"
    assert write_negatives(out, iter(EXAMPLES)) == (3, 3)
    assert read_pairs([str(out)]) == [(example.anchor, example.positive) for example in EXAMPLES]
    assert read_pairs([str(out)], ["sent0", "hard_neg"])[1] == ("None", "two\nlines")
    rows = [[example.anchor, example.positive, *example.negatives] for example in EXAMPLES]
    train_wordpiece([text for row in rows for text in row], 120, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    corpus = load_corpus([str(out)], tokenizer, 32, cache_dir=tmp_path / "cache")
    assert corpus.columns == ("sent0", "sent1", "hard_neg")
    for ids_of_row, row in zip(corpus.token_ids(np.arange(3)), rows, strict=True):
        assert [ids.tolist() for ids in ids_of_row] == tokenizer(row)["input_ids"]


def test_several_negatives_train_without_flags_and_may_be_missing(tmp_path: Path) -> None:
    out = tmp_path / "mined.csv"
    several = [
        Example("a man plays", "he plays", ("he sleeps", "she sings", "it rains"), 0.9, (0.5, 0.4, 0.3)),
        Example("a dog", "one dog", ("a cat",), 0.9, (0.5,)),
    ]
    assert write_negatives(out, iter(several), 3) == (2, 4)
    train_wordpiece([text for example in several for text in example[:2]], 120, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    corpus = load_corpus([str(out)], tokenizer, 32, cache_dir=tmp_path / "cache")
    assert corpus.columns == ("sent0", "sent1", "hard_neg_1", "hard_neg_2", "hard_neg_3")
    assert corpus.report.missing == 2
    assert (corpus.lengths > 0).tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    for ids, text in zip(corpus.token_ids(np.array([0]))[0][2:], several[0].negatives, strict=True):
        assert ids.tolist() == tokenizer(text)["input_ids"]


def test_rows_of_other_splits_are_not_mined(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("split,query,pos\ntrain,a cat,one cat\ntest,a dog,one dog\n")
    assert read_pairs([str(tmp_path / "a.csv")]) == [("a cat", "one cat")]


def test_an_earlier_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "mined.csv"
    write_negatives(out, EXAMPLES)
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"No pair[\s\S]*--ranks"):
        write_negatives(out, [])

    def broken() -> Iterator[Example]:
        yield EXAMPLES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_negatives(out, broken())
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mined.csv"]
    write_negatives(out, EXAMPLES[:1])
    assert len(read_pairs([str(out)])) == 1


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mined\.csv"):
        write_negatives(tmp_path / "mined.txt", EXAMPLES)
    with pytest.raises(UserError, match="nowhere"):
        write_negatives(tmp_path / "nowhere" / "mined.csv", EXAMPLES)
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"lines\.txt has one column"):
        read_pairs([str(tmp_path / "lines.txt")])

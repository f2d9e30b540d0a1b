"""Semantic textual similarity: how well cosines order graded pairs, by the paper's protocol.

STS12 to STS16 put all subsets of a year together and take one Spearman correlation ("all", the paper's appendix B);
STS13 is without SMT; pairs without a gold score are not scored; STS-B and SICK-R are scored on test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs, parse_score
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.evaluation.senteval import read_lines
from simcse_jax.system.errors import UserError

YEARS: dict[str, tuple[str, ...]] = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
# Tasks with splits: the file of each, and the scale of their scores.
SPLIT_FILES: dict[str, dict[str, str]] = {
    "STSBenchmark": {
        "train": "STS/STSBenchmark/sts-train.csv",
        "dev": "STS/STSBenchmark/sts-dev.csv",
        "test": "STS/STSBenchmark/sts-test.csv",
    },
    "SICKRelatedness": {
        "train": "SICK/SICK_train.txt",
        "dev": "SICK/SICK_trial.txt",
        "test": "SICK/SICK_test_annotated.txt",
    },
}
STSB_SCALE = (0.0, 5.0)
TASKS = (*YEARS, *SPLIT_FILES)
SPLITS = ("train", "dev", "test")


def tasks_with(split: str) -> tuple[str, ...]:
    """The tasks that have this split, in the paper's order: all seven have a test split, two of them a dev split."""
    return TASKS if split == "test" else tuple(SPLIT_FILES)


def load_sts(folder: Path, task: str, split: str = "test") -> dict[str, GradedPairs]:
    """The scored pairs of one task by subset ("" where there is but one); folder is `senteval_folder`'s.

    UserError when a file is missing or has a malformed line (named), or the task has no such split.
    """
    if task in SPLIT_FILES:
        path = folder / SPLIT_FILES[task][split]
        if not path.is_file():
            raise UserError(f"{path} does not exist: the folder of evaluation data lacks {task}'s {split} split.")
        return {"": load_graded_pairs(str(path))}
    if split != "test":
        raise UserError(f"{task} has a test split only. With a {split} split: {', '.join(SPLIT_FILES)}.")
    place = folder / "STS" / f"{task}-en-test"
    return {subset: _load_subset(place, subset) for subset in YEARS[task]}


def _load_subset(place: Path, subset: str) -> GradedPairs:
    """One subset of a year: two files, line by line; blank gold lines are pairs that nobody scored."""
    inputs, golds = place / f"STS.input.{subset}.txt", place / f"STS.gs.{subset}.txt"
    texts, scores = read_lines(inputs), read_lines(golds)
    if len(texts) != len(scores):
        raise UserError(
            f"{inputs} has {len(texts)} lines and {golds.name} has {len(scores)}; they belong together line by line.\n"
            "Fetch both again from one source."
        )
    gold, first, second = [], [], []
    for line, (text, score) in enumerate(zip(texts, scores, strict=True), 1):
        if not score.strip():
            continue
        cells = text.split("\t")
        if len(cells) < 2 or not all(cell.strip() for cell in cells[:2]):
            raise UserError(f"{inputs}, line {line}: two sentences with a tab between are needed; got {text!r:.100}.")
        gold.append(parse_score(str(golds), line, score))
        first.append(cells[0])
        second.append(cells[1])
    if not gold:
        raise UserError(f"{golds} holds no score at all. Fetch it again.")
    return GradedPairs(str(inputs), np.array(gold, np.float64), first, second)


def evaluate_sts(encode: Encode, subsets: dict[str, GradedPairs], task: str, split: str = "test") -> Score:
    """The score of one task. Of a year: `all` (the headline), `mean` and `wmean` over subsets (weighted by pairs).

    The same with the prefix pearson_, and each subset's own; of other tasks: `spearman`, `pearson`. Times 100.
    """
    together = joined(task, list(subsets.values()))
    cosines = pair_cosines(encode, together)
    whole = correlations(cosines, together.gold)
    protocol: dict[str, Any] = {
        "split": split,
        "pairs": len(together.gold),
        "aggregation": "Spearman x 100 of cosine and gold",
        "data": together.fingerprint,
    }
    evidence: dict[str, Any] = {"gold": together.gold, "cosines": cosines}
    if len(subsets) == 1:
        return Score(task, "spearman", whole, protocol, **evidence)
    protocol["aggregation"] += ", all subsets as one (`all`)"
    ends = np.cumsum([len(pairs.gold) for pairs in subsets.values()])
    parts = np.split(np.arange(ends[-1]), ends[:-1])
    each = {
        subset: correlations(cosines[part], together.gold[part]) | {"pairs": len(part)}
        for subset, part in zip(subsets, parts, strict=True)
    }
    values = _aggregated("", "spearman", whole, each) | _aggregated("pearson_", "pearson", whole, each)
    return Score(task, "all", values, protocol, each, **evidence)


def _aggregated(prefix: str, kind: str, whole: dict[str, float], each: dict[str, dict[str, float]]) -> dict[str, float]:
    figures = np.array([scores[kind] for scores in each.values()])
    weights = np.array([scores["pairs"] for scores in each.values()])
    return {
        f"{prefix}all": whole[kind],
        f"{prefix}mean": float(figures.mean()),
        f"{prefix}wmean": float(np.average(figures, weights=weights)),
    }


def evaluate_pairs(encode: Encode, pairs: GradedPairs) -> dict[str, float]:
    """{"spearman", "pearson"} of cosine and gold, times 100, and {"pairs"}, how many there were.

    Raises what `pair_cosines` raises.
    """
    return correlations(pair_cosines(encode, pairs), pairs.gold) | {"pairs": len(pairs.gold)}


def pair_cosines(encode: Encode, pairs: GradedPairs) -> np.ndarray:
    """float64[n]: the cosine of each pair. UserError for a vector that is not finite or zero (names its sentence)."""
    count = len(pairs.gold)
    vectors = np.asarray(encode(pairs.first + pairs.second), np.float64)
    if vectors.ndim != 2 or len(vectors) != 2 * count:
        raise ValueError(f"encode gave shape {vectors.shape} for {2 * count} texts; expected ({2 * count}, D).")
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        text = (pairs.first + pairs.second)[bad[0]]
        kind = "zero" if norms[bad[0]] == 0 else "not finite"
        raise UserError(
            f"{pairs.name}: {len(bad)} of {2 * count} sentence vectors are {kind}, e.g. that of {text!r:.100}.\n"
            "The model's weights are broken, or training diverged: go back to an earlier checkpoint."
        )
    unit = vectors / norms[:, None]
    return np.sum(unit[:count] * unit[count:], axis=1)


def correlations(cosines: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """{"spearman", "pearson"} times 100. Ties share their mean rank; what is all equal orders nothing: 0."""
    if np.ptp(cosines) == 0 or np.ptp(gold) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    from scipy import stats  # takes a second, and every start of a training would wait for it

    spearman: Any = stats.spearmanr(cosines, gold)
    return {"spearman": 100 * float(spearman.statistic), "pearson": 100 * float(np.corrcoef(cosines, gold)[0, 1])}


def joined(name: str, parts: list[GradedPairs]) -> GradedPairs:
    """The pairs of all parts, one after the other."""
    return GradedPairs(
        name,
        np.concatenate([part.gold for part in parts]),
        [text for part in parts for text in part.first],
        [text for part in parts for text in part.second],
    )

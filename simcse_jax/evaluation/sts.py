"""Score semantic textual similarity: how well cosines order graded pairs, by the protocol of the SimCSE paper.

STS12 to STS16 concatenate all subsets of a year and take one Spearman correlation ("all", the paper's appendix B).
STS13 is without SMT. Pairs without a gold score are left out. STS-B and SICK-R use their test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax.evaluation.graded_pairs import GradedPairs, load_graded_pairs, parse_score
from simcse_jax.evaluation.results import Encode, Score
from simcse_jax.evaluation.senteval import read_lines
from simcse_jax.system.errors import UserError
from simcse_jax.system.vectors import check_vectors, normalize

YEARS: dict[str, tuple[str, ...]] = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "OnWN", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
# Tasks with splits, and the file of each.
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
# Angles, in radians, that differ by no more in all of a task's pairs differ by the rounding of float32 alone.
SAME_ANGLE = 1e-5
CONSTANT = "the model gives all pairs the same cosine, up to rounding: scored 0"
TASKS = (*YEARS, *SPLIT_FILES)


def tasks_with(split: str) -> tuple[str, ...]:
    """Return the tasks that have this split, in the paper's order: all seven have "test", two "dev" and "train"."""
    return TASKS if split == "test" else tuple(SPLIT_FILES)


def load_sts(folder: Path, task: str, split: str = "test") -> dict[str, GradedPairs]:
    """Return the pairs of a task that have a score, by subset ("" where there is only one).

    folder: what `senteval_folder` returns. Raises UserError for a missing file, a malformed line (with its number), or
    a task without this split.
    """
    if task in SPLIT_FILES:
        path = folder / SPLIT_FILES[task][split]
        if not path.is_file():
            raise UserError(f"{path} does not exist: the folder given as --data lacks the {split} split of {task}.")
        return {"": load_graded_pairs(str(path))}
    if split != "test":
        raise UserError(f"{task} has a test split only. With a {split} split: {', '.join(SPLIT_FILES)}.")
    place = folder / "STS" / f"{task}-en-test"
    return {subset: _load_subset(place, subset) for subset in YEARS[task]}


def _load_subset(place: Path, subset: str) -> GradedPairs:
    """Read one subset of a year from its two files; a pair whose line of the gold file is blank has no score."""
    inputs, golds = place / f"STS.input.{subset}.txt", place / f"STS.gs.{subset}.txt"
    texts, scores = read_lines(inputs), read_lines(golds)
    if len(texts) != len(scores):
        raise UserError(
            f"{inputs} has {len(texts)} lines and {golds.name} has {len(scores)}; they must match line by line.\n"
            "Download both again, from one source."
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
        raise UserError(f"{golds} has no score. Download it again.")
    return GradedPairs(str(inputs), np.array(gold, np.float64), first, second)


def evaluate_sts(encode: Encode, subsets: dict[str, GradedPairs], task: str, split: str = "test") -> Score:
    """Return the score of one task, times 100.

    A year has `all` (the headline), `mean` and `wmean` over subsets (weighted by pairs), the same with the prefix
    `pearson_`, and the values of each subset. Other tasks have `spearman` (the headline) and `pearson`.
    """
    together = joined(task, list(subsets.values()))
    cosines = pair_cosines(encode, together)
    whole = correlations(cosines, together.gold)
    notes = [together.note] if together.note else []
    if _are_equal(cosines):
        notes.append(CONSTANT)
        cosines = np.full_like(cosines, cosines[0])  # so that the bootstrap orders no rounding
    protocol: dict[str, Any] = {
        "split": split,
        "pairs": len(together.gold),
        "aggregation": "Spearman x 100 of cosine and gold",
        "data": together.fingerprint,
    }
    if notes:
        protocol["note"] = "; ".join(notes)
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
    parts = np.array([scores[kind] for scores in each.values()])
    weights = np.array([scores["pairs"] for scores in each.values()])
    return {
        f"{prefix}all": whole[kind],
        f"{prefix}mean": float(parts.mean()),
        f"{prefix}wmean": float(np.average(parts, weights=weights)),
    }


def evaluate_pairs(encode: Encode, pairs: GradedPairs) -> dict[str, float]:
    """Return "spearman" and "pearson" of cosine and gold, times 100, and "pairs", their number."""
    return correlations(pair_cosines(encode, pairs), pairs.gold) | {"pairs": len(pairs.gold)}


def pair_cosines(encode: Encode, pairs: GradedPairs) -> np.ndarray:
    """Return the cosine of each pair, float64[n] in [-1, 1]; UserError for a vector that is not finite or zero."""
    texts = pairs.first + pairs.second
    unit = normalize(check_vectors(np.asarray(encode(texts)), texts, pairs.name))
    return np.clip(np.sum(unit[: len(pairs.first)] * unit[len(pairs.first) :], axis=1), -1, 1)


def _are_equal(cosines: np.ndarray) -> bool:
    """Return whether the cosines differ by rounding alone. Near 1 and -1, angles show smaller differences."""
    return bool(np.ptp(np.arccos(cosines)) <= SAME_ANGLE)


def correlations(cosines: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Return "spearman" and "pearson", times 100. Ties share their mean rank; both are 0 where all values are equal."""
    if _are_equal(cosines) or np.ptp(gold) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    from scipy import stats  # here, because its import takes a second of every start of training

    spearman: Any = stats.spearmanr(cosines, gold)
    return {"spearman": 100 * float(spearman.statistic), "pearson": 100 * float(np.corrcoef(cosines, gold)[0, 1])}


def has_collapsed(scores: dict[str, float]) -> bool:
    """Return whether these scores, of `correlations`, are those of equal cosines: only these give exactly 0 twice."""
    return scores.get("spearman") == scores.get("pearson") == 0


def joined(name: str, parts: list[GradedPairs]) -> GradedPairs:
    """Return the pairs of all parts, concatenated."""
    return GradedPairs(
        name,
        np.concatenate([part.gold for part in parts]),
        [text for part in parts for text in part.first],
        [text for part in parts for text in part.second],
    )

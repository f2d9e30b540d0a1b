"""Rows for tables: runs of one recipe together, averages, and differences with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from simcse_jax.evaluation.results import Difference, Entry, Score, Verdict

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0
_BLOCK = 2_000_000  # numbers that are ranked together, to bound memory


def grouped(verdicts: Sequence[Verdict]) -> tuple[Entry, ...]:
    """One entry for each model, but runs that differ in nothing but the seed share one; in order of appearance.

    A run that is there twice (the same weights) counts once among them. No two entries have the same name.
    """
    entries: dict[Any, list[Verdict]] = {}
    for place, verdict in enumerate(verdicts):
        members = entries.setdefault(verdict.recipe or place, [])
        weights = verdict.protocol.get("fingerprint")
        if weights is None or weights not in [member.protocol.get("fingerprint") for member in members]:
            members.append(verdict)
    names = [_name([verdict.name for verdict in members]) for members in entries.values()]
    unique = [
        f"{name} ({names[:n].count(name) + 1})" if names.count(name) > 1 else name for n, name in enumerate(names)
    ]
    return tuple(Entry(name, tuple(members)) for name, members in zip(unique, entries.values(), strict=True))


def _name(names: Sequence[str]) -> str:
    """The one name, or what several have in common, with a star for the rest."""
    if len(names) == 1:
        return names[0]
    start = _shared_start(names)
    end = _shared_start([name[len(start) :][::-1] for name in names])[::-1]
    _, slash, folders = end.partition("/")  # seed0 and seed10 share no ending
    return f"{start}*{slash}{folders}"


def _shared_start(names: Sequence[str]) -> str:
    low, high = min(names), max(names)
    differ = (place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(differ, min(len(low), len(high)))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """{"mean", "sd" (of a sample, n - 1; 0 for one value), "min", "max", "runs"}."""
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
        "runs": len(array),
    }


def average(verdict: Verdict, tasks: Iterable[str]) -> float | None:
    """The mean of the headline values of these tasks; None unless all are there."""
    scores = [verdict.scores.get(task) for task in tasks]
    if not scores or any(score is None for score in scores):
        return None
    return float(np.mean([score.value for score in scores if score is not None]))


def averages_of(entry: Entry, tasks: Iterable[str]) -> list[float]:
    """The averages over these tasks, of those of the entry's runs that have one."""
    wanted = tuple(tasks)
    found = [average(verdict, wanted) for verdict in entry.verdicts]
    return [value for value in found if value is not None]


def differences(
    entries: Sequence[Entry], averages: dict[str, tuple[str, ...]], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[Difference, ...]:
    """Every other entry minus the first, task by task and for each average; only where both were scored on the same.

    The interval is of the paired bootstrap: the examples of a task are drawn again with replacement, the same ones for
    both, and several runs count by their mean. So it speaks of the choice of examples, not of the choice of seeds.
    """
    if len(entries) < 2:
        return ()
    drawn = [_resampled(entry, resamples, seed) for entry in entries]
    found = []
    for entry, samples in zip(entries[1:], drawn[1:], strict=True):
        same = [task for task in samples if task in drawn[0] and _data(entry, task) == _data(entries[0], task)]
        shared = {task: samples[task] - drawn[0][task] for task in same}
        points = {task: _mean(entry, task) - _mean(entries[0], task) for task in shared}
        for name, tasks in averages.items():
            if tasks and all(task in shared for task in tasks):
                shared[name] = np.mean([shared[task] for task in tasks], axis=0)
                points[name] = float(np.mean([points[task] for task in tasks]))
        for task, values in shared.items():
            low, high = np.percentile(values, INTERVAL)
            found.append(Difference(task, entries[0].name, entry.name, points[task], float(low), float(high)))
    return tuple(found)


def _data(entry: Entry, task: str) -> set[Any]:
    """What the task's examples were, by their hash."""
    return {verdict.scores[task].protocol.get("data") for verdict in entry.verdicts}


def _mean(entry: Entry, task: str) -> float:
    return float(np.mean(entry.values(task)))


def _resampled(entry: Entry, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """float64[resamples] by task: the mean over the entry's runs of its score on each draw of examples.

    A task counts when every run of the entry has it. The draws depend on the seed, the task and its number of examples
    alone, so those of two entries belong together.
    """
    tasks = [task for task in entry.verdicts[0].scores if all(task in v.scores for v in entry.verdicts)]
    samples = {}
    for task in tasks:
        scores = [verdict.scores[task] for verdict in entry.verdicts]
        each = [_bootstrap(score, resamples, seed) for score in scores]
        if all(values is not None for values in each):
            samples[task] = np.mean([values for values in each if values is not None], axis=0)
    return samples


def _bootstrap(score: Score, resamples: int, seed: int) -> np.ndarray | None:
    """float64[resamples]: the score, times 100, of examples drawn with replacement; None without the evidence."""
    rng = np.random.default_rng([seed, *score.task.encode()])
    if score.correct is not None:
        count = len(score.correct)
        picks = (rng.integers(0, count, (size, count)) for size in _blocks(resamples, count))
        return 100 * np.concatenate([score.correct[pick].mean(axis=1) for pick in picks])
    if score.gold is None or score.cosines is None:
        return None
    count, parts = len(score.gold), []
    for size in _blocks(resamples, count):
        picks = rng.integers(0, count, (size, count))
        parts.append(_spearman(score.cosines[picks], score.gold[picks]))
    return 100 * np.concatenate(parts)


def _blocks(resamples: int, count: int) -> list[int]:
    """How many draws of `count` examples to make at a time."""
    size = max(1, _BLOCK // count)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float64[S] from float64[S, n], a sample a row: the correlation of mean ranks; 0 where one is all equal."""
    ranks = [stats.rankdata(values, axis=1) for values in (x, y)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)

"""Compare models: group the runs of a recipe, average tasks, and bound differences by the paired bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simcse_jax.evaluation.results import Difference, Entry, Score, Verdict

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0
_BLOCK = 2_000_000  # numbers ranked at a time, which bounds memory

Draws = dict[str, np.ndarray]  # by task: float64[resamples], the score on each draw of examples


def group_runs(verdicts: Sequence[Verdict]) -> tuple[Entry, ...]:
    """Return one entry for each model, in order of appearance; runs that differ only in the seed share one.

    A run that is given twice (the same weights) counts once. No two entries have the same name.
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
    """Return the one name, or what several have in common with a star for the rest."""
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


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return "mean", "sd" (of a sample, n - 1; 0 for one value), "min", "max" and "runs", the number of values."""
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
        "runs": len(array),
    }


def average(verdict: Verdict, tasks: Iterable[str]) -> float | None:
    """Return the mean of the headline values of these tasks, or None where one is missing."""
    scores = [verdict.scores.get(task) for task in tasks]
    if not scores or any(score is None for score in scores):
        return None
    return float(np.mean([score.value for score in scores if score is not None]))


def averages_of(entry: Entry, tasks: Iterable[str]) -> list[float]:
    """Return the average over these tasks of each of the entry's runs that has all of them."""
    wanted = tuple(tasks)
    found = [average(verdict, wanted) for verdict in entry.verdicts]
    return [value for value in found if value is not None]


def compare(
    entries: Sequence[Entry], averages: dict[str, tuple[str, ...]], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[tuple[Difference, ...], dict[str, str]]:
    """Return the difference of every other entry from the first, and by task the entry that is above all others.

    Both are for each task and each average, where the entries have scores on the same examples. The interval is of the
    paired bootstrap: examples are drawn with replacement, the same ones for both entries, and several runs count by
    their mean. So it covers the choice of examples, not the choice of seeds. An entry is above another where the
    interval of their difference excludes 0.
    """
    if len(entries) < 2:
        return (), {}
    draws = [_resample(entry, resamples, seed) for entry in entries]
    pairs = list(zip(entries, draws, strict=True))
    found = tuple(row for other in pairs[1:] for row in _differences(pairs[0], other, averages))
    columns = {task: (task,) for own in draws for task in own} | averages
    best = {name: top for name, tasks in columns.items() if (top := _best(pairs, name, tasks)) is not None}
    return found, best


def _best(pairs: Sequence[tuple[Entry, Draws]], name: str, tasks: tuple[str, ...]) -> str | None:
    """Return the name of the entry whose value of this task or average is clearly above that of every other."""
    scored = [pair for pair in pairs if tasks and all(pair[0].values(task) for task in tasks)]
    if len(scored) < 2:
        return None
    top = max(scored, key=lambda pair: _mean(pair[0], tasks))
    others = [pair for pair in scored if pair is not top]
    rows = [row for other in others for row in _differences(other, top, {name: tasks}) if row.task == name]
    return top[0].name if len(rows) == len(others) and all(row.direction == "higher" for row in rows) else None


def _differences(
    base: tuple[Entry, Draws], other: tuple[Entry, Draws], averages: dict[str, tuple[str, ...]]
) -> list[Difference]:
    """Return `other` minus `base`, task by task and for each average whose tasks both have on the same examples."""
    (one, one_draws), (two, two_draws) = base, other
    same = [task for task in two_draws if task in one_draws and _data(two, task) == _data(one, task)]
    shared = {task: two_draws[task] - one_draws[task] for task in same}
    points = {task: _mean(two, (task,)) - _mean(one, (task,)) for task in shared}
    for name, tasks in averages.items():
        if tasks and all(task in shared for task in tasks):
            shared[name] = np.mean([shared[task] for task in tasks], axis=0)
            points[name] = float(np.mean([points[task] for task in tasks]))
    intervals = {task: np.percentile(values, INTERVAL) for task, values in shared.items()}
    return [
        Difference(task, one.name, two.name, points[task], float(low), float(high))
        for task, (low, high) in intervals.items()
    ]


def _data(entry: Entry, task: str) -> set[Any]:
    """Return the hashes of the task's examples, one where all runs had the same."""
    return {verdict.scores[task].protocol.get("data") for verdict in entry.verdicts}


def _mean(entry: Entry, tasks: Sequence[str]) -> float:
    """Return the mean over the tasks of the mean over the entry's runs."""
    return float(np.mean([np.mean(entry.values(task)) for task in tasks]))


def _resample(entry: Entry, resamples: int, seed: int) -> Draws:
    """Return the mean over the entry's runs of the score on each draw of examples, for tasks that every run has.

    The draws depend on the seed, the task and its number of examples alone, so those of two entries are paired.
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
    """Return float64[resamples], the score times 100 of examples drawn with replacement; None without the examples."""
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
    """Return how many draws of `count` examples to make at a time."""
    size = max(1, _BLOCK // count)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation of each row of float64[S, n]: float64[S]; ties share ranks, all equal gives 0."""
    from scipy import stats  # here, because its import takes a second of every start

    ranks = [stats.rankdata(values, axis=1) for values in (x, y)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)

"""Compare models: group the runs of a recipe, average tasks, and bound differences by the paired bootstrap."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from simcse_jax.evaluation.graded_pairs import FEW
from simcse_jax.evaluation.results import Difference, Entry, ModelResult, Score, shared_start

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0
_BLOCK = 2_000_000  # numbers ranked at a time, which bounds memory

WIDTH_NOTE = re.compile(r" \(width \d+\)$")  # at the end of the name of a row with vectors that are cut

Draws = dict[str, np.ndarray]  # by task: float64[resamples], the score on each draw of examples


def group_runs(models: Sequence[ModelResult]) -> tuple[Entry, ...]:
    """Return one entry for each model, in order of appearance; runs that differ only in the seed share one.

    A run that is given twice (the same weights) counts once. No two entries have the same name.
    """
    entries: dict[Any, list[ModelResult]] = {}
    for place, model in enumerate(models):
        members = entries.setdefault(model.recipe or place, [])
        weights = model.protocol.get("fingerprint")
        if weights is None or weights not in [member.protocol.get("fingerprint") for member in members]:
            members.append(model)
    names = [_name([model.name for model in members]) for members in entries.values()]
    unique = [
        f"{name} ({names[:n].count(name) + 1})" if names.count(name) > 1 else name for n, name in enumerate(names)
    ]
    return tuple(Entry(name, tuple(members)) for name, members in zip(unique, entries.values(), strict=True))


def _name(names: Sequence[str]) -> str:
    """Return the one name, or what several have in common with a star for the rest; all have one width, or none."""
    if len(names) == 1:
        return names[0]
    if width := WIDTH_NOTE.search(names[0]):
        return _name([WIDTH_NOTE.sub("", name) for name in names]) + width[0]
    start = names[0][: shared_start(names)]
    ends = [name[len(start) :][::-1] for name in names]
    _, slash, folders = ends[0][: shared_start(ends)][::-1].partition("/")  # seed0 and seed10 share no ending
    return f"{start}*{slash}{folders}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return "mean", "sd" (of a sample, n - 1; 0 for one value), "min", "max" and "runs", the number of values."""
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        "min": float(array.min()),
        "max": float(array.max()),
        "runs": len(array),
    }


def compare(
    entries: Sequence[Entry], averages: dict[str, tuple[str, ...]], resamples: int = RESAMPLES
) -> tuple[tuple[Difference, ...], dict[str, str]]:
    """Return the difference of every other entry from the first, and by task the entry that is above all others.

    Both are for each task and each average, where the entries have scores on the same examples. The interval is of the
    paired bootstrap: examples are drawn with replacement, the same ones for both entries, and several runs count by
    their mean. So it covers the choice of examples, not the choice of seeds. An entry is above another where the
    interval of their difference excludes 0.
    """
    if len(entries) < 2:
        return (), {}
    draws = [_resample(entry, resamples) for entry in entries]
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
    few = {task for task in same if any(model.scores[task].examples < FEW for model in two.models)}
    for name, tasks in averages.items():
        if tasks and all(task in shared for task in tasks):
            shared[name] = np.mean([shared[task] for task in tasks], axis=0)
            points[name] = float(np.mean([points[task] for task in tasks]))
            if few & {*tasks}:
                few.add(name)
    intervals = {task: np.percentile(values, INTERVAL) for task, values in shared.items()}
    return [
        Difference(task, one.name, two.name, points[task], float(low), float(high), task in few)
        for task, (low, high) in intervals.items()
    ]


def _data(entry: Entry, task: str) -> set[Any]:
    """Return the hashes of the task's examples, one where all runs had the same."""
    return {model.scores[task].protocol.get("data") for model in entry.models}


def _mean(entry: Entry, tasks: Sequence[str]) -> float:
    """Return the mean over the tasks of the mean over the entry's runs."""
    return float(np.mean([np.mean(entry.values(task)) for task in tasks]))


def _resample(entry: Entry, resamples: int) -> Draws:
    """Return the mean over the entry's runs of the score on each draw of examples, for tasks that every run has.

    The draws depend on the task and its number of examples alone, so those of two entries are paired.
    """
    each = [
        {task: draws for task, score in model.scores.items() if (draws := _bootstrap(score, resamples)) is not None}
        for model in entry.models
    ]
    tasks = [task for task in each[0] if all(task in own for own in each)]
    return {task: np.mean([own[task] for own in each], axis=0) for task in tasks}


def _bootstrap(score: Score, resamples: int) -> np.ndarray | None:
    """Return float64[resamples], the score times 100 of examples drawn with replacement; None without the examples."""
    gold, cosines = score.gold, score.cosines
    averaged = score.correct if score.each is None else score.each
    if averaged is not None:
        count, value = len(averaged), lambda picks: averaged[picks].mean(axis=1)
    elif gold is not None and cosines is not None:
        statistic = score.statistic or _spearman
        count, value = len(gold), lambda picks: statistic(cosines[picks], gold[picks])
    else:
        return None
    rng, size = np.random.default_rng([SEED, *score.task.encode()]), max(1, _BLOCK // count)
    sizes = [min(size, resamples - start) for start in range(0, resamples, size)]
    return 100 * np.concatenate([value(rng.integers(0, count, (size, count))) for size in sizes])


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation of each row of float64[S, n]: float64[S]; ties share ranks, all equal gives 0."""
    from scipy import stats  # here, because its import takes a second of every start

    ranks = [stats.rankdata(values, axis=1) for values in (x, y)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)

"""Hold the results of an evaluation: scores with their protocol, failures and their reasons, and the geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simcse_jax.system.vectors import check_vectors, normalize

Encode = Callable[[list[str]], np.ndarray]  # texts to float[N, D]
QUERY, DOCUMENT = "query", "document"  # roles of texts, for which a model may have prompts
SHORT_TASKS = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
LONGEST = 36  # characters of a model's name that fit in a table
SPACE_METRICS = ("alignment", "uniformity", "mean_cosine", "effective_rank", "isotropy", "top_share")  # of a Space


@dataclasses.dataclass(frozen=True)
class RoleEncode:
    """Encode texts, and texts of a role with the model's prompt for it."""

    plain: Encode
    roles: Mapping[str, Encode]  # by role, where it has a prompt of its own

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self.plain(texts)


def each_role(encode: Encode, change: Callable[[Encode], Encode]) -> Encode:
    """Return the `encode` with a change to that of every role."""
    if isinstance(encode, RoleEncode):
        return RoleEncode(change(encode.plain), {role: change(own) for role, own in encode.roles.items()})
    return change(encode)


def for_role(encode: Encode, role: str) -> Encode:
    """Return the `encode` of texts in this role: itself, unless it has another."""
    return encode.roles.get(role, encode.plain) if isinstance(encode, RoleEncode) else encode


def unit_pair(encode: Encode, queries: list[str], documents: list[str], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of queries and documents, float64 of length 1; UserError, with the name, for broken ones."""

    def unit(role: str, texts: list[str]) -> np.ndarray:
        return normalize(check_vectors(np.asarray(for_role(encode, role)(texts)), texts, name))

    return unit(QUERY, queries), unit(DOCUMENT, documents)


@dataclasses.dataclass(frozen=True)
class Score:
    """Hold one task's values for one model, times 100."""

    task: str
    headline: str  # the key of `values` that tables show and averages use
    values: dict[str, float]
    protocol: dict[str, Any]  # split, pairs or examples, aggregation, data hash, ...: JSON
    subsets: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    # What the bootstrap and the pictures need. Graded pairs: both float64[n]. Classification: `correct` bool[n].
    # Others: `each` float64[n], whose mean is the headline, such as nDCG by query.
    gold: np.ndarray | None = None
    cosines: np.ndarray | None = None
    correct: np.ndarray | None = None
    each: np.ndarray | None = None
    # Of `gold` and `cosines`, where it is not their Spearman correlation: from float64[S, n] of both to float64[S].
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    @property
    def value(self) -> float:
        """The headline value, times 100."""
        return self.values[self.headline]

    @property
    def examples(self) -> int:
        """Return the number of examples that the bootstrap draws from, 0 where they are not kept."""
        kept = next((array for array in (self.each, self.correct, self.gold) if array is not None), ())
        return len(kept)


@dataclasses.dataclass(frozen=True)
class Space:
    """Hold the geometry of one model's embeddings of a set of pairs; `objective.geometry` defines each metric."""

    alignment: float  # over the close pairs
    uniformity: float  # over all sentences
    mean_cosine: float  # of two different sentences
    effective_rank: float  # between 1 and the width
    isotropy: float  # between 0 and 1
    top_share: float  # the largest singular value's square as a share of the sum of squares
    singular_values: np.ndarray  # float64[min(n, D)], descending, divided by the largest
    protocol: dict[str, Any]  # which pairs, how many of them close, how many sentences: JSON

    def metrics(self) -> dict[str, float]:
        """Return the single numbers, by name."""
        return {name: float(getattr(self, name)) for name in SPACE_METRICS}


@dataclasses.dataclass
class ModelResult:
    """Hold everything found about one model."""

    name: str
    protocol: dict[str, Any]  # pooler and where it comes from, precision, truncation, fingerprint, ...: JSON
    scores: dict[str, Score] = dataclasses.field(default_factory=dict)  # by task, in the order of the request
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # by task: what went wrong
    space: Space | None = None
    space_before: Space | None = None  # the same model before its training, where known
    curves: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # the lines of a run's metrics.jsonl
    recipe: str = ""  # equal for runs that differ only in the seed; "" for a model that is not a run
    asked_pooler: bool = False  # the pooler was asked for, and is not the model's own
    width: int = 0  # features of a vector; 0: not known, since the weights did not load
    whole: str = ""  # the name of the model whose vectors are cut to this width; "" if they are not

    def average(self, tasks: Sequence[str]) -> float | None:
        """Return the mean of the headline values of these tasks, or None where one is missing."""
        if not tasks or any(task not in self.scores for task in tasks):
            return None
        return float(np.mean([self.scores[task].value for task in tasks]))

    @property
    def is_untrained(self) -> bool:
        """Whether the best weights of a run are those it started from: no step scored higher."""
        if self.space_before is None or self.space is None:
            return False
        before, after = (list(space.metrics().values()) for space in (self.space_before, self.space))
        return np.allclose(before, after, rtol=1e-5, atol=0)  # some devices do not round twice alike

    @property
    def trained_from(self) -> Space | None:
        """The space before training, where training changed it."""
        return None if self.is_untrained else self.space_before


@dataclasses.dataclass(frozen=True)
class Entry:
    """Hold what one row of a table shows: one model, or several runs of one recipe."""

    name: str
    models: tuple[ModelResult, ...]

    def values(self, *tasks: str) -> list[float]:
        """Return the headline value of a task, or its mean over several, for each run that has all of them."""
        values = (model.average(tasks) for model in self.models)
        return [value for value in values if value is not None]

    def failed(self, task: str) -> bool:
        """Return whether the task failed for any of the runs."""
        return any(task in model.failures for model in self.models)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Hold how much better `other` is than `base` at a task, or at the average over tasks, in points."""

    task: str
    base: str  # names of entries
    other: str
    points: float
    low: float  # the 95 % bootstrap interval over the task's examples
    high: float
    is_of_few: bool = False  # the examples are too few for an interval to say anything

    @property
    def direction(self) -> str:
        """The words "higher" or "lower" where the interval, as tables show it, excludes 0, else "unclear"."""
        if self.is_of_few:
            return "unclear"
        low, high = round(self.low, 2), round(self.high, 2)  # less is rounding: of a run and its export, for example
        return "higher" if low > 0 else "lower" if high < 0 else "unclear"


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
    """Hold everything that tables, scores.json and the report show."""

    entries: tuple[Entry, ...]
    averages: dict[str, tuple[str, ...]]  # by the average's name ("sts", "transfer"): its tasks
    differences: tuple[Difference, ...]  # of every entry from the first
    date: str  # ISO 8601, UTC
    version: str  # of simcse_jax
    best: dict[str, str] = dataclasses.field(default_factory=dict)  # by task or average: the entry above all others

    @property
    def models(self) -> tuple[ModelResult, ...]:
        return tuple(model for entry in self.entries for model in entry.models)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that some model has a score for or failed at; the tasks of an average in its order."""
        found = dict.fromkeys(task for v in self.models for task in (*v.scores, *v.failures))
        averaged = [task for tasks in self.averages.values() for task in tasks if task in found]
        return tuple(dict.fromkeys([*(task for task in found if task not in averaged), *averaged]))

    def __repr__(self) -> str:
        scores = {
            model.name: (f"{task} {one.value:.2f}" for task, one in model.scores.items()) for model in self.models
        }
        parts = [f"{name}: {', '.join(found)}" for name, found in scores.items()]
        return f"Results({'; '.join(parts)})"

    def names(self, limit: int = LONGEST) -> list[str]:
        """Return the entries' names, all of them shortened where one is longer than `limit` characters."""
        return fit_names([entry.name for entry in self.entries], limit)


def fit_names(names: Sequence[str], limit: int = LONGEST) -> list[str]:
    """Return the names as they are, or all of them shortened where one is longer than `limit` characters."""
    return list(names) if max(map(len, names), default=0) <= limit else short_names(names, limit)


def short_names(names: Sequence[str], limit: int) -> list[str]:
    """Return the names without the folders that all of them share, shortened, and numbered where two look the same."""
    parts = [name.split("/") for name in names]
    fewest = min(map(len, parts), default=0) - 1 if len(names) > 1 else 0  # each keeps a part
    start = min(shared_start(parts), fewest)
    start = 0 if start == 1 and not parts[0][0] else start  # the root alone is no folder to leave out
    end = min(shared_start([own[::-1] for own in parts]), fewest - start)
    distinct = ["/".join(own[start : len(own) - end]) for own in parts]
    short = [shorten(name, limit) for name in distinct]
    if len(set(short)) < len(short):
        short = [f"{shorten(name, limit - 5)} ({number})" for number, name in enumerate(distinct, 1)]
    return short


def shared_start(sequences: Sequence[Sequence[str]]) -> int:
    """Return how many of the first items are the same in all the sequences."""
    columns = enumerate(zip(*sequences, strict=False))
    return next((n for n, items in columns if len(set(items)) > 1), min(map(len, sequences), default=0))


def shorten(name: str, limit: int) -> str:
    """Return the name in one line of at most `limit` characters; the middle goes first, as names differ at the ends."""
    line = " ".join(name.split())
    tail = limit // 2
    return line if len(line) <= limit else f"{line[: limit - tail - 1]}…{line[-tail:]}"


def task_name(task: str, limit: int = 30) -> str:
    """Return a task's name as tables show it: "STS-B" for "STSBenchmark"; a long one is shortened."""
    return SHORT_TASKS.get(task) or shorten(task, limit)

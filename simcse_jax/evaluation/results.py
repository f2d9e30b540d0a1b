"""What an evaluation finds: scores with their protocol, what failed and why, and the shape of the space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

OWN = "the model"  # what a verdict's protocol has under "pooler from" when the pooler is the model's own
Encode = Callable[[list[str]], np.ndarray]  # texts to float[N, D]


@dataclasses.dataclass(frozen=True)
class Score:
    """One task of one model. Values are times 100."""

    task: str
    headline: str  # the key of `values` that stands in tables and counts in the average
    values: dict[str, float]
    protocol: dict[str, Any]  # split, pairs or examples, aggregation, data hash, ...: JSON
    subsets: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    # What bootstrap and pictures need. For graded pairs, both float64[n]; for classification, `correct` bool[n].
    gold: np.ndarray | None = None
    cosines: np.ndarray | None = None
    correct: np.ndarray | None = None

    @property
    def value(self) -> float:
        """The headline value, times 100."""
        return self.values[self.headline]


@dataclasses.dataclass(frozen=True)
class Space:
    """The geometry of one model's embeddings of one set of pairs; see `objective.geometry` for each figure."""

    alignment: float  # over the close pairs
    uniformity: float  # over all sentences
    mean_cosine: float  # of two different sentences
    effective_rank: float  # between 1 and the width
    isotropy: float  # between 0 and 1
    top_share: float  # of the largest singular value's square in the sum of squares, between 0 and 1
    singular_values: np.ndarray  # float64[min(n, D)], descending, divided by the largest
    protocol: dict[str, Any]  # which pairs, how many of them close, how many sentences: JSON

    def figures(self) -> dict[str, float]:
        """The numbers that fit a table, by name."""
        names = ("alignment", "uniformity", "mean_cosine", "effective_rank", "isotropy", "top_share")
        return {name: float(getattr(self, name)) for name in names}


@dataclasses.dataclass
class Verdict:
    """Everything found about one model."""

    name: str
    protocol: dict[str, Any]  # pooler and where it comes from, precision, truncation, fingerprint, ...: JSON
    scores: dict[str, Score] = dataclasses.field(default_factory=dict)  # by task, in the order they were asked
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # by task: what went wrong
    space: Space | None = None
    space_before: Space | None = None  # the same model before its training, if that is known
    curves: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # lines of a run's metrics.jsonl
    recipe: str = ""  # equal for runs that differ in nothing but the seed; "" = not a run


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table: one model, or several runs of one recipe."""

    name: str
    verdicts: tuple[Verdict, ...]

    def values(self, task: str) -> list[float]:
        """The headline values of a task, of those that have one."""
        return [verdict.scores[task].value for verdict in self.verdicts if task in verdict.scores]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better `other` is than `base` at a task (or at the average over tasks), in points."""

    task: str
    base: str  # names of entries
    other: str
    points: float
    low: float  # of the 95 % bootstrap interval over the task's examples
    high: float


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that tables, scores.json and the report show."""

    entries: tuple[Entry, ...]
    averages: dict[str, tuple[str, ...]]  # by the average's name ("sts", "transfer"): its tasks
    differences: tuple[Difference, ...]  # of every entry from the first
    date: str  # ISO 8601, UTC
    version: str  # of simcse_jax

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(verdict for entry in self.entries for verdict in entry.verdicts)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that some model was scored on or failed at; those of an average in its order."""
        found = dict.fromkeys(task for v in self.verdicts for task in (*v.scores, *v.failures))
        averaged = [task for tasks in self.averages.values() for task in tasks if task in found]
        return tuple(dict.fromkeys([*(task for task in found if task not in averaged), *averaged]))

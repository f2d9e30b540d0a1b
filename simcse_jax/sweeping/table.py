"""Compare the rows of a sweep: metrics of each run, mean, standard deviation and best of each row, a paired test."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from simcse_jax.evaluation import transfer
from simcse_jax.evaluation.compare import spread
from simcse_jax.evaluation.kinds import KINDS, PAIRS
from simcse_jax.evaluation.suite import GEOMETRY, choose_tasks
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.sweeping.jobs import Job
from simcse_jax.sweeping.plan import Judging, PlanRow, SweepPlan
from simcse_jax.system.errors import UserError

Metrics = dict[str, float]
SPEARMAN, PERPLEXITY = "dev/spearman", "dev/perplexity"
# Of the last evaluation. The best one may be that before the first step, which says nothing about the training.
LAST = "dev/last_spearman"
# Of eval.data that is no graded pairs, the first of its kind first.
OWN_DEV = tuple(dict.fromkeys(f"dev/{name}" for kind, own in KINDS.items() if kind != PAIRS for name in own.measures))
MEAN = "dev/mean"  # of the dev data of a mixture's sources
DEV = (MEAN, SPEARMAN, *OWN_DEV, PERPLEXITY, LAST, "dev/pearson", "dev/mlm_accuracy")
SPACE = ("alignment", "uniformity", "mean_cosine", "effective_rank", "isotropy", "top_share")
LOWER_IS_BETTER = frozenset({PERPLEXITY, "alignment", "uniformity", "mean_cosine", "top_share"})
AVERAGED = {"sts": choose_tasks("sts", "test"), "transfer": transfer.TASKS}
# Of DEV and SPACE, those with a column by default; the rest are in table.json.
_COLUMNS = (MEAN, *(f"dev/{own.measures[0]}" for own in KINDS.values()), PERPLEXITY, "alignment", "uniformity")
# Differences that are this close to each other, relative to the metric, differ by rounding alone.
_EQUAL = 1e-6


def run_metrics(job: Job) -> Metrics:
    """Return all finite metrics of a finished run: of its evaluations in training, and of its judging once done."""
    if not job.trained:
        return {}
    judged = {}
    if job.judged:
        try:
            judged = _judged_metrics(json.loads(job.scores.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{job.scores} is not what `evaluate` wrote ({error!r:.200}).\nDelete {job.commands[1].mark}, and the "
                "same command judges that run again."
            ) from error
    found = judged | _training_metrics(read_metrics(job.run))
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def possible_metrics(judging: Judging) -> tuple[str, ...]:
    """Return the metrics that runs can have, the preferred ones for comparing rows first."""
    if not judging.asked:
        return DEV
    tasks = choose_tasks(judging.tasks, "test") if judging.tasks else (GEOMETRY,)
    scored = [task for task in tasks if task != GEOMETRY]
    averages = [name for name, over in AVERAGED.items() if set(over) <= set(scored)]
    return (*averages, *scored, *judging.pairs, *DEV, *(SPACE if GEOMETRY in tasks else ()))


def require_measure(measure: str, judging: Judging) -> None:
    """Raise UserError for a metric that no run of this sweep can have."""
    known = possible_metrics(judging)
    if measure and measure not in known:
        more = "" if judging.asked else " With --judge=sts,transfer,geometry there are more."
        shown = [name for name in known if name not in OWN_DEV]
        raise UserError(
            f"--measure={measure} is no metric of these runs. They have: {', '.join(shown)}; with other "
            f"kinds of eval.data, such as retrieval:DIR: {', '.join(OWN_DEV)}.{more}"
        )


def choose_measure(found: Collection[str], judging: Judging) -> str:
    """Return the metric that rows are compared by: the first that runs have, or will have where none has one yet."""
    names = possible_metrics(judging)
    expected = next(name for name in names if name != MEAN)  # which only mixtures have
    return next((name for name in names if name in found), expected)


def column_metrics(found: Collection[str], judging: Judging, measure: str) -> list[str]:
    """Return the metrics with a column beside the measure: those found, without tasks whose average is there."""
    averaged = {task for name, tasks in AVERAGED.items() if name in found for task in tasks}
    left_out = averaged | {measure} | ({*DEV, *SPACE} - {*_COLUMNS})
    return [name for name in possible_metrics(judging) if name in found and name not in left_out]


class RowDifference(NamedTuple):
    """Hold a row minus the first row, over the seeds that both have."""

    mean: float
    sd: float | None  # of the differences, n - 1; None for one seed
    seeds: tuple[int, ...]
    t: float | None  # of the paired t-test; None without one
    p: float | None  # two-sided, not corrected for the number of rows
    untested: str  # why there is no test; "" where there is


class TableRow(NamedTuple):
    """Hold a row and the metrics of its runs."""

    row: PlanRow
    runs: dict[int, Metrics]  # by seed, of those that have the measure
    missing: tuple[int, ...]  # seeds without it
    metrics: dict[str, dict[str, float]]  # by metric: `spread` over the seeds that have it
    best: tuple[int, float] | None  # seed and value
    difference: RowDifference | None  # None for the first row, and where no seed is shared


class SweepTable(NamedTuple):
    """Hold all that the table's files and its print show."""

    plan: SweepPlan
    measure: str
    columns: list[str]  # metrics beside the measure
    rows: list[TableRow]

    @property
    def leader(self) -> TableRow | None:
        """Return the row with the best mean; None where nothing is finished."""
        ranked = [row for row in self.rows if row.runs]
        return max(ranked, key=lambda row: _sign(self.measure) * row.metrics[self.measure]["mean"], default=None)


def make_table(plan: SweepPlan, found: Mapping[tuple[str, int], Metrics], measure: str = "") -> SweepTable:
    """Return the table of the finished runs.

    found: metrics by label and seed; measure: the metric that rows are compared by, "" for `choose_measure`.
    """
    names = {name for metrics in found.values() for name in metrics}
    measure = measure or choose_measure(names, plan.judging)
    rows: list[TableRow] = []
    reference: dict[int, float] = {}
    for row in plan.rows:
        runs = {seed: found.get((row.label, seed), {}) for seed in row.seeds}
        runs = {seed: metrics for seed, metrics in runs.items() if measure in metrics}
        values = {seed: metrics[measure] for seed, metrics in runs.items()}
        best = max(values, key=lambda seed: _sign(measure) * values[seed]) if values else None
        known = dict.fromkeys(name for metrics in runs.values() for name in metrics)
        made = TableRow(
            row=row,
            runs=runs,
            missing=tuple(seed for seed in row.seeds if seed not in runs),
            metrics={name: spread([m[name] for m in runs.values() if name in m]) for name in known},
            best=None if best is None else (best, values[best]),
            difference=_difference(values, reference) if rows else None,
        )
        reference = reference if rows else values
        rows.append(made)
    return SweepTable(plan, measure, column_metrics(names, plan.judging, measure), rows)


def _training_metrics(lines: list[dict[str, Any]]) -> Metrics:
    """Return the logged metrics of the evaluation of the best checkpoint, and the Spearman of the last one."""
    name = next((key for line in lines for key in line if key.startswith("dev/")), "")  # a line has it first
    scored = [line for line in lines if line.get(name) is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda line: _sign(name) * line[name])  # the first of equals, as in training
    found = {key: best[key] for key in DEV if best.get(key) is not None}
    last = [line[name] for line in lines if name in line][-1]  # null where it could not be computed
    return found | ({LAST: last} if name == SPEARMAN and last is not None else {})


def _judged_metrics(scores: dict[str, Any]) -> Metrics:
    """Return the metrics of a scores.json."""
    headlines = {task: protocol["headline"] for task, protocol in scores["protocol"]["tasks"].items()}
    tasks = {task: scores["scores"][task][headline] for task, headline in headlines.items()}
    space = scores["geometry"] or {}
    return scores["average"] | tasks | {name: space[name] for name in SPACE if name in space}


def _sign(measure: str) -> int:
    return -1 if measure in LOWER_IS_BETTER else 1


def _difference(values: Mapping[int, float], reference: Mapping[int, float]) -> RowDifference | None:
    """Return the paired comparison over shared seeds; None without one."""
    seeds = tuple(sorted(values.keys() & reference.keys()))
    if not seeds:
        return None
    own, other = (np.array([side[seed] for seed in seeds], np.float64) for side in (values, reference))
    differences = own - other
    mean = float(differences.mean())
    if len(seeds) < 2:
        return RowDifference(mean, None, seeds, None, None, "one shared seed")
    sd = float(differences.std(ddof=1))
    if np.ptp(differences) <= _EQUAL * max(np.abs(own).max(), np.abs(other).max()):
        return RowDifference(mean, sd, seeds, None, None, "all differences are equal")
    test: Any = stats.ttest_rel(own, other)
    return RowDifference(mean, sd, seeds, float(test.statistic), float(test.pvalue), "")

"""What a run of a sweep came to: its dev scores, the best and the last, and what `evaluate` found, by name."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from simcse_jax.evaluation import transfer
from simcse_jax.evaluation.judge import GEOMETRY, choose_tasks
from simcse_jax.sweeping.jobs import Job
from simcse_jax.sweeping.plan import Judging
from simcse_jax.system.errors import UserError
from simcse_jax.training.metrics import read_metrics

Figures = dict[str, float]
SPEARMAN, PERPLEXITY = "dev/spearman", "dev/perplexity"
# Of the last evaluation. The best one may be that before the first step, and then says nothing of the training.
LAST = "dev/last_spearman"
DEV = (SPEARMAN, PERPLEXITY, LAST, "dev/pearson", "dev/mlm_accuracy")
SPACE = ("alignment", "uniformity", "mean_cosine", "effective_rank", "isotropy", "top_share")
LOWER_IS_BETTER = frozenset({PERPLEXITY, "alignment", "uniformity", "mean_cosine", "top_share"})
TITLES = {
    "sts": "STS average",
    "transfer": "transfer average",
    SPEARMAN: "dev Spearman",
    PERPLEXITY: "dev perplexity",
    LAST: "dev Spearman at the end",
    "dev/pearson": "dev Pearson",
    "dev/mlm_accuracy": "dev MLM accuracy",
    "mean_cosine": "mean cosine",
    "effective_rank": "effective rank",
    "top_share": "top share",
}
# Figures that stand in tables when nobody asks for them; the others are in table.json.
_SHOWN = (SPEARMAN, PERPLEXITY, "alignment", "uniformity")
AVERAGED = {"sts": choose_tasks("sts", "test"), "transfer": transfer.TASKS}


def read_figures(job: Job) -> Figures:
    """All figures of a finished run: of its evaluations while training, and of its judging once that is done."""
    if not job.trained:
        return {}
    judged = _judged(json.loads(job.scores.read_text(encoding="utf-8"))) if job.judged else {}
    return judged | _while_training(read_metrics(job.run))


def possible(judging: Judging) -> tuple[str, ...]:
    """Names of the figures that runs can have, in the order in which they are looked for to compare rows by."""
    if not judging.asked:
        return DEV
    tasks = choose_tasks(judging.tasks, "test") if judging.tasks else (GEOMETRY,)
    scored = [task for task in tasks if task != GEOMETRY]
    averages = [name for name, over in AVERAGED.items() if set(over) <= set(scored)]
    return (*averages, *scored, *judging.pairs, *DEV, *(SPACE if GEOMETRY in tasks else ()))


def require_measure(measure: str, judging: Judging) -> None:
    """UserError for a measure that no run of this sweep can have."""
    known = possible(judging)
    if measure and measure not in known:
        more = "" if judging.asked else " With --judge=sts,transfer,geometry there are more."
        raise UserError(f"--measure={measure} is no figure of these runs. They have: {', '.join(known)}.{more}")


def choose_measure(found: Collection[str], judging: Judging) -> str:
    """The first figure that there is; where there is none yet, the first that there can be."""
    names = possible(judging)
    return next((name for name in names if name in found), names[0])


def shown(found: Collection[str], judging: Judging, measure: str) -> list[str]:
    """The figures that have a column beside the measure: those found, but no task whose average is there."""
    averaged = {task for name, tasks in AVERAGED.items() if name in found for task in tasks}
    hidden = averaged | {measure} | ({*DEV, *SPACE} - {*_SHOWN})
    return [name for name in possible(judging) if name in found and name not in hidden]


def _while_training(lines: list[dict[str, Any]]) -> Figures:
    """What was logged of the evaluation that made the best checkpoint, and the Spearman of the last one."""
    for name in (SPEARMAN, PERPLEXITY):
        sign = -1 if name in LOWER_IS_BETTER else 1
        scored = [line for line in lines if line.get(name) is not None]
        if scored:
            best = max(scored, key=lambda line: sign * line[name])  # the first one, as in training
            found = {key: best[key] for key in DEV if best.get(key) is not None}
            last = [line[name] for line in lines if name in line][-1]  # null where there is no figure
            return found | ({LAST: last} if name == SPEARMAN and last is not None else {})
    return {}


def _judged(scores: dict[str, Any]) -> Figures:
    """The figures of a scores.json."""
    headlines = {task: protocol["headline"] for task, protocol in scores["protocol"]["tasks"].items()}
    tasks = {task: scores["scores"][task][headline] for task, headline in headlines.items()}
    space = scores["geometry"] or {}
    return scores["average"] | tasks | {name: space[name] for name in SPACE if name in space}

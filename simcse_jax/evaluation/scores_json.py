"""Write the results as scores.json, for other programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from simcse_jax.evaluation.compare import average, averages_of, summarize
from simcse_jax.evaluation.results import Entry, Results, Score, Space, Verdict
from simcse_jax.system.whole_file import write_whole_text

SCORES = "scores.json"
_DIGITS = 6


def write_scores(results: Results, out: Path) -> Path:
    """Write `out/scores.json`, whole or not at all; return its path."""
    path = out / SCORES
    write_whole_text(path, json.dumps(_rounded(record(results)), indent=2, allow_nan=False) + "\n")
    return path


def record(results: Results) -> dict[str, Any]:
    """Return the record of the first model, with those of all models, of runs of one recipe, and the differences."""
    models = [_model(verdict, results) for verdict in results.verdicts]
    return models[0] | {
        "models": models,
        "runs": [
            {
                "name": entry.name,
                "models": [v.name for v in entry.verdicts],
                "scores": _spreads(entry, results),
            }
            for entry in results.entries
            if len(entry.verdicts) > 1
        ],
        "differences": [dataclasses.asdict(difference) for difference in results.differences],
    }


def _model(verdict: Verdict, results: Results) -> dict[str, Any]:
    averages = {name: average(verdict, tasks) for name, tasks in results.averages.items()}
    tasks = {task: score.protocol | {"headline": score.headline} for task, score in verdict.scores.items()}
    return {
        "model": verdict.name,
        "scores": {task: _score(score) for task, score in verdict.scores.items()},
        "average": {name: value for name, value in averages.items() if value is not None},
        "geometry": _space(verdict.space),
        "geometry_before_training": _space(verdict.space_before),
        "failures": verdict.failures,
        "protocol": verdict.protocol
        | {"date": results.date, "simcse_jax": results.version, "tasks": tasks}
        | {"averages": {name: list(over) for name, over in results.averages.items()}},
    }


def _score(score: Score) -> dict[str, Any]:
    return score.values | ({"subsets": score.subsets} if score.subsets else {})


def _space(space: Space | None) -> dict[str, Any] | None:
    if space is None:
        return None
    return space.metrics() | {"singular_values": space.singular_values.tolist(), "protocol": space.protocol}


def _spreads(entry: Entry, results: Results) -> dict[str, dict[str, float]]:
    """Return mean, sd, min, max and number of runs for each task and average that every run has."""
    values = {task: entry.values(task) for task in results.tasks}
    values |= {f"average {name}": averages_of(entry, tasks) for name, tasks in results.averages.items()}
    return {name: summarize(found) for name, found in values.items() if len(found) == len(entry.verdicts)}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value

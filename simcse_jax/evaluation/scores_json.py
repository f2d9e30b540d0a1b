"""Write the results as scores.json, for other programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from simcse_jax.evaluation.compare import spread
from simcse_jax.evaluation.results import Entry, ModelResult, Results, Score, Space
from simcse_jax.system.whole_file import write_whole_text

SCORES = "scores.json"
_DIGITS = 6


def write_scores(results: Results, out: Path) -> Path:
    """Write `out/scores.json`, whole or not at all; return its path."""
    path = out / SCORES
    exact = json.dumps(record(results), allow_nan=False)
    rounded = json.loads(exact, parse_float=lambda number: round(float(number), _DIGITS))
    write_whole_text(path, json.dumps(rounded, indent=2) + "\n")
    return path


def record(results: Results) -> dict[str, Any]:
    """Return the record of the first model, with those of all models, of runs of one recipe, and the differences."""
    models = [_model(model, results) for model in results.models]
    return models[0] | {
        "models": models,
        "runs": [
            {
                "name": entry.name,
                "models": [v.name for v in entry.models],
                "scores": _spreads(entry, results),
            }
            for entry in results.entries
            if len(entry.models) > 1
        ],
        "differences": [dataclasses.asdict(difference) for difference in results.differences],
    }


def _model(model: ModelResult, results: Results) -> dict[str, Any]:
    averages = {name: model.average(tasks) for name, tasks in results.averages.items()}
    tasks = {task: score.protocol | {"headline": score.headline} for task, score in model.scores.items()}
    return {
        "model": model.name,
        "scores": {task: _score(score) for task, score in model.scores.items()},
        "average": {name: value for name, value in averages.items() if value is not None},
        "geometry": _space(model.space),
        "geometry_before_training": _space(model.space_before),
        "failures": model.failures,
        "protocol": model.protocol
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
    values |= {f"average {name}": entry.values(*tasks) for name, tasks in results.averages.items()}
    return {name: spread(found) for name, found in values.items() if len(found) == len(entry.models)}

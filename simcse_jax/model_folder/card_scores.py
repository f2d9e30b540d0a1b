"""Put scores into a model card: as a table, and as the Hub's `model-index`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.system.errors import UserError
from simcse_jax.system.json_file import read_json
from simcse_jax.system.mirror import local_path

# What makes vectors of the same weights others, as the protocol of scores.json has it.
_SAME = ("fingerprint", "pooler", "truncate_dim", "prompt", "prompts")
_CORRELATIONS = ("all", "mean", "wmean", "spearman")  # of graded pairs, by how their parts are put together


class CardScore(NamedTuple):
    """Hold a task's score, times 100; measure: as scores.json names it."""

    task: str
    measure: str
    value: float


def read_card_scores(path: str | Path, protocol: Mapping[str, Any]) -> list[CardScore]:
    """Return the scores from a scores.json of the model with this protocol; UserError where they are of another."""
    found = read_json(local_path(path), way_out="Give the scores.json that evaluate wrote to its --out.")
    models = [found, *(found.get("models") or ())]
    try:
        wanted = [protocol.get(name) for name in _SAME]
        mine = next((model for model in models if [model["protocol"].get(name) for name in _SAME] == wanted), None)
        if mine is None:
            raise UserError(
                f"{path} has the scores of {', '.join(sorted({str(model['model']) for model in models}))}, and none of "
                "them is the model that is exported, with its pooler and prompts.\nEvaluate this one: "
                "python -m simcse_jax.evaluate --model=..."
            )
        tasks = mine["protocol"]["tasks"]
        return [
            CardScore(task, tasks[task]["headline"], float(values[tasks[task]["headline"]]))
            for task, values in mine["scores"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no scores.json of evaluate.\nGive the one that it wrote to its --out.") from error


def model_index(name: str, scores: list[CardScore]) -> dict[str, Any]:
    """Return the `model-index` of a card's metadata, values from 0 to 1 as sentence-transformers has them."""
    results = [
        {
            "task": {"type": "semantic-similarity" if score.measure in _CORRELATIONS else "feature-extraction"},
            "dataset": {"name": score.task, "type": "unknown"},
            "metrics": [{"type": _metric(score.measure), "value": round(score.value / 100, 6)}],
        }
        for score in scores
    ]
    return {"model-index": [{"name": name, "results": results}]}


def _metric(measure: str) -> str:
    return "spearman_cosine" if measure in _CORRELATIONS else measure


def dev_scores(data: str, scores: Mapping[str, Any]) -> list[CardScore]:
    """Return the dev score of a run's best step, [] without one of graded pairs; data: as its recipe names them."""
    if "spearman" not in scores:
        return []
    return [CardScore(f"{Path(data).name} (dev)", "spearman", float(scores["spearman"]))]

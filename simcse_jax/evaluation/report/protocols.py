"""Build the report's tables of models, of task protocols, and of every value that was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from simcse_jax.evaluation.report.tables import NOTHING, Cell, Row, Table, format_number
from simcse_jax.evaluation.results import Results, fit_names, shorten

_FINGERPRINT = 12  # digits that a table shows
_FEW = 3  # models or tasks that stand beside each other, with their properties as rows


def model_table(results: Results) -> Table:
    """Return the table of how each model's vectors were made, and of which weights."""
    heads, values = [], []
    for place, entry in enumerate(results.entries):
        for model in entry.models:
            heads.append((model.name, place, ""))
            values.append(
                {key: value for key, value in model.protocol.items() if (key, value) != ("model", model.name)}
            )
            if "fingerprint" in values[-1]:  # scores.json has all of it
                values[-1]["fingerprint"] = str(values[-1]["fingerprint"])[:_FINGERPRINT]
    return _key_table("Models", "Model", heads, values)


def task_table(results: Results) -> Table:
    """Return the table of each task's split, pairs, aggregation and data; two rows where models had different ones."""
    heads, values = [], []
    for task in dict.fromkeys((*results.tasks, "geometry")):
        names: dict[str, list[str]] = {}  # of models, by their protocol
        for model in results.models:
            found = model.space if task == "geometry" else model.scores.get(task)
            if found:
                names.setdefault(json.dumps(found.protocol), []).append(model.name)
        heads += [(task, None, ", ".join(own) if len(names) > 1 else "") for own in names.values()]
        values += map(json.loads, names)
    return _key_table("Tasks", "Task", heads, values)


def _key_table(
    caption: str, first: str, heads: Sequence[tuple[str, int | None, str]], values: Sequence[dict[str, Any]]
) -> Table:
    """Return a table of JSON values: a row for each head, or where these are few a row for each key."""
    keys = list(dict.fromkeys(key for row in values for key in row))
    names = [str(key).replace("_", " ") for key in keys]
    cells = [[Cell(_words(row[key]) if key in row else NOTHING) for key in keys] for row in values]
    if len(heads) <= _FEW:
        columns = (Cell(""), *(Cell(name, note) for name, _, note in heads))
        rows = tuple(Row(name, tuple(own[n] for own in cells)) for n, name in enumerate(names))
        return Table(caption, columns, rows, prose=True)
    rows = tuple(Row(name, tuple(own), place, note) for (name, place, note), own in zip(heads, cells, strict=True))
    return Table(caption, (Cell(first), *map(Cell, names)), rows, prose=True)


def _words(value: Any) -> str:
    """Return a JSON value as one would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(inner) for inner in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def value_tables(results: Results) -> list[Table]:
    """Return, for each task, the table of all its values by model; the values of subsets follow."""
    tables = []
    for task in results.tasks:
        scored = [(model.name, model.scores[task]) for model in results.models if task in model.scores]
        found = [
            score.values | {f"{part}: {key}": own[key] for part, own in score.subsets.items() for key in own}
            for _, score in scored
        ]
        keys = dict.fromkeys(key for values in found for key in values)
        rows = tuple(
            Row(key.replace("_", " "), tuple(Cell(_value(own[key]) if key in own else NOTHING) for own in found))
            for key in keys
        )
        if rows:
            names = fit_names([name for name, _ in scored])
            tables.append(Table(shorten(task, 60), (Cell("Value"), *map(Cell, names)), rows))
    return tables


def _value(value: float) -> str:
    return str(value) if isinstance(value, int) else format_number(value)

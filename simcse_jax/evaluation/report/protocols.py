"""The report's tables of models, of tasks, and of every value that was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simcse_jax.evaluation.names import shown_names
from simcse_jax.evaluation.report.tables import NOTHING, Cell, Row, Table, number
from simcse_jax.evaluation.results import Results, Verdict

_FINGERPRINT = 12  # of its digits, which tell models apart in a table


def model_table(results: Results) -> Table:
    """One row a model: how its vectors were made, and of which weights."""
    protocols = [
        {key: value for key, value in verdict.protocol.items() if (key, value) != ("model", verdict.name)}
        for verdict in results.verdicts
    ]
    for protocol in protocols:
        if "fingerprint" in protocol:  # scores.json has it whole
            protocol["fingerprint"] = str(protocol["fingerprint"])[:_FINGERPRINT]
    places = [place for place, entry in enumerate(results.entries) for _ in entry.verdicts]
    heads = [(verdict.name, place, "") for verdict, place in zip(results.verdicts, places, strict=True)]
    return _key_table("Models", "Model", heads, protocols)


def task_table(results: Results) -> Table:
    """One row a task: its split, pairs, aggregation, data; more rows where models were judged on different ones."""
    found: dict[str, list[tuple[dict[str, Any], list[str]]]] = {}
    for verdict in results.verdicts:
        for task, protocol in _protocols(verdict):
            same = [names for known, names in found.setdefault(task, []) if known == protocol]
            if same:
                same[0].append(verdict.name)
            else:
                found[task].append((protocol, [verdict.name]))
    rows = [(task, protocol, names) for task, kinds in found.items() for protocol, names in kinds]
    heads = [(task, None, ", ".join(names) if len(found[task]) > 1 else "") for task, _, names in rows]
    return _key_table("Tasks", "Task", heads, [protocol for _, protocol, _ in rows])


def _protocols(verdict: Verdict) -> Iterable[tuple[str, dict[str, Any]]]:
    yield from ((task, score.protocol) for task, score in verdict.scores.items())
    if verdict.space:
        yield "geometry", verdict.space.protocol


def _key_table(
    caption: str, first: str, heads: Sequence[tuple[str, int | None, str]], values: Sequence[dict[str, Any]]
) -> Table:
    keys = list(dict.fromkeys(key for row in values for key in row))
    rows = tuple(
        Row(name, tuple(Cell(_words(row[key]) if key in row else NOTHING) for key in keys), place, note)
        for (name, place, note), row in zip(heads, values, strict=True)
    )
    return Table(caption, (Cell(first), *(Cell(str(key).replace("_", " ")) for key in keys)), rows, prose=True)


def _words(value: Any) -> str:
    """A JSON value as one would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(inner) for inner in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def value_tables(results: Results) -> list[Table]:
    """For each task everything that was found: a row a model, a column a value, subsets after the whole."""
    tables = []
    for task in results.tasks:
        scored = [
            (place, verdict.name, verdict.scores[task])
            for place, entry in enumerate(results.entries)
            for verdict in entry.verdicts
            if task in verdict.scores
        ]
        found = [
            score.values | {f"{part}: {key}": own[key] for part, own in score.subsets.items() for key in own}
            for _, _, score in scored
        ]
        keys = list(dict.fromkeys(key for values in found for key in values))
        names = shown_names([name for _, name, _ in scored])
        rows = tuple(
            Row(short, tuple(Cell(_value(own[key]) if key in own else NOTHING) for key in keys), place, whole=name)
            for short, (place, name, _), own in zip(names, scored, found, strict=True)
        )
        if rows:
            tables.append(Table(task, (Cell("Model"), *(Cell(key.replace("_", " ")) for key in keys)), rows))
    return tables


def _value(value: float) -> str:
    return str(value) if isinstance(value, int) else number(value)

"""Build the report's tables of models, of task protocols, and of every value that was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simcse_jax.evaluation.report.tables import NOTHING, Cell, Row, Table, format_number
from simcse_jax.evaluation.results import Results, Verdict, fit_names, shorten

_FINGERPRINT = 12  # digits that a table shows
_FEW = 3  # models or tasks that stand beside each other, with their properties as rows


def model_table(results: Results) -> Table:
    """Return the table of how each model's vectors were made, and of which weights."""
    protocols = [
        {key: value for key, value in verdict.protocol.items() if (key, value) != ("model", verdict.name)}
        for verdict in results.verdicts
    ]
    for protocol in protocols:
        if "fingerprint" in protocol:  # scores.json has all of it
            protocol["fingerprint"] = str(protocol["fingerprint"])[:_FINGERPRINT]
    places = [place for place, entry in enumerate(results.entries) for _ in entry.verdicts]
    heads = [(verdict.name, place, "") for verdict, place in zip(results.verdicts, places, strict=True)]
    return _key_table("Models", "Model", heads, protocols)


def task_table(results: Results) -> Table:
    """Return the table of each task's split, pairs, aggregation and data; two rows where models had different ones."""
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
        scored = [(verdict.name, verdict.scores[task]) for verdict in results.verdicts if task in verdict.scores]
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

"""Print the results as tables on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from simcse_jax.evaluation.report.geometry import geometry_table
from simcse_jax.evaluation.report.tables import Table, format_number, score_tables
from simcse_jax.evaluation.results import Results, task_name
from simcse_jax.system.terminal_table import print_table

_EXAMPLES = ("pairs", "triplets", "queries", "documents", "texts", "examples")  # keys of a task's protocol


def print_results(results: Results, console: Console) -> None:
    """Print scores, differences, geometry and failures; a table without content is left out."""
    for table in score_tables(results):
        _print(table._replace(caption=f"{table.caption}, x 100"), console)
    if results.differences:
        _print_differences(results, console)
    geometry = geometry_table(results)
    if geometry:
        _print(geometry, console)
    if sizes := _sizes(results):
        console.print(Text(f"judged on: {sizes}"))
    for line in _protocols(results):
        console.print(Text(line))
    for line in _notes(results):
        console.print(Text(line, style="bold"))
    for model in results.models:
        for task, reason in model.failures.items():
            console.print(Text(f"{task} failed for {model.name}: {reason}", style="bold red"))


def _sizes(results: Results) -> str:
    """Return how many examples each task has, such as "STS-B 1,379 pairs; docs 500 queries, 20,000 documents"."""
    protocols = {task: score.protocol for model in results.models for task, score in model.scores.items()}
    sizes = {
        task: ", ".join(f"{protocol[kind]:,} {kind}" for kind in _EXAMPLES if kind in protocol)
        for task, protocol in protocols.items()
    }
    return "; ".join(f"{task_name(task)} {size}" for task, size in sizes.items() if size)


def _notes(results: Results) -> Iterator[str]:
    """Yield a line for each note on a task, with the models that it is about unless it is about all."""
    found: dict[tuple[str, str], list[str]] = {}
    for model in results.models:
        for task, score in model.scores.items():
            for note in filter(None, score.protocol.get("note", "").split("; ")):
                found.setdefault((task, note), []).append(model.name)
    for (task, note), names in found.items():
        about = "" if len(names) == len(results.models) else f", {', '.join(names)}"
        yield f"NOTE: {task}{about}: {note}"


def _print(table: Table, console: Console) -> None:
    def lines(text: str, note: str) -> str:
        return f"{text}\n{note}" if note else text

    heads = [lines(textwrap.fill(column.text, 10, break_long_words=False), column.note) for column in table.columns]
    rows = [[lines(row.head, row.note), *(lines(cell.text, cell.note) for cell in row.cells)] for row in table.rows]
    print_table(console, table.caption, heads, rows)


def _print_differences(results: Results, console: Console) -> None:
    names = dict(zip([entry.name for entry in results.entries], results.names(), strict=True))
    rows = [
        (
            names[row.other],
            f"average {row.task}" if row.task in results.averages else task_name(row.task),
            format_number(row.points, sign=True),
            f"{format_number(row.low, sign=True)} to {format_number(row.high, sign=True)}",
            "unclear (too few)" if row.is_of_few else row.direction,
        )
        for row in results.differences
    ]
    columns = ["Model", "Task", "Difference", "95 % interval", "Result"]
    print_table(console, f"Points from {results.entries[0].name}", columns, rows)


def _protocols(results: Results) -> Iterator[str]:
    """Yield a line for each model on how its vectors were made, and of which weights."""
    for model in results.models:
        protocol = model.protocol
        if "fingerprint" in protocol:  # else its weights did not load
            origin = f" ({protocol['pooler from']})" if model.asked_pooler else ""
            yield (
                f"{model.name}: pooler {protocol['pooler']}{origin}, {protocol['precision']}, truncated at "
                f"{protocol['truncation']}, weights {protocol['fingerprint'][:12]}"
            )

"""Print the results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simcse_jax.evaluation import transfer
from simcse_jax.evaluation.compare import averages_of, summarize
from simcse_jax.evaluation.results import OWN, Results, fit_names, task_name

_NAME = 28  # characters of a model's name that fit on a terminal


def print_results(results: Results, console: Console) -> None:
    """Print scores, differences, geometry and failures; a table without content is left out."""
    tasks = [task for task in results.tasks if not task.startswith("geometry")]
    titles = (
        ("Spearman x 100", [task for task in tasks if task not in transfer.TASKS], "sts"),
        ("Accuracy x 100", [task for task in tasks if task in transfer.TASKS], "transfer"),
    )
    for title, chosen, average in titles:
        if chosen:
            console.print(_scores(results, title, chosen, results.averages.get(average, ())))
    if results.differences:
        console.print(_differences(results))
    if any(verdict.space for verdict in results.verdicts):
        console.print(_geometry(results))
    for line in _protocols(results):
        console.print(Text(line))
    for verdict in results.verdicts:
        for task, reason in verdict.failures.items():
            console.print(Text(f"{task} failed for {verdict.name}: {reason}", style="bold red"))


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    first, *others = columns
    table.add_column(first, overflow="fold")  # the one that wraps on a narrow terminal
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _scores(results: Results, title: str, tasks: Sequence[str], averaged: Sequence[str]) -> Table:
    columns = ["model", *map(task_name, tasks), *([f"average of {len(averaged)}"] if averaged else [])]
    table = _table(title, columns)
    for entry, name in zip(results.entries, results.names(_NAME), strict=True):
        cells = [_cell(entry.values(task), len(entry.verdicts), entry.failed(task)) for task in tasks]
        if averaged:
            cells.append(_cell(averages_of(entry, averaged), len(entry.verdicts)))
        runs = f" ({len(entry.verdicts)} runs)" if len(entry.verdicts) > 1 else ""
        table.add_row(Text(name + runs), *cells)
    return table


def _cell(values: Sequence[float], runs: int, failed: bool = False) -> str:
    """Return mean and standard deviation, and the number of runs that have a value where some have none."""
    if not values:
        return "failed" if failed else "-"
    numbers = summarize(values)
    return (
        f"{numbers['mean']:.2f}"
        + (f" ± {numbers['sd']:.2f}" if len(values) > 1 else "")
        + (f" ({len(values)} of {runs})" if len(values) < runs else "")
    )


def _differences(results: Results) -> Table:
    table = _table(f"Points from {results.entries[0].name}", ["model", "task", "difference", "95 % interval", "result"])
    shown = dict(zip([entry.name for entry in results.entries], results.names(_NAME), strict=True))
    for row in results.differences:
        task = f"average {row.task}" if row.task in results.averages else task_name(row.task)
        interval = f"{row.low:+.2f} to {row.high:+.2f}"
        table.add_row(Text(shown[row.other]), task, f"{row.points:+.2f}", interval, row.direction)
    return table


def _geometry(results: Results) -> Table:
    names = ("alignment", "uniformity", "mean\ncosine", "effective\nrank", "isotropy", "top\nshare")
    table = _table("Geometry", ["model", *names])
    models = fit_names([verdict.name for verdict in results.verdicts], _NAME)
    for verdict, name in zip(results.verdicts, models, strict=True):
        rows = [(verdict.space, "")]
        if verdict.is_untrained:
            rows = [(verdict.space, ", as before training")]
        elif verdict.space_before:
            rows.insert(0, (verdict.space_before, ", before training"))
        for space, when in rows:
            if space is not None:
                table.add_row(Text(name + when), *(f"{value:.3f}" for value in space.metrics().values()))
    return table


def _protocols(results: Results) -> Iterator[str]:
    """Yield a line for each model on how its vectors were made, and of which weights."""
    for verdict in results.verdicts:
        protocol = verdict.protocol
        if "fingerprint" in protocol:  # else its weights did not load
            origin = "" if protocol["pooler from"] == OWN else f" ({protocol['pooler from']})"
            yield (
                f"{verdict.name}: pooler {protocol['pooler']}{origin}, {protocol['precision']}, truncated at "
                f"{protocol['truncation']}, weights {protocol['fingerprint'][:12]}"
            )

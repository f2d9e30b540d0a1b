"""The results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simcse_jax.evaluation import transfer
from simcse_jax.evaluation.compare import averages_of, spread
from simcse_jax.evaluation.names import shown_names
from simcse_jax.evaluation.results import Entry, Results

SHORT = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R"}
_FAILED = "failed"
_NAME = 28  # characters of a model's name that a terminal has room for


def print_results(results: Results, console: Console) -> None:
    """Print scores, differences, geometry and failures; a table that has nothing to show is left out."""
    entries, tasks = results.entries, [task for task in results.tasks if not task.startswith("geometry")]
    similarity = [task for task in tasks if task not in transfer.TASKS]
    titles = (
        ("Spearman x 100", similarity, "sts"),
        ("Accuracy x 100", [t for t in tasks if t in transfer.TASKS], "transfer"),
    )
    for title, chosen, name in titles:
        if chosen:
            console.print(_scores(title, entries, chosen, results.averages.get(name, ()), name))
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
    table.add_column(first, overflow="fold")  # the one that gives way in a narrow terminal
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _scores(title: str, entries: Sequence[Entry], tasks: Sequence[str], averaged: Sequence[str], name: str) -> Table:
    table = _table(
        title,
        ["model", *(SHORT.get(task, task) for task in tasks), *([f"average of {len(averaged)}"] if averaged else [])],
    )
    for entry, shown in zip(entries, shown_names([entry.name for entry in entries], _NAME), strict=True):
        cells = [_cell(entry.values(task), len(entry.verdicts), _failed(entry, task)) for task in tasks]
        if averaged:
            cells.append(_cell(averages_of(entry, averaged), len(entry.verdicts)))
        runs = f" ({len(entry.verdicts)} runs)" if len(entry.verdicts) > 1 else ""
        table.add_row(Text(shown + runs), *cells)
    return table


def _failed(entry: Entry, task: str) -> bool:
    return any(task in verdict.failures for verdict in entry.verdicts)


def _cell(values: Sequence[float], runs: int, failed: bool = False) -> str:
    """Mean and standard deviation, and of how many of the runs, if not of all."""
    if not values:
        return _FAILED if failed else "-"
    figures = spread(values)
    return (
        f"{figures['mean']:.2f}"
        + (f" ± {figures['sd']:.2f}" if len(values) > 1 else "")
        + (f" ({len(values)} of {runs})" if len(values) < runs else "")
    )


def _differences(results: Results) -> Table:
    table = _table(
        f"Points from {results.entries[0].name}", ["model", "task", "difference", "95 % interval", "so it is"]
    )
    names = [entry.name for entry in results.entries]
    shown = dict(zip(names, shown_names(names, _NAME), strict=True))
    for row in results.differences:
        certain = "higher" if row.low > 0 else "lower" if row.high < 0 else "unclear"
        task = f"average {row.task}" if row.task in results.averages else SHORT.get(row.task, row.task)
        table.add_row(Text(shown[row.other]), task, f"{row.points:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}", certain)
    return table


def _geometry(results: Results) -> Table:
    names = ("alignment", "uniformity", "mean\ncosine", "effective\nrank", "isotropy", "top\nshare")
    table = _table("Geometry", ["model", *names])
    names = shown_names([verdict.name for verdict in results.verdicts], _NAME)
    for verdict, name in zip(results.verdicts, names, strict=True):
        for space, when in ((verdict.space_before, ", before training"), (verdict.space, "")):
            if space is not None:
                table.add_row(Text(name + when), *(f"{value:.3f}" for value in space.figures().values()))
    return table


def _protocols(results: Results) -> Iterator[str]:
    """One line a model on how its vectors were made, and of which weights."""
    for verdict in results.verdicts:
        told = verdict.protocol
        if "fingerprint" in told:  # else its weights did not load
            yield (
                f"{verdict.name}: pooler {told['pooler']} ({told['pooler from']}), {told['precision']}, cut at "
                f"{told['truncation']}, weights {told['fingerprint'][:12]}"
            )

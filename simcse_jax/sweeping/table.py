"""Runs to one table: for each row mean, standard deviation and best over its seeds, and a paired test."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from simcse_jax import __version__
from simcse_jax.evaluation.compare import spread
from simcse_jax.sweeping.figures import LOWER_IS_BETTER, Figures, choose_measure, shown
from simcse_jax.sweeping.plan import Plan, Row

# Differences that are this near to each other, relative to the figures, differ by rounding alone.
_EQUAL = 1e-6


class Difference(NamedTuple):
    """A row minus the first row, over the seeds that both have."""

    mean: float
    sd: float | None  # of the differences, of a sample; None for one seed
    seeds: tuple[int, ...]
    t: float | None  # of the paired t-test; None where there is none to make
    p: float | None  # two-sided, not corrected for the number of rows
    untested: str  # why there is no test; "" where there is


class TableRow(NamedTuple):
    """A row with what its runs came to."""

    row: Row
    runs: dict[int, Figures]  # by seed, of those that have the measure
    missing: tuple[int, ...]  # seeds without it
    figures: dict[str, dict[str, float]]  # by figure: `spread` over the seeds that have it
    best: tuple[int, float] | None  # seed and value
    difference: Difference | None  # None for the first row, and where no seed is shared


class Table(NamedTuple):
    """All that the table's file, picture and print show."""

    plan: Plan
    measure: str
    columns: list[str]  # figures beside the measure
    rows: list[TableRow]

    @property
    def leader(self) -> TableRow | None:
        """The row with the best mean; None where nothing is finished."""
        ranked = [row for row in self.rows if row.runs]
        return max(ranked, key=lambda row: _sign(self.measure) * row.figures[self.measure]["mean"], default=None)


def make_table(plan: Plan, found: Mapping[tuple[str, int], Figures], measure: str = "") -> Table:
    """The table of what is finished.

    found: figures by label and seed; measure: what rows are compared by, "" = the first that there is.
    """
    names = {name for figures in found.values() for name in figures}
    measure = measure or choose_measure(names, plan.judging)
    rows: list[TableRow] = []
    reference: dict[int, Figures] = {}
    for row in plan.rows:
        runs = {seed: found.get((row.label, seed), {}) for seed in row.seeds}
        runs = {seed: figures for seed, figures in runs.items() if measure in figures}
        values = {seed: figures[measure] for seed, figures in runs.items()}
        best = max(values, key=lambda seed: _sign(measure) * values[seed]) if values else None
        known = dict.fromkeys(name for figures in runs.values() for name in figures)
        made = TableRow(
            row=row,
            runs=runs,
            missing=tuple(seed for seed in row.seeds if seed not in runs),
            figures={name: spread([f[name] for f in runs.values() if name in f]) for name in known},
            best=None if best is None else (best, values[best]),
            difference=_difference(values, {s: f[measure] for s, f in reference.items()}) if rows else None,
        )
        reference = reference if rows else runs
        rows.append(made)
    return Table(plan, measure, shown(names, plan.judging, measure), rows)


def _sign(measure: str) -> int:
    return -1 if measure in LOWER_IS_BETTER else 1


def _difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """The paired comparison over shared seeds; None without one."""
    seeds = tuple(sorted(values.keys() & reference.keys()))
    if not seeds:
        return None
    own, other = (np.array([side[seed] for seed in seeds], np.float64) for side in (values, reference))
    gaps = own - other
    mean = float(gaps.mean())
    if len(seeds) < 2:
        return Difference(mean, None, seeds, None, None, "one shared seed")
    sd = float(gaps.std(ddof=1))
    if np.ptp(gaps) <= _EQUAL * max(np.abs(own).max(), np.abs(other).max()):
        return Difference(mean, sd, seeds, None, None, "all differences are equal")
    test: Any = stats.ttest_rel(own, other)
    return Difference(mean, sd, seeds, float(test.statistic), float(test.pvalue), "")


def as_json(table: Table) -> dict[str, Any]:
    """The table as table.json has it: every figure of every run, and what it was made with."""
    return {
        "recipe": table.plan.recipe,
        "measure": table.measure,
        "lower_is_better": table.measure in LOWER_IS_BETTER,
        "reference": table.rows[0].row.label,
        "test": "two-sided paired t-test against the reference over shared seeds, p not corrected for several rows",
        "rows": [_row(row) for row in table.rows],
        "judging": dataclasses.asdict(table.plan.judging),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "simcse_jax": __version__,
            "jax": version("jax"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
        },
        "commit": _commit(),
    }


def _row(row: TableRow) -> dict[str, Any]:
    return {
        "label": row.row.label,
        "folder": row.row.folder,
        "overrides": row.row.overrides,
        "seeds": {str(seed): figures for seed, figures in row.runs.items()},
        "missing": list(row.missing),
        "figures": {
            name: {**values, "sd": values["sd"] if values["runs"] > 1 else None} for name, values in row.figures.items()
        },
        "best": None if row.best is None else {"seed": row.best[0], "value": row.best[1]},
        "difference": row.difference._asdict() if row.difference else None,
    }


def missing(rows: Sequence[TableRow]) -> list[str]:
    """A line for each row that is not complete."""
    return [
        f"{row.row.label}: seed{'s' * (len(row.missing) > 1)} {', '.join(map(str, row.missing))}"
        for row in rows
        if row.missing
    ]


def _commit() -> str | None:
    """The commit of the code, with "+changes" where files differ from it; None where that is not known."""
    here = Path(__file__).parent
    try:
        inside = ["git", "-C", str(here)]
        head = subprocess.run([*inside, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        tracked = subprocess.run([*inside, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        changed = subprocess.run(
            [*inside, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    # A library that is installed within somebody else's checkout is not of that commit.
    return head.strip() + ("+changes" if changed else "") if tracked.returncode == 0 else None

"""Read scores, the grades of pairs of sentences, from the cells of a column."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from simcse_jax.data.tables import TextTable, is_number, listed
from simcse_jax.system.errors import UserError

_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")


@dataclass(frozen=True)
class ScoreColumn:
    """Name the column of scores, and the range that they must be in."""

    name: str
    lowest: float = -math.inf
    highest: float = math.inf

    def read(self, value: Any, table: str, line: int, unit: str = "line") -> float:
        """Return the score in a cell; UserError, with table and line, where it is no number or out of range.

        unit: what the number counts.
        """
        cell = "" if value is None else str(int(value) if isinstance(value, bool) else value)
        score = parse_score(table, line, cell, unit)
        if not self.lowest <= score <= self.highest:
            raise UserError(
                f"{table}, {unit} {line}: the score in {self.name!r} is {score:g}, and data.score_range allows "
                f"{self.lowest:g} to {self.highest:g}.\nCorrect the {unit}, or give the range that the scores have: "
                "--config.data.score_range=LOWEST,HIGHEST."
            )
        return score

    def require_in(self, table: TextTable) -> None:
        """Raise UserError where the table has no such column."""
        columns = (*table.columns, *table.other_columns)
        if self.name not in columns or table.is_text_file:
            raise UserError(
                f"{table.name} has no column {self.name!r} of scores. It has {listed(columns)}.\n"
                "Name one that every file has: --config.data.scores=COLUMN."
            )


def parse_score(name: str, line: int, cell: str, unit: str = "line") -> float:
    """Return the score in a cell; UserError with file and line when it is not a finite number."""
    where = f"{name}, {unit} {line}"
    if not cell.strip():
        raise UserError(f"{where}: the score is blank, {cell!r}. Write it, or remove the {unit}.")
    if has_decimal_comma(cell):
        raise UserError(
            f"{where}: the score {cell!r} has a decimal comma. Write {cell.strip().replace(',', '.')}; in "
            f"all lines: {with_commas(name, has_header=True)}"
        )
    if not is_number(cell):
        raise UserError(f"{where}: the score {cell!r:.60} is not a number.")
    if not math.isfinite(float(cell)):
        raise UserError(f"{where}: the score is {cell.strip()}; it must be finite, e.g. 3.5.")
    return float(cell)


def has_decimal_comma(cell: str) -> bool:
    """Return whether a cell is a number with a decimal comma."""
    return _DECIMAL_COMMA.fullmatch(cell) is not None


def with_commas(place: str, has_header: bool) -> str:
    """Return the command that rewrites a European .csv, of semicolons and decimal commas, with commas and points."""
    header = "" if has_header else ", header=None"
    return (
        f"python -c \"import pandas; pandas.read_csv('{place}', sep=';', decimal=',', keep_default_na=False{header})"
        f".to_csv('{place.removesuffix('.csv')}.commas.csv', index=False, header={has_header})\""
    )

"""Read the rows and seeds of a sweep: from --grid, --row and --seeds, or from the recipe's own functions."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from simcse_jax.config.recipe import recipe_module
from simcse_jax.system.errors import UserError

Overrides = dict[str, str]  # key of the recipe: value, as written after --config.
DEFAULT_SEEDS = "0..4"
SEED = "train.seed"
MOST = 10_000  # seeds of a range, rows of all grids together


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of "0..4" (0 to 4, both included), "0,3,7" or a mixture, in that order."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,18})\s*(?:\.\.\s*(\d{1,18})\s*)?", part)
        if not found:
            raise UserError(
                f"--seeds={text}: {part!r} is neither a seed nor a range.\nFor example --seeds=0..4 or --seeds=0,3,7"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(
                f"--seeds={text}: {part!r} goes down, and holds no seed.\nFor example --seeds={last}..{first}"
            )
        if last - first >= MOST:
            raise UserError(f"--seeds={text}: {part!r} are more than {MOST:,} seeds.\nFor example --seeds=0..4")
        seeds.extend(range(first, last + 1))
    repeated = _repeated(seeds)
    if repeated:
        raise UserError(
            f"--seeds={text} has {', '.join(map(str, repeated))} twice, and the same seed is the same run.\n"
            f"Use --seeds={','.join(map(str, dict.fromkeys(seeds)))}"
        )
    return tuple(seeds)


def choose_rows(recipe: str, grids: Sequence[str], named: Sequence[str]) -> dict[str, Overrides]:
    """Return overrides by label, in the table's order: rows of --row, then of --grid, else the recipe's own.

    Without any there is one row, the recipe as it is.
    """
    rows = [*map(_parse_row, named), *_parse_grids(grids)]
    if not rows:
        rows = [*recipe_rows(recipe).items()] or [("the recipe", {})]
    rows = [(" ".join(label.split()), overrides) for label, overrides in rows]  # a label is one line of a table
    repeated = _repeated([label for label, _ in rows])
    if repeated:
        raise UserError(f"Two rows are called {repeated[0]!r}.\nGive every row its own settings, or its own label.")
    for label, overrides in rows:
        refuse_seed(overrides, f"row {label!r}")
        if not label.isprintable():  # as bytes are that are no UTF-8
            raise UserError(f"The row {label!r} has letters that cannot be written.\nGive it another label.")
    return dict(rows)


def refuse_seed(overrides: Mapping[str, str], where: str) -> None:
    """Raise UserError when the seed is among the overrides, as every row has all seeds."""
    if SEED in overrides:
        raise UserError(
            f"{where} sets {SEED} = {overrides[SEED]}, and a sweep trains every row with the same seeds.\n"
            f"Use --seeds={overrides[SEED]}"
        )


def recipe_rows(recipe: str) -> dict[str, Overrides]:
    """Return the rows of the recipe's function `rows`; empty where it has no such function."""
    module, arguments = recipe_module(recipe)
    make = getattr(module, "rows", None)
    return {} if make is None else {label: as_flags(row) for label, row in make(*arguments).items()}


def recipe_judging(recipe: str) -> str:
    """Return the tasks of the recipe's function `judged`; "" where it has no such function."""
    module, arguments = recipe_module(recipe)
    make = getattr(module, "judged", None)
    return "" if make is None else make(*arguments)


def as_flags(values: Mapping[str, object]) -> Overrides:
    """Return the values as they are written on a command line."""
    return {key: str(value) for key, value in values.items()}


def _parse_grids(grids: Sequence[str]) -> list[tuple[str, Overrides]]:
    """Return the rows of the Cartesian product of all grids, the last grid changing fastest."""
    values: dict[str, list[str]] = {}
    for grid in grids:
        key, sign, text = grid.partition("=")
        key, cells = _plain_key(key), [cell.strip() for cell in text.split(",")]
        if not sign or not key or not all(cells):
            raise UserError(
                f"--grid={grid!r} names no values, or an empty one.\n"
                "For example --grid='objective.temperature=0.01,0.05,0.1'; for an empty value, or one with commas, "
                "use --row='label: key=value'"
            )
        if key in values:
            raise UserError(f"--grid={grid!r}: {key} is in another --grid too.\nGive all its values in one.")
        values[key] = cells
    if not values:
        return []
    if (count := math.prod(map(len, values.values()))) > MOST:
        raise UserError(f"--grid: {count:,} combinations; at most {MOST:,} are taken.\nGive fewer values.")
    last = [key.rpartition(".")[2] for key in values]
    names = [*values] if _repeated(last) else last
    return [
        (
            ", ".join(f"{name}={cell}" for name, cell in zip(names, cells, strict=True)),
            dict(zip(values, cells, strict=True)),
        )
        for cells in itertools.product(*values.values())
    ]


def _parse_row(text: str) -> tuple[str, Overrides]:
    """Return one --row: a label, a colon, and settings with quotes as in a shell."""
    found = re.fullmatch(r"\s*(.+?)\s*:(?:\s+(.*))?", text, re.DOTALL)
    try:
        words = shlex.split(found[2] or "") if found else []
    except ValueError as error:
        raise UserError(f"--row={text!r}: {error}.\nFor example --row='cold: objective.temperature=0.01'") from error
    wrong = next((word for word in words if "=" not in word), None)
    if not found or wrong is not None:
        problem = "there is no label with a colon after it" if wrong is None else f"{wrong!r} is no key=value"
        raise UserError(
            f"--row={text!r}: {problem}.\nFor example --row='cold: objective.temperature=0.01 train.epochs=2'"
        )
    overrides: Overrides = {}
    for word in words:
        key, _, value = word.partition("=")
        if _plain_key(key) in overrides:
            raise UserError(f"--row={text!r} sets {key} twice.\nSet it once.")
        overrides[_plain_key(key)] = value
    return found[1], overrides


def _plain_key(key: str) -> str:
    """Return objective.temperature, also for --config.objective.temperature."""
    return key.strip().removeprefix("--").removeprefix("config.")


def _repeated(values: Sequence[object]) -> list[object]:
    return [value for value, count in Counter(values).items() if count > 1]

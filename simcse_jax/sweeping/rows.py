"""What a command says of rows and seeds: --grid, --row, --seeds, or the rows that a recipe names itself."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence

from simcse_jax.config.recipe import recipe_module
from simcse_jax.system.errors import UserError

Overrides = dict[str, str]  # key of the recipe, as written after --config. : value
DEFAULT_SEEDS = "0..4"
_SEED = "train.seed"


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of "0..4" (both ends taken), "0,3,7" or a mixture, in that order."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if not found:
            raise UserError(
                f"--seeds={text}: {part!r} is no seed, nor a range.\nFor example --seeds=0..4 or --seeds=0,3,7"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(
                f"--seeds={text}: {part!r} goes down, and holds no seed.\nFor example --seeds={last}..{first}"
            )
        seeds.extend(range(first, last + 1))
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise UserError(
            f"--seeds={text} has {', '.join(map(str, twice))} twice, and the same seed is the same run.\n"
            f"Use --seeds={','.join(map(str, dict.fromkeys(seeds)))}"
        )
    return tuple(seeds)


def choose_rows(recipe: str, grids: Sequence[str], named: Sequence[str]) -> dict[str, Overrides]:
    """Label to overrides, in the table's order: the rows named by hand, then the grid, else the recipe's own.

    One row, the recipe as it is, where nobody names any.
    """
    rows = [*map(_named_row, named), *_grid_rows(grids)]
    if not rows:
        own = recipe_rows(recipe)
        rows = list(own.items()) if own else [("the recipe", {})]
    rows = [(" ".join(label.split()), overrides) for label, overrides in rows]  # a label is one line of a table
    labels = [label for label, _ in rows]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"Two rows are called {twice!r}.\nGive every row settings, or a label, of its own.")
    for label, overrides in rows:
        refuse_seed(overrides, f"row {label!r}")
    return dict(rows)


def refuse_seed(overrides: Mapping[str, str], where: str) -> None:
    """UserError when the seed is among the overrides: every row has all seeds."""
    if _SEED in overrides:
        raise UserError(
            f"{where} sets {_SEED} = {overrides[_SEED]}, and a sweep trains every row with the same seeds.\n"
            f"Use --seeds={overrides[_SEED]}"
        )


def recipe_rows(recipe: str) -> dict[str, Overrides]:
    """The rows that the recipe's function `rows` names; none where it has no such function."""
    module, arguments = recipe_module(recipe)
    make = getattr(module, "rows", None)
    return {} if make is None else {label: as_flags(row) for label, row in make(*arguments).items()}


def recipe_judging(recipe: str) -> str:
    """The tasks that the recipe's function `judged` names; "" where it has no such function."""
    module, arguments = recipe_module(recipe)
    make = getattr(module, "judged", None)
    return "" if make is None else make(*arguments)


def as_flags(values: Mapping[str, object]) -> Overrides:
    """The values as they are written on a command line."""
    return {key: str(value) for key, value in values.items()}


def _grid_rows(grids: Sequence[str]) -> list[tuple[str, Overrides]]:
    """The Cartesian product of all grids, the last one changing fastest; none without grids."""
    keys: list[str] = []
    values: list[list[str]] = []
    for grid in grids:
        key, sign, text = grid.partition("=")
        key, cells = _plain_key(key), [cell.strip() for cell in text.split(",")]
        if not sign or not key or not all(cells):
            raise UserError(
                f"--grid={grid!r} names no values, or an empty one.\n"
                "For example --grid='objective.temperature=0.01,0.05,0.1'; for an empty value, or one with commas in "
                "it, --row='label: key=value'"
            )
        if key in keys:
            raise UserError(f"--grid={grid!r}: {key} is in another --grid too.\nGive all its values in one.")
        keys.append(key)
        values.append(cells)
    if not grids:
        return []
    last = [key.rpartition(".")[2] for key in keys]
    short = last if len(set(last)) == len(last) else keys
    return [
        (
            ", ".join(f"{name}={cell}" for name, cell in zip(short, cells, strict=True)),
            dict(zip(keys, cells, strict=True)),
        )
        for cells in itertools.product(*values)
    ]


def _named_row(text: str) -> tuple[str, Overrides]:
    """One --row: a label, a colon, and settings with quotes as in a shell."""
    found = re.fullmatch(r"\s*(.+?)\s*:(?:\s+(.*))?", text, re.DOTALL)
    try:
        words = shlex.split(found[2] or "") if found else []
    except ValueError as error:
        raise UserError(f"--row={text!r}: {error}.\nFor example --row='cold: objective.temperature=0.01'") from error
    if not found or not all("=" in word for word in words):
        wrong = next((word for word in words if "=" not in word), None)
        what = f"{wrong!r} is no key=value" if wrong else "there is no label with a colon after it"
        raise UserError(f"--row={text!r}: {what}.\nFor example --row='cold: objective.temperature=0.01 train.epochs=2'")
    overrides: Overrides = {}
    for word in words:
        key, _, value = word.partition("=")
        if _plain_key(key) in overrides:
            raise UserError(f"--row={text!r} sets {key} twice.\nSet it once.")
        overrides[_plain_key(key)] = value
    return found[1], overrides


def _plain_key(key: str) -> str:
    """objective.temperature, also where it was written as on a command line: --config.objective.temperature."""
    return key.strip().removeprefix("--").removeprefix("config.")

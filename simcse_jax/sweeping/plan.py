"""The plan of a sweep: which rows, which seeds, how runs are judged; every setting checked before the first run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from simcse_jax import cli
from simcse_jax.config.compare import idle_keys
from simcse_jax.config.recipe import read_recipe
from simcse_jax.config.resolve import resolve
from simcse_jax.config.schema import DURATIONS, LAYOUT_KEYS, defaults
from simcse_jax.sweeping.rows import Overrides
from simcse_jax.system.errors import UserError

SEED = "train.seed"
# Keys that may change between the parts of one sweep. What one run may change in its midst, where it evaluates for
# example, would still make runs that no longer compare.
FREE_KEYS = LAYOUT_KEYS | {"data.synonyms"}
# Where the synonyms lie tells no finished run from another, but another file is no more of the same row.
PINNED_KEYS = frozenset({"data.synonyms"})
_DURATIONS = tuple(f"train.{name}" for name in DURATIONS)
_LONGEST_NAME = 80  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting, trained with every seed."""

    label: str
    folder: str  # its folder's name
    overrides: Overrides  # all that its runs are started with, but the seed
    settings: dict[str, Any]  # every key of the checked recipe (`Config.flat`), but the seed
    seeds: tuple[int, ...]

    @property
    def meaning(self) -> dict[str, Any]:
        """The settings that its runs share whatever the machine."""
        return {key: value for key, value in self.settings.items() if key not in FREE_KEYS}


@dataclasses.dataclass(frozen=True)
class Judging:
    """How finished runs are judged beside their own dev score: flags of `evaluate`."""

    tasks: str = ""
    data: str = ""
    pairs: tuple[str, ...] = ()
    fast: bool = False

    @property
    def asked(self) -> bool:
        return bool(self.tasks or self.pairs)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a sweep folder is to hold. The first row is what the others are compared with."""

    recipe: str
    rows: tuple[Row, ...]
    judging: Judging


def make_plan(
    recipe: str, rows: Mapping[str, Overrides], common: Overrides, seeds: Sequence[int], judging: Judging
) -> Plan:
    """The plan of these rows, each checked.

    common: overrides of every row. A row's own go before them, and one that only has an effect in other rows is left
    out, as a rate is in a row whose positives have none.
    """
    made: list[Row] = []
    replaced = {label: _replaced_by(own) for label, own in rows.items()}
    for key, value in common.items():
        if all(key in keys for keys in replaced.values()):
            raise UserError(
                f"--config.{key}={value} would change nothing: every row has its own, row {next(iter(rows))!r} for "
                "example.\nLeave it out, or name other rows with --grid or --row."
            )
    idle = {label: _idle_keys(recipe, label, common, own) for label, own in rows.items()}
    nowhere = set.intersection(*idle.values())
    for label, own in rows.items():
        left_out = replaced[label] | (idle[label] - nowhere)
        overrides = {key: value for key, value in common.items() if key not in left_out} | own
        name = folder_name(label, [row.folder for row in made])
        made.append(Row(label, name, overrides, checked_settings(recipe, label, overrides), tuple(seeds)))
    return Plan(recipe, tuple(made), judging)


def _replaced_by(own: Overrides) -> set[str]:
    """The keys that a row decides: its own, and every duration where it has one, as it replaces the recipe's."""
    return {*own, *_DURATIONS} if any(key in own for key in _DURATIONS) else {*own}


def _idle_keys(recipe: str, label: str, common: Overrides, own: Overrides) -> set[str]:
    """The common keys that have no effect in a row, and those that have none without them."""
    found: set[str] = set()
    while True:
        with _naming(recipe, label):
            kept = {key: value for key, value in common.items() if key not in found}
            sections = read_recipe(recipe, kept | own)[0].to_dict()
        values = defaults()
        for key in values:
            section, _, name = key.partition(".")
            values[key] = sections.get(section, {}).get(name, values[key])
        more = {*idle_keys(values)} & kept.keys() - own.keys()
        if not more:
            return found
        found |= more


def checked_settings(recipe: str, label: str, overrides: Overrides) -> dict[str, Any]:
    """Every key of the row's recipe but the seed; UserError, naming the row, for a key or value that is wrong."""
    with _naming(recipe, label):
        config, overridden = read_recipe(recipe, overrides)
        mesh = config["mesh"]
        # How many devices there are, only the runs know; whatever the recipe asks for is taken as there.
        devices = max(mesh["data"], 1) * max(mesh["fsdp"], 1)
        x64 = os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "t", "yes", "y", "on")
        settings = resolve(config, overridden, devices, x64).flat()
    del settings[SEED]
    return settings


@contextlib.contextmanager
def _naming(recipe: str, label: str) -> Iterator[None]:
    """What is wrong in a recipe says in which row."""
    try:
        yield
    except cli.WRONG_FLAG as error:
        raise UserError(f"row {label!r} of {recipe}: {cli.plain(error)}") from error


def require_comparable(plan: Plan) -> None:
    """UserError for a row whose runs would come to no figure."""
    for row in plan.rows:
        if not (plan.judging.asked or row.settings["eval.data"] or row.settings["mlm.validation"]):
            raise UserError(
                f"row {row.label!r}: nothing judges its runs: eval.data and mlm.validation are empty.\n"
                "Give --config.eval.data=FILE, or judge the finished runs with --judge=sts or --pairs=FILE."
            )


def folder_name(label: str, taken: Collection[str]) -> str:
    """A folder's name like the label, and none of those that are taken."""
    name = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", label).strip("-.")[:_LONGEST_NAME] or "row"
    lower, number, unique = {other.lower() for other in taken}, 2, name
    while unique.lower() in lower:
        unique, number = f"{name}-{number}", number + 1
    return unique

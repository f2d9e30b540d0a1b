"""Plan a sweep: its rows, seeds and judging, checked before the first run, stored in the sweep folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simcse_jax.config.compare import idle_keys
from simcse_jax.config.recipe import read_recipe
from simcse_jax.config.resolve import resolve
from simcse_jax.config.schema import LAYOUT_KEYS, defaults
from simcse_jax.config.sections.run import DURATIONS
from simcse_jax.config.sources import flat_sections, source_values
from simcse_jax.evaluation.kinds import load_task
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.suite import GEOMETRY, choose_tasks
from simcse_jax.sweeping.rows import SEED, Overrides
from simcse_jax.system.errors import UserError
from simcse_jax.system.whole_file import write_whole_text, writing

PLAN = "sweep.json"
# Keys that do not identify a run. Another file of synonyms still makes another row (`_refuse_other_settings`);
# it is here because runs of earlier versions are marked as finished without it.
NOT_IDENTIFYING = LAYOUT_KEYS | {"data.synonyms"}
_DURATIONS = frozenset(f"train.{unit}" for unit in DURATIONS)
_LONGEST_NAME = 80  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """Hold one setting, trained with every seed."""

    label: str
    folder: str  # its folder's name
    overrides: Overrides  # what its runs are started with, except the seed
    settings: dict[str, Any]  # every key of the checked recipe (`Config.flat`), except the seed
    seeds: tuple[int, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that its runs share on every machine."""
        return {key: value for key, value in self.settings.items() if key not in NOT_IDENTIFYING}


@dataclasses.dataclass(frozen=True)
class Judging:
    """Hold how finished runs are judged beside their own dev score: flags of `evaluate`."""

    tasks: str = ""
    data: str = ""
    pairs: tuple[str, ...] = ()  # and other tasks of one's own, as KIND:SOURCE
    fast: bool = False

    @property
    def asked(self) -> bool:
        """Return whether runs are judged at all."""
        return bool(self.tasks or self.pairs)


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """Hold all of a sweep. The other rows are compared with the first one."""

    recipe: str
    rows: tuple[PlanRow, ...]
    judging: Judging


def make_plan(
    recipe: str, rows: Mapping[str, Overrides], common: Overrides, seeds: Sequence[int], judging: Judging
) -> SweepPlan:
    """Return the plan of these rows, each checked.

    common: overrides of every row. A row's own value replaces a common one, and a common key that has an effect in
    other rows only is left out, as data.rate is in a row without changed copies.
    """
    replaced = {label: _keys_replaced_by(own) for label, own in rows.items()}
    for key, value in common.items():
        if all(key in keys for keys in replaced.values()):
            raise UserError(
                f"--config.{key}={value} would change nothing: every row has its own, row {next(iter(rows))!r} for "
                "example.\nLeave it out, or name other rows with --grid or --row."
            )
    idle = {label: _common_keys_idle_in(recipe, label, common, own) for label, own in rows.items()}
    idle_everywhere = set.intersection(*idle.values())
    made: list[PlanRow] = []
    for label, own in rows.items():
        left_out = replaced[label] | (idle[label] - idle_everywhere)
        overrides = {key: value for key, value in common.items() if key not in left_out} | own
        name = folder_name(label, [row.folder for row in made])
        made.append(PlanRow(label, name, overrides, resolve_row(recipe, label, overrides), tuple(seeds)))
    return SweepPlan(recipe, tuple(made), judging)


def resolve_row(recipe: str, label: str, overrides: Overrides) -> dict[str, Any]:
    """Return every key of the row's recipe except the seed; UserError, naming the row, for a wrong key or value."""
    with _naming_row(recipe, label):
        config, overridden = read_recipe(recipe, overrides)
        mesh = config["mesh"]
        # Only the runs know how many devices there are: assume as many as the recipe asks for.
        devices = max(mesh["data"], 1) * max(mesh["fsdp"], 1)
        x64 = os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "t", "yes", "y", "on")
        settings = resolve(config, overridden, devices, x64).flat()
    del settings[SEED]
    return settings


def require_comparable(plan: SweepPlan) -> None:
    """Raise UserError for a row whose runs would have no metric."""
    for row in plan.rows:
        own = (row.settings["eval.data"], row.settings["mlm.validation"], *source_values(row.settings, "dev").values())
        if not (plan.judging.asked or any(own)):
            raise UserError(
                f"row {row.label!r}: nothing judges its runs: eval.data and mlm.validation are empty.\n"
                "Give --config.eval.data=FILE, or judge the finished runs with --judge=sts or --pairs=FILE."
            )


def check_judging(judging: Judging, where: str) -> None:
    """Raise UserError for an unknown task or a file that cannot be read; where: what named the tasks, for messages."""
    if judging.tasks:
        try:
            choose_tasks(judging.tasks, "test")
        except UserError as error:
            raise UserError(str(error).replace("--tasks", where)) from error
    for source in judging.pairs:
        load_task(source)
    if judging.data:
        senteval_folder(judging.data)


def require_senteval(judging: Judging) -> None:
    """Raise UserError where tasks need SentEval's data, and it is neither here nor can be fetched."""
    tasks = {*choose_tasks(judging.tasks, "test")} if judging.tasks else set()
    if not tasks or (tasks == {GEOMETRY} and judging.pairs and not judging.data):
        return
    try:
        senteval_folder(judging.data)
    except UserError as error:
        raise UserError(f"--judge={judging.tasks} needs SentEval's data (--data=DIR). {error}") from error


def read_plan(folder: Path) -> SweepPlan | None:
    """Return the plan that the folder holds, None for none; UserError when it cannot be read."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(stored["recipe"], str) and stored["rows"]):
            raise ValueError("it names no recipe, or no rows")
        judging = Judging(**stored["judging"] | {"pairs": tuple(stored["judging"]["pairs"])})
        return SweepPlan(stored["recipe"], tuple(map(_stored_row, stored["rows"])), judging)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not the plan of a sweep ({error}).\nGive another folder with --workdir=DIR."
        ) from error


def _stored_row(stored: dict[str, Any]) -> PlanRow:
    """Return a row as `write_plan` stores it; raise for anything else, such as a folder outside the sweep's."""
    kinds = {"label": str, "folder": str, "overrides": dict, "settings": dict, "seeds": list}
    for name, kind in kinds.items():
        if not isinstance(stored[name], kind):
            raise TypeError(f"{name} = {stored[name]!r}")
    if stored["folder"] in (".", "..") or Path(stored["folder"]).name != stored["folder"]:
        raise ValueError(f"folder = {stored['folder']!r}")
    values: dict[str, Any] = stored | {"seeds": tuple(map(int, stored["seeds"]))}
    return PlanRow(**values)


def write_plan(folder: Path, plan: SweepPlan) -> None:
    """Write the plan, whole or not at all, and make the folder where there is none."""
    with writing(folder, "Give a folder that you can write with --workdir=DIR.", f"--workdir={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole_text(folder / PLAN, json.dumps(dataclasses.asdict(plan), indent=2) + "\n")


def merge_plan(folder: Path, plan: SweepPlan, judges_anew: bool = False) -> SweepPlan:
    """Return the plan merged into the one that the folder holds.

    Rows and seeds may be added; a label must keep its settings. Stored rows stay first, unless the new plan names all
    of them: then its order counts. Stored judging stays unless `judges_anew`.
    """
    stored = read_plan(folder)
    if stored is None:
        return plan
    if stored.recipe != plan.recipe:
        raise UserError(
            f"{folder} holds a sweep of {stored.recipe}, and this is one of {plan.recipe}.\n"
            "Use --workdir=ANOTHER to start a new one."
        )
    old = {row.label: row for row in stored.rows}
    new = {row.label: row for row in plan.rows}
    for label in old.keys() & new.keys():
        _refuse_other_settings(folder, old[label], new[label])
    labels = list(new) if old.keys() <= new.keys() else [*old, *(label for label in new if label not in old)]
    taken = [row.folder for row in stored.rows]
    rows = []
    for label in labels:
        row = new.get(label) or old[label]
        if label in old:
            seeds = sorted({*old[label].seeds, *row.seeds})
            # The stored settings stay: they tell which runs are finished.
            kept = {"folder": old[label].folder, "settings": old[label].settings}
            row = dataclasses.replace(row, seeds=tuple(seeds), **kept)
        else:
            row = dataclasses.replace(row, folder=folder_name(label, taken))
            taken.append(row.folder)
        rows.append(row)
    judging = plan.judging if judges_anew else stored.judging
    if judging.asked and not judging.data:
        judging = dataclasses.replace(judging, data=stored.judging.data)
    return SweepPlan(plan.recipe, tuple(rows), judging)


def folder_name(label: str, taken: Collection[str]) -> str:
    """Return a folder name made from the label, different from those taken."""
    name = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", label).strip("-.")[:_LONGEST_NAME] or "row"
    lower, number, unique = {other.lower() for other in taken}, 2, name
    while unique.lower() in lower:
        unique, number = f"{name}-{number}", number + 1
    return unique


def _keys_replaced_by(own: Overrides) -> set[str]:
    """Return the keys that a row decides: its own, and all durations where it has one."""
    return {*own, *(_DURATIONS if _DURATIONS & own.keys() else ())}


def _common_keys_idle_in(recipe: str, label: str, common: Overrides, own: Overrides) -> set[str]:
    """Return the common keys without effect in a row, and those without effect once the former are left out."""
    found: set[str] = set()
    while True:
        with _naming_row(recipe, label):
            kept = {key: value for key, value in common.items() if key not in found}
            sections = read_recipe(recipe, kept | own)[0].to_dict()
        more = {*idle_keys(defaults() | flat_sections(sections))} & kept.keys() - own.keys()
        if not more:
            return found
        found |= more


@contextlib.contextmanager
def _naming_row(recipe: str, label: str) -> Iterator[None]:
    """Name the row in messages about what is wrong in its recipe."""
    try:
        yield
    except UserError as error:
        raise UserError(f"row {label!r} of {recipe}: {error}") from error


def _refuse_other_settings(folder: Path, old: PlanRow, new: PlanRow) -> None:
    """Raise UserError where two rows of one label differ.

    A key that a later version has added counts only where it is overridden, and one without effect not at all.
    """
    idle = idle_keys(defaults() | old.settings)
    keys = sorted((old.settings.keys() | new.overrides.keys()) - LAYOUT_KEYS - {*idle})
    changed = [key for key in keys if old.settings.get(key) != new.settings.get(key)]
    if changed:
        table = "\n".join(f"  {key}: {old.settings.get(key)!r} there, {new.settings.get(key)!r} now" for key in changed)
        raise UserError(
            f"{folder} holds a row {new.label!r} with other settings:\n{table}\n"
            "Use the same values to continue it, another label to add a row, or --workdir=ANOTHER for a new sweep."
        )

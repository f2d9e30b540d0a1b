"""Choose the tasks of an evaluation, and score a model on each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from simcse_jax.evaluation import sts, transfer
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.results import Encode, Score, Space
from simcse_jax.evaluation.space import measure_space
from simcse_jax.system.errors import UserError

GEOMETRY = "geometry"
GROUPS = ("sts", "transfer", GEOMETRY)
ALIASES = {"stsb": "STSBenchmark", "sickr": "SICKRelatedness", "sst": "SST2"}  # as other tools call them


@dataclasses.dataclass(frozen=True)
class TaskSuite:
    """Hold the tasks that models are judged on, and where their data are."""

    tasks: tuple[str, ...]  # names from sts.TASKS and transfer.TASKS, and "geometry"
    folder: Path | None = None  # what `senteval_folder` returns; None when no task needs it
    split: str = "test"  # of the STS tasks
    pairs: tuple[str, ...] = ()  # graded pairs as further tasks: what `load_graded_pairs` takes
    fast: bool = False  # the quick variant of the transfer tasks
    progress: bool = False  # show how far each task has come

    def __post_init__(self) -> None:
        if self.folder is None and (set(self.tasks) - {GEOMETRY} or (self.tasks and not self.pairs)):
            raise UserError(f"{', '.join(self.tasks)}: give the folder of SentEval's data, or your own graded pairs.")

    @property
    def scored(self) -> tuple[str, ...]:
        """The tasks with a score: the graded pairs, then the others without geometry."""
        return (*self.pairs, *(task for task in self.tasks if task != GEOMETRY))

    @property
    def averages(self) -> dict[str, tuple[str, ...]]:
        """The tasks of each average, by its name; an average is over all tasks of a group or is left out."""
        groups = {"sts": sts.tasks_with(self.split), "transfer": transfer.TASKS}
        return {name: tasks for name, tasks in groups.items() if all(task in self.tasks for task in tasks)}

    def score(self, encode: Encode, task: str) -> Score:
        """Return the score at one of the tasks of `scored`."""
        if task in self.pairs:
            return sts.evaluate_sts(encode, {"": load_graded_pairs(task)}, task, "as given")
        assert self.folder is not None  # __post_init__ checked it
        if task in transfer.TASKS:
            return transfer.evaluate_transfer(encode, self.folder, task, self.fast, self.progress)
        return sts.evaluate_sts(encode, sts.load_sts(self.folder, task, self.split), task, self.split)

    def measure_space(self, encode: Encode, **protocol: str) -> Space:
        """Return the geometry of STS-B's sentences, or of the first pairs where there is no folder.

        protocol: what the space's own gets beside the split.
        """
        if self.folder is not None:
            pairs, scale, split = sts.load_sts(self.folder, "STSBenchmark", self.split)[""], sts.STSB_SCALE, self.split
        else:
            pairs, split = load_graded_pairs(self.pairs[0]), "as given"
            scale = (float(pairs.gold.min()), float(pairs.gold.max()))
        space = measure_space(encode, pairs, scale)
        return dataclasses.replace(space, protocol=space.protocol | {"split": split} | protocol)


def choose_tasks(wanted: str, split: str) -> tuple[str, ...]:
    """Return the tasks of a comma-separated list of groups and names, in the order of the tables.

    Raises UserError for an unknown name, an empty list, or a task without the split.
    """
    groups = {"sts": sts.tasks_with(split), "transfer": transfer.TASKS, GEOMETRY: (GEOMETRY,)}
    names = {_plain(task): (task,) for task in (*sts.TASKS, *transfer.TASKS)}
    known = groups | names | {alias: (task,) for alias, task in ALIASES.items()}
    chosen: set[str] = set()
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        if _plain(word) not in known:
            raise UserError(
                f"--tasks: {word!r} is unknown. Groups: {', '.join(GROUPS)}.\n"
                f"Tasks: {', '.join((*sts.TASKS, *transfer.TASKS))}."
            )
        chosen |= set(known[_plain(word)])
    if not chosen:
        raise UserError(f"--tasks={wanted} names no task. Groups: {', '.join(GROUPS)}.")
    unsplit = sorted(chosen & {*sts.YEARS, *transfer.TASKS}) if split != "test" else []
    if unsplit:
        raise UserError(
            f"--split={split}: these have a test split only: {', '.join(unsplit)}. With a {split} split: "
            f"{', '.join(sts.tasks_with(split))}."
        )
    return tuple(task for task in (*sts.TASKS, *transfer.TASKS, GEOMETRY) if task in chosen)


def _plain(name: str) -> str:
    return name.lower().replace("-", "")

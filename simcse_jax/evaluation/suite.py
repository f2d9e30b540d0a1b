"""Choose the tasks of an evaluation, and score a model on each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from simcse_jax.evaluation import sts, transfer
from simcse_jax.evaluation.graded_pairs import GradedPairs
from simcse_jax.evaluation.kinds import PAIRS, OwnData, load_task, parse_task, score_task
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
    own: tuple[str, ...] = ()  # further tasks of the user's own data: "KIND:SOURCE", see kinds.py
    fast: bool = False  # the quick variant of the transfer tasks
    progress: bool = False  # show how far each task has come
    _loaded: dict[str, OwnData] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.folder is None and (set(self.tasks) - {GEOMETRY} or (self.tasks and not self.graded)):
            raise UserError(f"{', '.join(self.tasks)}: give the folder of SentEval's data, or your own graded pairs.")

    @property
    def scored(self) -> tuple[str, ...]:
        """The tasks with a score: the user's own, graded pairs first, then the others without geometry."""
        return (*self.pairs, *self.own, *(task for task in self.tasks if task != GEOMETRY))

    @property
    def graded(self) -> tuple[str, ...]:
        """The tasks of graded pairs among the user's own."""
        return tuple(task for task in (*self.pairs, *self.own) if parse_task(task)[0] == PAIRS)

    def load(self, task: str) -> OwnData:
        """Return the data of one of the user's own tasks, read once; UserError for bad input."""
        if task not in self._loaded:
            self._loaded[task] = load_task(task)
        return self._loaded[task]

    @property
    def averages(self) -> dict[str, tuple[str, ...]]:
        """The tasks of each average, by its name; an average is over all tasks of a group or is left out."""
        groups = {"sts": sts.tasks_with(self.split), "transfer": transfer.TASKS}
        return {name: tasks for name, tasks in groups.items() if all(task in self.tasks for task in tasks)}

    def score(self, encode: Encode, task: str) -> Score:
        """Return the score at one of the tasks of `scored`."""
        if task in (*self.pairs, *self.own):
            return score_task(encode, self.load(task), task)
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
            pairs, split = self.load(self.graded[0]), "as given"
            assert isinstance(pairs, GradedPairs)
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

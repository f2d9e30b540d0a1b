"""Choose the tasks of an evaluation and run them on a model; a task that fails does not stop the others."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simcse_jax.evaluation import sts, transfer
from simcse_jax.evaluation.graded_pairs import load_graded_pairs
from simcse_jax.evaluation.results import Encode, Score, Space, Verdict
from simcse_jax.evaluation.space import measure_space
from simcse_jax.system.errors import UserError

GEOMETRY = "geometry"
GROUPS = ("sts", "transfer", GEOMETRY)
ALIASES = {"stsb": "STSBenchmark", "sickr": "SICKRelatedness", "sst": "SST2"}  # as other tools call them
_STSB = "STSBenchmark"
_BEFORE = f"{GEOMETRY} before training"


@dataclasses.dataclass(frozen=True)
class Exam:
    """Hold what models are judged on."""

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
    def averages(self) -> dict[str, tuple[str, ...]]:
        """The tasks of each average, by its name; an average is over all tasks of a group or is left out."""
        groups = {"sts": sts.tasks_with(self.split), "transfer": transfer.TASKS}
        return {name: tasks for name, tasks in groups.items() if all(task in self.tasks for task in tasks)}


@dataclasses.dataclass(frozen=True)
class Subject:
    """Hold a model to be judged."""

    name: str
    encode: Encode
    protocol: Callable[[], dict[str, Any]]  # may read the weights, so that `judge` calls it and reports its failure
    before: Callable[[], tuple[Encode, str] | None]  # encode before training and the source of those weights, if known
    curves: list[dict[str, Any]]
    recipe: str


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


def judge(subject: Subject, exam: Exam, say: Callable[[str], None] = lambda _: None) -> Verdict:
    """Return the verdict on one model. A task that fails is entered in `failures`, and the others go on.

    say: called with a line when a task is done.
    """
    verdict = Verdict(subject.name, {"model": subject.name}, curves=subject.curves, recipe=subject.recipe)
    try:
        verdict.protocol |= subject.protocol()
    except Exception as error:  # noqa: BLE001 (weights that do not load fail every task)
        verdict.failures |= dict.fromkeys((*exam.pairs, *exam.tasks), _words(error))
        verdict.recipe = ""  # there is nothing to average with other runs
        return verdict
    attempts: dict[str, Callable[[], Score | Space | None]] = {}
    for source in exam.pairs:
        attempts[source] = functools.partial(_score_pairs, subject.encode, source)
    attempts |= {t: functools.partial(_score, subject.encode, t, exam) for t in exam.tasks}
    if GEOMETRY in exam.tasks:
        attempts[GEOMETRY] = functools.partial(_space, subject.encode, exam)
        attempts[_BEFORE] = lambda: _space_before(subject, exam) if verdict.space else None
    for task, attempt in attempts.items():
        started = time.monotonic()
        try:
            found = attempt()
        except Exception as error:  # noqa: BLE001 (one task, say out of memory, must not lose hours of others)
            verdict.failures[task] = _words(error)
            outcome = "failed"
        else:
            outcome = f"{found.value:.2f}" if isinstance(found, Score) else "measured" if found else ""
            if isinstance(found, Score):
                verdict.scores[task] = found
            elif task == GEOMETRY:
                verdict.space = found
            else:
                verdict.space_before = found
        if outcome:
            say(f"  {task}: {outcome} ({time.monotonic() - started:.0f} s)")
    return verdict


def _words(error: Exception) -> str:
    """Return the reason of a failure: a UserError's message, or type and message of another error."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _score(encode: Encode, task: str, exam: Exam) -> Score:
    assert exam.folder is not None  # __post_init__ checked it
    if task in transfer.TASKS:
        return transfer.evaluate_transfer(encode, exam.folder, task, exam.fast, exam.progress)
    return sts.evaluate_sts(encode, sts.load_sts(exam.folder, task, exam.split), task, exam.split)


def _score_pairs(encode: Encode, source: str) -> Score:
    return sts.evaluate_sts(encode, {"": load_graded_pairs(source)}, source, "as given")


def _space(encode: Encode, exam: Exam, **protocol: str) -> Space:
    """Measure the geometry of STS-B's sentences, or of the user's first pairs without a folder of SentEval's data."""
    if exam.folder is not None:
        pairs, scale, split = sts.load_sts(exam.folder, _STSB, exam.split)[""], sts.STSB_SCALE, exam.split
    else:
        pairs, split = load_graded_pairs(exam.pairs[0]), "as given"
        scale = (float(pairs.gold.min()), float(pairs.gold.max()))
    space = measure_space(encode, pairs, scale)
    return dataclasses.replace(space, protocol=space.protocol | {"split": split} | protocol)


def _space_before(subject: Subject, exam: Exam) -> Space | None:
    """Measure the geometry with the weights before training, or return None where these are unknown."""
    before = subject.before()
    return _space(before[0], exam, weights=before[1]) if before else None


def passed(verdicts: Sequence[Verdict]) -> bool:
    """Return whether nothing failed."""
    return not any(verdict.failures for verdict in verdicts)

"""What a run keeps on disk: `last` to go on from, `best` to use.

`checkpoints/last` holds whole states, the newest two; `checkpoints/best` holds parameters and their score. A step
counts once the list of its files is there (`manifest`), so a killed run leaves nothing half-written that counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from simcse_jax.hosts.agreement import first_says, gather, is_first, on_all, processes, together
from simcse_jax.system.errors import UserError, short
from simcse_jax.training.folder import complete_steps, incomplete, seal
from simcse_jax.training.mesh import place
from simcse_jax.training.saved import read_state
from simcse_jax.training.state import TrainState

# Saves in a row that may fail before the run stops.
ATTEMPTS = 3
# How long processes wait for each other within a save.
SAVE_TIMEOUT_S = 600


@dataclasses.dataclass
class Progress:
    """What a run knows beside its state; saved with `last`, so that a resumed run goes on with it."""

    best_step: int = -1
    best_score: float = float("-inf")
    stale_evaluations: int = 0  # since the best one
    losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last evaluation
    history: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)  # step, score, mean loss since

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | {"best_score": None if self.best_step < 0 else self.best_score}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        score = float("-inf") if values["best_score"] is None else values["best_score"]
        history = [tuple(entry) for entry in values["history"]]
        return cls(values["best_step"], score, values["stale_evaluations"], values["losses"], history)


class Checkpoints:
    """The checkpoints of one run folder, written by all processes together. Use as a context."""

    def __init__(self, workdir: Path, say: Callable[[str], None] = print):
        """say: takes lines on what went wrong and was mended."""
        self._say = say
        self._failures = {"last": 0, "best": 0}  # saves of each that failed in a row
        self._folder = workdir.absolute() / "checkpoints"
        with together():
            self._remove_incomplete()
        # Two of each: a save that a kill interrupts never leaves the run with none.
        self._last = ocp.CheckpointManager(self._folder / "last", options=_options(asynchronous=True))
        self._best = ocp.CheckpointManager(self._folder / "best", options=_options(asynchronous=False))
        self._watcher = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None  # the save of `last` that was started and not yet looked at

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self._close()
        elif processes() == 1 or getattr(error, "everywhere", False):  # else the others may never come to wait with us
            with suppress(Exception):
                self._close()

    def _close(self) -> None:
        """Wait for the asynchronous save and release the threads."""
        self._watcher.shutdown()
        self._last.close()
        self._best.close()

    def latest_step(self) -> int | None:
        """The step that the run would go on from, were it to end now; None if that is the start."""
        if self._pending is not None:
            self._pending.exception()  # waits for it
        return max(complete_steps(self._folder / "last"), default=None)

    def start_anew(self) -> None:
        """Forget the best of a run that never came to a state to go on from."""
        for step in self._best.all_steps():
            self._best.delete(step)

    def save_last(self, state: TrainState, progress: Progress) -> None:
        """Save in the background, once the previous save is done.

        A save that fails is told of, and `must_retry` is true from then on. With several processes, or when it fails
        time after time, it is raised: UserError if the disk is full, else RuntimeError (so that launchers start again).
        """
        step = int(state.step)
        if self._settled() and self._last.latest_step() == step:
            return
        if self._failures["last"]:
            self._say(f"saving step {step} instead")
        told = progress.to_json()
        items = ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()), progress=ocp.args.JsonSave(told))
        try:
            self._last.save(step, force=True, args=items)
        except Exception as error:  # noqa: BLE001 (whatever a file system may do)
            self._failed("last", error)
        else:
            self._pending = self._watcher.submit(self._completed, self._last, step)

    def _completed(self, manager: ocp.CheckpointManager, step: int) -> None:
        """Wait until a save is there, and call it complete."""
        manager.wait_until_finished()
        if is_first():
            seal(Path(manager.directory) / str(step))

    def must_retry(self) -> bool:
        """Whether the newest save has failed; costs nothing, so it is asked at every step."""
        if self._pending is not None and self._pending.done():
            self._settled()
        return self._pending is None and self._failures["last"] > 0

    def finish(self, state: TrainState, progress: Progress) -> None:
        """Save this state, and return once it is there; raises what `save_last` raises."""
        self.save_last(state, progress)
        while not self._settled():
            self.save_last(state, progress)

    def _settled(self) -> bool:
        """Wait for the save that is under way; False if the newest one has failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            if error := pending.exception():
                self._failed("last", error)
            else:
                self._failures["last"] = 0
        return not self._failures["last"]

    def _failed(self, which: str, error: BaseException) -> None:
        """Tell of a failed save, and leave things such that it can be tried again; raises when that is of no use."""
        self._failures[which] += 1
        with suppress(OSError):
            self._remove_incomplete()
        for manager in (self._last, self._best):  # what was removed is no longer there for them, either
            manager.reload()
        reason = short(error)
        full = any(words in str(error) for words in ("No space left", "quota", "File too large"))
        if processes() > 1 or self._failures[which] >= ATTEMPTS:
            good = self.latest_step()
            holds = f"checkpoints/last is good and holds step {good}" if good is not None else "nothing was saved yet"
            text = f"A checkpoint could not be written: {reason}\n{holds}; the same command goes on from there."
            if full:
                raise UserError(text + "\nFree some space first.") from error
            raise RuntimeError(text) from error
        self._say(f"warning: a checkpoint could not be written: {reason}")

    def save_best(self, step: int, params: Any, scores: dict[str, Any]) -> None:
        """Save the parameters of the best evaluation so far; done when this returns. Raises as `save_last` does."""
        # The state on disk may rest on an older best, which goes once two newer ones are there.
        self._settled()
        if step in self._best.all_steps():  # a resumed run comes by its best step again
            self._best.delete(step)
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), scores=ocp.args.JsonSave(scores))
        while True:
            try:
                self._best.save(step, force=True, args=items)
                self._completed(self._best, step)
            except Exception as error:  # noqa: BLE001 (whatever a file system may do)
                self._failed("best", error)
            else:
                self._failures["best"] = 0
                return

    def restore_last(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest good state and its progress, laid out like `like` (ShapeDtypeStructs with shardings).

        None in a new run. One that is torn or not what was written is set aside, and the one before it is taken. None
        also where it was the run's first; UserError when none of several is good. Every process reads and checks the
        whole: a disk that fails one of them is no reason to set a good state aside.
        """
        found = {
            "steps": sorted(self._last.all_steps(), reverse=True),
            "earlier": bool(list(self._folder.glob("broken-*"))),
        }
        found = json.loads(first_says(json.dumps(found)))
        steps, earlier = found["steps"], found["earlier"]
        for step in steps:
            values, told, problem = None, {}, ""
            try:
                values, told = read_state(self._folder / "last" / str(step), like._asdict())
            except Exception as error:  # noqa: BLE001 (whatever a reader may make of damaged files)
                problem = short(error)
            problems = gather(problem)
            if not any(problems):
                # Saved after `last`, so of a part of the run that is about to be repeated.
                for later in [s for s in self._best.all_steps() if s > step]:
                    self._best.delete(later)
                return TrainState(**place(values, _shardings(like))), Progress.from_json(told)
            if not all(problems):
                number, told_problem = next((n, text) for n, text in enumerate(problems) if text)
                raise RuntimeError(f"Process {number} cannot read step {step}, and others can: {told_problem}")
            self._set_aside(step, problem)
        if not steps:
            return None
        if len(steps) == 1 and not earlier:
            self._say("warning: that was the first checkpoint, and there is no other: the run starts again")
            return None
        raise on_all(
            f"No checkpoint in {self._folder / 'last'} was good; they are beside it now, as broken-*.\n"
            "Put back a copy, or start anew with --workdir=ANOTHER."
        )

    def _set_aside(self, step: int, problem: str) -> None:
        names = itertools.chain([f"broken-{step}"], (f"broken-{step}.{n}" for n in itertools.count(2)))
        aside = next(path for name in names if not (path := self._folder / name).exists())
        with together():
            if is_first():
                os.replace(self._folder / "last" / str(step), aside)
        self._last.reload()
        self._say(f"warning: the checkpoint of step {step} is damaged ({problem}); set aside as {aside}")

    def _remove_incomplete(self) -> None:
        if is_first():
            for folder in ("last", "best"):
                for path in incomplete(self._folder / folder):
                    shutil.rmtree(path, ignore_errors=True)


def _options(asynchronous: bool) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(
        max_to_keep=2,
        enable_async_checkpointing=asynchronous,
        async_options=ocp.AsyncOptions(timeout_secs=SAVE_TIMEOUT_S),
    )


def _shardings(like: TrainState) -> dict[str, Any]:
    return jax.tree.map(lambda x: x.sharding, like._asdict())

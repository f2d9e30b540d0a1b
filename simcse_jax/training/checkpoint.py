"""Save and restore a run: `checkpoints/last` to resume from, `checkpoints/best` to use.

`last` holds the newest states, two unless the recipe says more, and those kept for good; `best` the parameters of the
best two evaluations and their scores. A checkpoint
is complete once the list of its files is there (`folder.seal`), so what a killed run leaves half-written is ignored.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from simcse_jax.hosts.agreement import broadcast, error_on_all, fail_together, gather, is_first, processes
from simcse_jax.hosts.on_first import on_first
from simcse_jax.model_folder.run_folder import complete_steps, in_this_process, read_state
from simcse_jax.runs.folder import incomplete, seal, set_aside
from simcse_jax.runs.stored_run import StoredRun
from simcse_jax.system.errors import Unreachable, UserError, short
from simcse_jax.training.mesh import place
from simcse_jax.training.state import TrainState

ATTEMPTS = 3  # failed saves in a row that stop the run
SAVE_TIMEOUT_S = 600  # how long processes wait for each other within a save


@dataclasses.dataclass
class RunProgress:
    """Hold what a run knows beside its state; saved with `last`, so that a resumed run continues with it."""

    best_step: int = -1
    best_score: float = float("-inf")
    stale_evaluations: int = 0  # evaluations since the best one
    losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last evaluation
    history: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)  # step, score, mean loss
    # of a mixture with one source a batch: the losses since the last line of the log, by source
    by_source: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | {"best_score": None if self.best_step < 0 else self.best_score}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunProgress:
        score = float("-inf") if values["best_score"] is None else values["best_score"]
        history = [tuple(entry) for entry in values["history"]]
        by_source = values.get("by_source", {})  # earlier versions had no mixtures
        return cls(values["best_step"], score, values["stale_evaluations"], values["losses"], history, by_source)


class Checkpoints:
    """Write and read the checkpoints of one run folder, all processes together. A context manager."""

    def __init__(
        self,
        workdir: Path,
        say: Callable[[str], None] = print,
        keep: int = 2,
        keep_every_steps: int = 0,
        stored: StoredRun | None = None,
    ):
        """say: called with lines on what went wrong and how it was repaired. keep, keep_every_steps: as the keys.

        stored: of a run at an address. Each process has a folder of its own then, process 0 writes all, and sends it.
        """
        self._say, self._stored = say, stored
        # Otherwise Orbax waits for all processes to write into one folder.
        self._alone = stored is not None and processes() > 1
        self._failures = {"last": 0, "best": 0}  # failed saves in a row
        self._folder = workdir.absolute() / "checkpoints"
        with fail_together():
            self._remove_incomplete()
        # Two of each are kept: a save that a kill interrupts never leaves the run with none.
        if self._alone:
            for kind in ("last", "best"):
                (self._folder / kind).mkdir(parents=True, exist_ok=True)
        kept = _options(self._alone, asynchronous=True, keep=keep, keep_every_steps=keep_every_steps)
        self._last = ocp.CheckpointManager(self._folder / "last", options=kept)
        self._best = ocp.CheckpointManager(self._folder / "best", options=_options(self._alone, asynchronous=False))
        self._watcher = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None  # the save of `last` that was started and not yet checked

    def __enter__(self) -> Checkpoints:
        logging.getLogger("absl").addFilter(_is_news)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self._close()
        elif processes() == 1 or getattr(error, "everywhere", False):  # else the other processes may never come here
            with suppress(Exception):
                self._close()
        logging.getLogger("absl").removeFilter(_is_news)

    def _close(self) -> None:
        """Wait for the asynchronous save and release the threads."""
        self._watcher.shutdown()
        self._last.close()
        self._best.close()

    def latest_step(self) -> int | None:
        """Return the step that a resumed run would start from, None for the start."""
        if self._pending is not None:
            self._pending.exception()  # waits for it
        return max(complete_steps(self._folder / "last"), default=None)

    def has_best(self, step: int) -> bool:
        """Return whether the parameters of this evaluation are kept; all processes call it together."""
        found = step in self._best.all_steps()
        return json.loads(broadcast(json.dumps(found))) if self._alone else found

    def describe_last(self) -> str:
        """Return which step `checkpoints/last` holds, in words for a message."""
        step = self.latest_step()
        return "nothing was saved yet" if step is None else f"checkpoints/last is good and holds step {step}"

    def start_anew(self) -> None:
        """Delete the best checkpoints of a run that has no state to resume from."""
        for step in self._best.all_steps():
            self._best.delete(step)

    def save_last(self, state: TrainState, progress: RunProgress) -> None:
        """Save in the background, once the previous save is done.

        When a save fails, a warning is printed and `must_retry` returns True. With several processes, or after
        `ATTEMPTS` failures, this raises: UserError if the disk is full, else RuntimeError (so launchers start again).
        """
        step = int(state.step)
        with self._by_first(state._asdict()) as values:
            if values is not None:
                self._save_last(step, values, progress)

    @contextmanager
    def _by_first(self, values: Any) -> Iterator[Any]:
        """Yield what this process is to save, None for nothing; what fails where process 0 saves all fails all."""
        if not self._alone:
            yield values
            return
        values = on_first(values)
        with fail_together():
            yield values

    def _save_last(self, step: int, values: Any, progress: RunProgress) -> None:
        try:
            settled = self._settled()
        except Unreachable:
            self._keep_here(step, values, progress)
            raise
        if settled and self._last.latest_step() == step:
            return
        if self._failures["last"]:
            self._say(f"saving step {step} instead")
        try:
            items = _items(values, progress)
            self._last.save(step, force=True, args=items)
            self._pending = self._watcher.submit(self._completed, self._last, step)
        except Exception as error:  # noqa: BLE001 (a file system may raise anything)
            self._failed("last", error)

    def _keep_here(self, step: int, values: Any, progress: RunProgress) -> None:
        """Save this state in the local folder alone, from which the next start sends it."""
        if self._last.latest_step() != step:
            self._last.save(step, force=True, args=_items(values, progress))
            self._last.wait_until_finished()
            seal(Path(self._last.directory) / str(step))

    def _completed(self, manager: ocp.CheckpointManager, step: int) -> None:
        """Wait until a save is written, and mark it as complete; send it where the run is at an address."""
        manager.wait_until_finished()
        if is_first():
            folder = Path(manager.directory)
            seal(folder / str(step))
            if self._stored:
                self._stored.send_step(folder.name, step)

    def must_retry(self) -> bool:
        """Return whether the newest save has failed; cheap enough for every step."""
        if self._pending is not None and self._pending.done():
            if isinstance(self._pending.exception(), UserError):  # the next save, of all processes, raises it
                return not self._alone
            self._settled()
        return self._pending is None and self._failures["last"] > 0

    def finish(self, state: TrainState, progress: RunProgress) -> None:
        """Save this state and wait until it is written; raises what `save_last` raises."""
        self.save_last(state, progress)
        with fail_together() if self._alone else nullcontext():
            while not self._settled():  # of several processes, a failure has raised
                self.save_last(state, progress)

    def _settled(self) -> bool:
        """Wait for the running save; return False if the newest one has failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            if error := pending.exception():
                if isinstance(error, UserError):  # of an object store; it was tried for long enough
                    raise error
                self._failed("last", error)
            else:
                self._failures["last"] = 0
        return not self._failures["last"]

    def _failed(self, which: str, error: BaseException) -> None:
        """Report a failed save and clean up for another attempt; raise when another attempt makes no sense."""
        self._failures[which] += 1
        with suppress(OSError):
            self._remove_incomplete()
        for manager in (self._last, self._best):  # they must forget what was removed
            manager.reload()
        reason = short(error)
        full = any(words in str(error) for words in ("No space left", "quota", "File too large"))
        if processes() > 1 or self._failures[which] >= ATTEMPTS:
            held = self.describe_last()
            text = f"A checkpoint could not be written: {reason}\n{held}; the same command goes on from there."
            if full:
                raise UserError(text + "\nFree some space first.") from error
            raise RuntimeError(text) from error
        self._say(f"warning: a checkpoint could not be written: {reason}")

    def save_best(self, step: int, params: Any, scores: dict[str, Any]) -> None:
        """Save the parameters of the best evaluation so far, before this returns. Raises what `save_last` raises."""
        with self._by_first(params) as values:
            if values is not None:
                self._save_best(step, values, scores)

    def _save_best(self, step: int, params: Any, scores: dict[str, Any]) -> None:
        # The state on disk may rest on an older best, which goes once two newer ones are there.
        self._settled()
        if step in self._best.all_steps():  # a resumed run reaches its best step again
            self._best.delete(step)
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), scores=ocp.args.JsonSave(scores))
        while True:
            try:
                self._best.save(step, force=True, args=items)
                self._completed(self._best, step)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001 (a file system may raise anything)
                self._failed("best", error)
            else:
                self._failures["best"] = 0
                return

    def restore_last(self, like: TrainState) -> tuple[TrainState, RunProgress] | None:
        """Return the newest good state and its progress, laid out like `like` (ShapeDtypeStructs with shardings).

        A damaged checkpoint is renamed to broken-STEP, and the one before it is used. None in a new run, and when the
        damaged one was the run's first; UserError when all of several are damaged, or were at an earlier start. Every
        process reads and checks the whole, so that a disk that fails one process alone does not condemn a good
        checkpoint.
        """
        own = [sorted(self._last.all_steps(), reverse=True), bool(set_aside(self._folder))]
        steps, has_broken = json.loads(broadcast(json.dumps(own)))
        for step in steps:
            values, metadata, problem = None, {}, ""
            try:
                values, metadata = read_state(self._folder / "last" / str(step), like._asdict())
            except Exception as error:  # noqa: BLE001 (damaged files may raise anything)
                problem = short(error)
            problems = gather(problem)
            if not any(problems):
                # A best that is newer than this state: the run is about to repeat those steps.
                for later in [s for s in self._best.all_steps() if s > step]:
                    self._best.delete(later)
                return TrainState(
                    **place(values, jax.tree.map(lambda x: x.sharding, like._asdict()))
                ), RunProgress.from_json(metadata)
            if not all(problems):
                number, its_problem = next((n, text) for n, text in enumerate(problems) if text)
                raise RuntimeError(f"Process {number} cannot read step {step}, and others can: {its_problem}")
            self._set_aside(step, problem)
        if not steps and not has_broken:
            return None
        if len(steps) == 1 and not has_broken:
            self._say("warning: there is no other checkpoint, so the run starts again")
            return None
        raise error_on_all(
            f"No good checkpoint is left in {self._folder / 'last'}; the damaged ones are beside it, as broken-*.\n"
            "Restore one from a copy, or start a new run with --workdir=ANOTHER."
        )

    def _set_aside(self, step: int, problem: str) -> None:
        names = itertools.chain([f"broken-{step}"], (f"broken-{step}.{n}" for n in itertools.count(2)))
        aside = next(path for name in names if not (path := self._folder / name).exists())
        with fail_together():
            if is_first():
                os.replace(self._folder / "last" / str(step), aside)
                if self._stored:
                    self._stored.set_aside(step, aside)
            elif self._alone:
                os.replace(self._folder / "last" / str(step), aside)
        self._last.reload()
        self._say(f"warning: the checkpoint of step {step} is damaged ({problem}); set aside as {aside}")

    def _remove_incomplete(self) -> None:
        if is_first():
            for folder in ("last", "best"):
                for path in incomplete(self._folder / folder):
                    shutil.rmtree(path, ignore_errors=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for Orbax's traceback of a save that failed, one for each array: `_failed` tells of it in a line."""
    return not (record.exc_info and "orbax" in record.pathname)


def _items(values: Any, progress: RunProgress) -> ocp.args.Composite:
    return ocp.args.Composite(state=ocp.args.StandardSave(values), progress=ocp.args.JsonSave(progress.to_json()))


def _options(alone: bool, asynchronous: bool, keep: int = 2, keep_every_steps: int = 0) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(
        create=not alone,  # Orbax makes folders for all processes together only
        multiprocessing_options=in_this_process() if alone else ocp.options.MultiprocessingOptions(),
        max_to_keep=keep,
        keep_period=keep_every_steps or None,
        enable_async_checkpointing=asynchronous,
        async_options=ocp.AsyncOptions(timeout_secs=SAVE_TIMEOUT_S),
    )

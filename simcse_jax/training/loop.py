"""Run the training loop: steps, metrics, evaluations and checkpoints, until the end or a signal.

The order within a step makes a run resumable: first its loss is checked to be finite, then its metrics are written, it
is evaluated, the best is saved, and only then `last`, the state that a resumed run starts from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from simcse_jax.config.schema import CheckpointConfig
from simcse_jax.data.batches import Batch, Rows, format_rows
from simcse_jax.evaluation.sts import has_collapsed
from simcse_jax.hosts.agreement import error_on_all, is_first
from simcse_jax.hosts.signals import stop_signals
from simcse_jax.runs.metrics import FLOAT32_DIGITS, FLOAT64_DIGITS, OF_SOURCE, Clock, MetricsWriter, Profile
from simcse_jax.runs.stored_run import StoredRun
from simcse_jax.runs.trackers import Trackers
from simcse_jax.training.checkpoint import Checkpoints, RunProgress
from simcse_jax.training.display import Display
from simcse_jax.training.feeding import batch_shapes, feed
from simcse_jax.training.program import Compilations
from simcse_jax.training.run import Run
from simcse_jax.training.state import TrainState, encoder_params
from simcse_jax.training.step import TrainStep

FALLING_EVALUATIONS = 3  # evaluations in a row with a falling score and a falling loss that are worth a warning
# Steps after which the remaining shapes are compiled too, in the background; shorter runs compile only what they need.
COMPILE_AHEAD_AFTER = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Hold how a start of a run ended."""

    first_step: int  # the one that it resumed from
    step: int
    progress: RunProgress
    signal: int | None  # the signal that stopped it; None when it is complete
    shapes_compiled: int


def train(
    run: Run,
    workdir: Path,
    profile: bool = False,
    trackers: Trackers | None = None,
    stored: StoredRun | None = None,
) -> Outcome:
    """Train until the end, the end of patience or a signal; resumes what `workdir` holds of this run.

    profile: trace some steps into `workdir/profile`. trackers: get each line of metrics too. stored: of a run at an
    address. UserError when the loss is not finite; `last` is then still good. `prepare` has made sure that workdir
    holds no other run.
    """
    first = is_first()
    with contextlib.ExitStack() as stack:
        named = stored.named if stored else str
        display = stack.enter_context(Display(run.total_steps, quiet=not first, named=named))
        kept = run.config.checkpoint
        checkpoints = stack.enter_context(Checkpoints(workdir, display.say, kept.keep, kept.keep_every_steps, stored))
        restored = checkpoints.restore_last(run.program.shapes)
        if restored is None:
            checkpoints.start_anew()
        state, progress = restored or (run.initial_state(), RunProgress())
        if progress.best_step >= 0 and not checkpoints.has_best(progress.best_step):
            display.say(
                f"warning: the best of this run so far, of step {progress.best_step}, is not kept; the best from step "
                f"{int(state.step)} on will be"
            )
            progress = dataclasses.replace(progress, best_step=-1, best_score=float("-inf"), stale_evaluations=0)
        start = int(state.step)
        display.step(start)
        metrics = None  # the first process alone writes them
        if first:
            is_x64 = jax.dtypes.canonicalize_dtype("float64") == "float64"
            digits = FLOAT64_DIGITS if is_x64 else FLOAT32_DIGITS
            metrics = stack.enter_context(
                MetricsWriter(workdir, start if restored else None, display.say, digits, trackers)
            )
        loop = _Loop(run, checkpoints, metrics, display, progress)
        if restored is None:
            loop.evaluate(0, encoder_params(state.params))
        else:
            display.say(f"resumed from step {start} in {workdir}")
            if progress.history and run.dev:
                display.dev(run.dev.measure.shown(progress.history[-1][1]))
        folder = workdir / "profile" if profile and first else None
        return loop.steps(state, start, stack.enter_context(Profile(folder, display.say, loop.clock.skip)))


class _Loop:
    """Hold what changes while `train` runs."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        metrics: MetricsWriter | None,
        display: Display,
        progress: RunProgress,
    ):
        self.run, self.checkpoints, self.metrics, self.display = run, checkpoints, metrics, display
        self.progress = progress
        self.compilations = Compilations(run.program, self._shapes)
        self.clock = Clock(run.batches.sentences)

    def steps(self, state: TrainState, start: int, profile: Profile) -> Outcome:
        """Run the steps after `start`. The metrics of a step are fetched while the next one runs."""
        run, every, checkpoints = self.run, self.run.config, self.checkpoints
        waiting: tuple[int, Any] | None = None  # the step whose metrics are still on the device
        step, stop = start, None
        with stop_signals(self.display.say) as stopping, contextlib.closing(self.compilations):
            for step, batch in self._batches(start):
                if step == start + COMPILE_AHEAD_AFTER:
                    for loss in ("", *run.program.of_sources):
                        self.compilations.begin(*run.batches.row_counts, loss=loss)
                    self.clock.skip()
                with profile.step(step):
                    state, metrics = self._step(state, batch, run.loss_of(step - 1))
                if waiting:
                    self._settle(*waiting)
                waiting = step, metrics
                last, stop = step == run.total_steps, stopping(step)
                evaluates = run.dev is not None and (last or step % every.eval.every_steps == 0)
                due = is_saved(step, every.checkpoint) or checkpoints.must_retry()
                if last or evaluates or stop or due:
                    self._settle(*waiting)
                    waiting = None
                    patient = self.evaluate(step, encoder_params(state.params)) if evaluates else True
                    if last and run.dev is None:
                        checkpoints.save_best(step, encoder_params(state.params), {})
                    ends = last or stop or not patient
                    (checkpoints.finish if ends else checkpoints.save_last)(state, self.progress)
                    self.clock.skip()
                    if ends:
                        break
        unfinished = stop is not None and step < run.total_steps
        return Outcome(start, step, self.progress, stop if unfinished else None, self.compilations.finished())

    def _batches(self, start: int) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch on the devices), and measure the wait for data."""
        if start >= self.run.total_steps or self._out_of_patience():
            return
        stream = feed(self.run.batches, self.run.program.mesh, start, self.run.total_steps)
        for step in range(start + 1, self.run.total_steps + 1):
            with self.clock.waiting():
                batch = next(stream)
            yield step, batch

    def _step(self, state: TrainState, batch: Batch, loss: str) -> tuple[TrainState, Any]:
        step = self._compiled(batch, loss)
        # An implicit transfer between host and devices would slow every step down.
        with jax.transfer_guard("disallow"):
            return step(state, batch, *self.run.frozen)

    def _shapes(self, rows: Rows, loss: str) -> Batch:
        batches, columns = self.run.batches, self.run.batches.examples.texts
        config = self.run.config.by_loss[loss or self.run.config.objective.loss]
        width = batches.vectors.width if batches.vectors else 0
        return batch_shapes(config, self.run.program.mesh, columns, rows, batches.layout.row_length, width)

    def _compiled(self, batch: Batch, loss: str) -> TrainStep:
        """Return the compiled step for a batch of this shape, with a source's loss, or "" for the recipe's own."""
        tokens = batch.inputs.groups.ids.shape[-1]
        rows = batch.rows
        if self.compilations.ready(rows, loss):
            return self.compilations.step(rows, loss)
        started = time.monotonic()
        of_loss = f" with the loss {loss}" if loss else ""
        self.display.say(f"compiling the step for {format_rows(rows)} rows of {tokens} tokens a group{of_loss} ...")
        with self.display.while_doing("compiling"):
            step = self.compilations.step(rows, loss)
        self.display.say(f"compiled in {time.monotonic() - started:.1f} s")
        self.clock.skip()
        return step

    def _settle(self, step: int, metrics: Any) -> None:
        """Fetch a step's metrics, stop if its loss is not finite, and log them when it is time."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
            raise error_on_all(
                f"Step {step}: the loss is {values['loss']}, the gradient norm {values['gradient_norm']}; "
                f"{self.checkpoints.describe_last()}.\n"
                f"Try a lower --config.optimizer.learning_rate than {self.run.config.optimizer.learning_rate:g}, or "
                "float32 if you compute in bfloat16."
            )
        if self.run.dev is not None:
            self.progress.losses.append(values["loss"])
        if source := self.run.batches.order.source(step - 1):
            self.progress.by_source.setdefault(source, []).append(values["loss"])
        self.display.step(step)
        self.clock.step()
        if step % self.run.config.train.log_every_steps == 0 or step == self.run.total_steps:
            by_source, self.progress.by_source = self.progress.by_source, {}
            values |= {
                **{f"{OF_SOURCE}{name}": statistics.fmean(losses) for name, losses in sorted(by_source.items())},
                "learning_rate": float(self.run.learning_rate(step - 1)),
                "epoch": step / self.run.batches.steps_per_epoch,
                **self.clock.read(),
            }
            if self.metrics is not None:
                self.metrics.write(step, values)
            left = (self.run.total_steps - step) * self.clock.seconds_per_step
            self.display.metrics(step, values, left)

    def evaluate(self, step: int, params: Any) -> bool:
        """Score the parameters and save them if they are the best; return False when patience is at its end."""
        if self.run.dev is None:
            return True
        with self.display.while_doing("evaluating"):
            scores = self.run.dev.evaluate(self.run.merge(params))
        measure, progress = self.run.dev.measure, self.progress
        score = measure.of(scores)
        if self.metrics is not None:
            self.metrics.write(step, {f"dev/{name}": scores[name] for name in self.run.dev.logged if name in scores})
        best = score > progress.best_score
        if progress.losses:
            progress.history.append((step, score, sum(progress.losses) / len(progress.losses)))
        progress.losses.clear()
        progress.stale_evaluations = 0 if best else progress.stale_evaluations + 1
        if best:
            progress.best_step, progress.best_score = step, score
            config = self.run.config
            sets = [config.eval.data, *(source.dev for source in config.sources)]
            data = ", ".join(filter(None, sets)) or config.mlm.validation
            self.checkpoints.save_best(step, params, {"data": data, **scores})
        parts = ", ".join(f"{name} {scores[name]:.2f}" for name in self.run.dev.parts)
        self.display.score(step, measure.words, measure.shown(score), best, parts)
        if has_collapsed(scores):
            self.display.say("warning: the model gives all dev pairs the same cosine, up to rounding: it has collapsed")
        if falling(progress.history):
            self.display.say(
                f"warning: {measure.words} got worse {FALLING_EVALUATIONS} times in a row while the loss fell: the "
                "model learns something else than what is scored.\nThe best is kept; a lower "
                "--config.optimizer.learning_rate or fewer steps usually help."
            )
        if self._out_of_patience():
            self.display.say(f"stopping: no better {measure.words} in {progress.stale_evaluations} evaluations")
            return False
        return True

    def _out_of_patience(self) -> bool:
        patience = self.run.config.eval.patience
        return bool(patience) and self.progress.stale_evaluations >= patience


def is_saved(step: int, config: CheckpointConfig) -> bool:
    """Return whether the recipe asks for a checkpoint at this step."""
    return any(every and step % every == 0 for every in (config.every_steps, config.keep_every_steps))


def falling(history: list[tuple[int, float, float]]) -> bool:
    """Return whether the last evaluations show a falling score with a falling loss."""
    recent = history[-FALLING_EVALUATIONS - 1 :]
    return len(recent) > FALLING_EVALUATIONS and all(
        later[1] < earlier[1] and later[2] < earlier[2] for earlier, later in itertools.pairwise(recent)
    )

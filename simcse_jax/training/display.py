"""Print what a run is, how it goes, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simcse_jax.config.layout import LARGEST_GROUP
from simcse_jax.data.batches import written
from simcse_jax.data.positives import CHANGES

if TYPE_CHECKING:
    from simcse_jax.training.run import Run


class Display:
    """A bar with loss, dev score, sentences/s and time left; on a pipe or in a log, one line for each figure logged."""

    def __init__(self, total_steps: int, console: Console | None = None, quiet: bool = False):
        """quiet: show nothing, as one process of a run is enough to show it."""
        self.console = console or Console(soft_wrap=True, highlight=False, quiet=quiet)
        self.total_steps = total_steps
        self._fields: dict[str, Any] = {"loss": "-", "dev": "-", "speed": "-"}
        self._bar = Progress(
            BarColumn(bar_width=12),  # the line has to fit 80 columns
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("dev {task.fields[dev]}"),
            TextColumn("{task.fields[speed]} sentences/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, **self._fields)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def step(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def figures(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Show the training figures of a step."""
        loss, speed = f"{metrics['loss']:.4f}", f"{metrics['sentences_per_s']:,.0f}"
        self._bar.update(self._task, loss=loss, speed=speed)
        if not self.console.is_terminal:
            wait = 1000 * metrics["data_wait_s"]
            self.say(
                f"step {step}/{self.total_steps}  loss {loss}  {speed} sentences/s  "
                f"{wait:.1f} ms a step waiting for data  {duration(seconds_left)} left"
            )

    def dev(self, score: float) -> None:
        """Show a dev score in the bar."""
        self._bar.update(self._task, dev=f"{score:.2f}")

    def score(self, step: int, words: str, score: float, best: bool) -> None:
        """Show a dev score, called `words`; said on a line of its own too, so that it stays on the screen."""
        self.dev(score)
        note = "before training" if step == 0 else "best so far" if best else ""
        self.say(f"step {step:>6}  {words} {score:6.2f}  {note}".rstrip())


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


LITTLE = 0.1  # change of a learned temperature's logarithm that a run says will hardly be one


def describe(run: Run) -> list[str]:
    """Lines that say what is about to be trained."""
    config, encoder, mesh = run.config, run.encoder.architecture, run.program.mesh
    count = sum(x.size for x in jax.tree.leaves(run.program.shapes.params))
    layout = run.batches.layout
    groups = layout.batch_size // layout.group_size
    rows = ", ".join(map(written, run.batches.row_counts))
    return [
        f"model: {encoder.family}, {encoder.num_hidden_layers} layers, width {encoder.hidden_size}, {count:,} "
        f"parameters, {config.model.init} weights; pooler: {config.model.train_pooler} in training, "
        f"{config.model.pooler} at test time",
        f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh data {mesh.shape['data']} x fsdp "
        f"{mesh.shape['fsdp']}; compute in {config.model.dtype}",
        f"batch: {layout.batch_size} examples = {groups} groups of {layout.group_size}, in rows of {layout.row_length} "
        f"tokens; row counts in use: {rows} (each compiled once)",
        f"steps: {run.total_steps:,} of {run.batches.steps_per_epoch:,} an epoch; {run.batches.dropped:,} examples "
        "left out of each epoch's last, short batch",
        *run.corpus.report.lines(),
        *_studies(run),
        *_masking(run),
        *_notes(run),
    ]


def _studies(run: Run) -> list[str]:
    """What differs from plain SimCSE."""
    config, lines = run.config, []
    data, model, objective = config.data, config.model, config.objective
    if objective.loss == "none":
        return []
    if data.positive in CHANGES or data.positive == "mask":
        share = f"{data.rate:.0%}" if data.rate or data.positive == "repetition" else "one word"
        most = "at most " if data.positive == "repetition" else ""
        lines.append(f"positives: changed copies ({data.positive}), {most}{share} of each")
    if data.positive == "next_sentence":
        count = "the next sentence" if data.window == 1 else f"one of the next {data.window} sentences"
        lines.append(f"positives: {count} of the document; {len(run.batches.examples):,} sentences have one")
    if model.same_mask:
        lines.append("dropout: the same mask for both views")
    if model.cutoff:
        lines.append(f"cutoff: {model.cutoff}, {model.cutoff_rate:.0%} of the input embeddings")
    if model.second_encoder != "none":
        what = (
            "parameters of its own" if model.second_encoder == "copy" else f"follows by {1 - model.momentum:g} a step"
        )
        queue = f"; a queue of {objective.queue:,} negatives" if objective.queue else ""
        lines.append(f"second encoder, of all but the anchors: {what}{queue}")
    details = [
        objective.loss if objective.loss != "info_nce" else "",
        "of products" if objective.similarity == "dot" else "",
        "both ways" if objective.symmetric else "",
        "with a learned temperature" if objective.learned_temperature else "",
        f"mean over widths {objective.widths}" if objective.widths else "",
    ]
    if any(details):
        lines.append(f"loss: {', '.join(detail for detail in details if detail)}")
    return lines


def _masking(run: Run) -> list[str]:
    mlm = run.config.mlm
    if not mlm.weight:
        return []
    what = (
        "alone" if run.config.objective.loss == "none" else f"beside the contrastive loss, with weight {mlm.weight:g}"
    )
    units = "words" if mlm.whole_word else "tokens"
    return [f"masked language modelling: {what}; {mlm.rate:.0%} of the {units} of each sentence"]


def _notes(run: Run) -> list[str]:
    """What is allowed and rarely meant."""
    notes, warmup, layout = [], run.config.optimizer.warmup_steps, run.batches.layout
    if warmup >= run.total_steps:
        notes.append(f"note: the {run.total_steps} steps end within optimizer.warmup_steps = {warmup}")
    objective = run.config.objective
    rate = objective.learning_rate or run.config.optimizer.learning_rate
    if objective.learned_temperature and rate * run.total_steps / 2 < LITTLE:
        notes.append(
            f"note: at a learning rate of {rate:g} the temperature changes by less than {math.expm1(LITTLE):.0%} in "
            f"{run.total_steps} steps; a larger --config.objective.learning_rate is for it alone"
        )
    if run.dev is None:
        notes.append(
            "note: no dev pairs, so the last checkpoint counts as the best; --config.eval.data=sts-dev.csv (score, "
            "sentence, sentence) scores the run as it goes"
        )
    share = layout.batch_size // run.program.mesh.size
    if layout.group_size < min(share, LARGEST_GROUP) / 4:
        notes.append(
            f"note: {share} examples a device divide into groups of {layout.group_size} only, which is slow; a "
            f"multiple of {LARGEST_GROUP} is best"
        )
    return notes

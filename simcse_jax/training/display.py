"""Print what a run is, how it goes, how it ended, and what to do next."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simcse_jax.config.compare import differences
from simcse_jax.config.layout import largest_group
from simcse_jax.config.schema import defaults
from simcse_jax.data.batches import format_rows
from simcse_jax.data.mixture import MixedOrder
from simcse_jax.data.positives import POSITIVES
from simcse_jax.data.prompts import of_columns, parse_prompts
from simcse_jax.encoder.products import precision
from simcse_jax.model_folder.card import simcse_recipe
from simcse_jax.runs.metrics import OF_SOURCE
from simcse_jax.system.notebook_bar import NotebookBar
from simcse_jax.system.object_store import is_address, shown_path
from simcse_jax.system.progress import Heartbeat, duration, in_notebook
from simcse_jax.training.held_out import judging_flag

if TYPE_CHECKING:
    from simcse_jax.config.schema import Config
    from simcse_jax.data.corpus import Corpus
    from simcse_jax.training.loop import Outcome
    from simcse_jax.training.run import Run

SMALL_CHANGE = 0.1  # of the logarithm of a learned temperature, in a whole run: worth a note


class Display:
    """Show a bar with loss, dev score, sentences/s and time left; in a log, a line for each step that is logged."""

    def __init__(
        self,
        total_steps: int,
        console: Console | None = None,
        quiet: bool = False,
        named: Callable[[str], str] = str,
    ):
        """quiet: show nothing, as one process of a run is enough to show it. named: changes lines that are shown."""
        self._named = named
        self.console = console or Console(soft_wrap=True, highlight=False, quiet=quiet, force_jupyter=False)
        self.total_steps = total_steps
        self._doing = "training"
        self._step = 0
        self._bar: Any = NotebookBar() if in_notebook() else self._terminal_bar()
        fields: dict[str, Any] = {"loss": "-", "dev": "-", "speed": "-", "left": "-"}
        self._task = self._bar.add_task("training", total=total_steps, **fields)
        log = Heartbeat(lambda: f"step {self._step}/{self.total_steps}  {self._doing} ...", self.say)
        self._has_bar = not quiet and (self.console.is_terminal or in_notebook())
        self._shown = self._bar if self._has_bar else log

    def _terminal_bar(self) -> Progress:
        return Progress(
            BarColumn(bar_width=12),  # the line has to fit 80 columns
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  dev {task.fields[dev]}  {task.fields[speed]} sentences/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
        )

    def __enter__(self) -> Display:
        self._shown.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.__exit__(None, None, None)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        Heartbeat.beat()
        try:
            self.console.print(self._named(text), markup=False)
        except BrokenPipeError:
            raise
        except OSError:  # a log on a full disk is no reason to stop
            pass

    @contextmanager
    def while_doing(self, what: str) -> Iterator[None]:
        """Name the current work for the lines of a log in which nothing else is printed."""
        self._doing, before = what, self._doing
        yield
        self._doing = before

    def step(self, step: int) -> None:
        """Move the bar."""
        self._step = step
        self._bar.update(self._task, completed=step)

    def metrics(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Show the training metrics of a step."""
        loss, speed = f"{metrics['loss']:.4f}", f"{metrics['sentences_per_s']:,.0f}"
        self._bar.update(self._task, loss=loss, speed=speed, left=duration(seconds_left))
        if not self._has_bar:
            wait = 1000 * metrics["data_wait_s"]
            each = [f"{name.removeprefix(OF_SOURCE)} {metrics[name]:.4f}" for name in metrics if OF_SOURCE in name]
            sources = f" ({', '.join(each)})" if each else ""
            self.say(
                f"step {step}/{self.total_steps}  loss {loss}{sources}  {speed} sentences/s  "
                f"{wait:.1f} ms a step waiting for data  {duration(seconds_left)} left"
            )

    def dev(self, score: float) -> None:
        """Show a dev score in the bar."""
        self._bar.update(self._task, dev=f"{score:.2f}")

    def score(self, step: int, words: str, score: float, best: bool, parts: str = "") -> None:
        """Show a dev score in the bar and on a line of its own, which stays; parts: those that it is the mean of."""
        self.dev(score)
        of = f"({parts})" if parts else ""
        note = "before training" if step == 0 else "best so far" if best else ""
        self.say("  ".join(filter(None, (f"step {step:>6}", f"{words} {score:6.2f}", of, note))))


def describe(run: Run) -> list[str]:
    """Return lines that say what is about to be trained."""
    config, encoder, mesh = run.config, run.encoder.architecture, run.program.mesh
    layout = run.batches.layout
    groups = layout.batch_size // layout.group_size
    rows = " or ".join(map(format_rows, run.batches.row_counts))
    changed = ", ".join(f"{key} = {new!r}" for key, (_, new) in differences(defaults(), config.flat()).items())
    teacher = run.batches.vectors
    return [
        f"model: {encoder.family}, {encoder.num_hidden_layers} layers, width {encoder.hidden_size}, "
        f"{_parameters(run)}; embedding: {config.model.train_pooler} in training, {config.model.pooler} at test time",
        f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh data {mesh.shape['data']} x fsdp "
        f"{mesh.shape['fsdp']}; compute in {precision(config.model.dtype, run.encoder.products)}",
        f"batch: {layout.batch_size} examples, in {groups} group{'s' * (groups > 1)} of {layout.group_size}; a group "
        f"fills {rows} rows of {layout.row_length} tokens",
        _length(run),
        *_data(run),
        *([f"teacher: {config.teacher.name}, {len(teacher):,} texts, width {teacher.width}"] if teacher else []),
        f"settings other than the defaults: {changed or 'none'}",
        *_notes(run),
    ]


def _parameters(run: Run) -> str:
    """Return the number of parameters in words, and with adapters how many of them are trained."""
    trained, frozen = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (run.program.shapes.params, run.frozen))
    if not frozen:
        return f"{trained:,} parameters"
    return f"training {trained:,} of {trained + frozen:,} parameters (LoRA, rank {run.config.model.lora})"


def _data(run: Run) -> list[str]:
    """Return lines on the data; of a mixture, on each source and its share."""
    order, lines = run.batches.order, []
    if not isinstance(order, MixedOrder):
        return [*run.corpus.report.lines(), *_prompts(run.config.data.prompts, run.corpus)]
    for name, corpus in run.corpora.items():
        share, rows = order.shares[name], order.rows[name]
        passes = share * run.total_steps * order.batch_size / rows
        shown = f"{passes:,.0f}" if passes >= 10 else f"{passes:.2g}"
        what = f"{'batches' if order.by_batch else 'examples'}, {shown} passes over its {rows:,} examples"
        part = run.config.by_source[name]
        how = f"positives: {part.data.positive}, loss: {part.objective.loss}"
        lines += [f"source {name}: {share:.1%} of {what}; {how}", *corpus.report.lines()]
        lines += _prompts(part.data.prompts, corpus)
    return lines


def _prompts(value: str, corpus: Corpus) -> list[str]:
    """Return a line on what is put before the texts of each column, if anything is."""
    each = zip(corpus.columns, of_columns(parse_prompts(value), corpus.columns), strict=False)
    shown = ", ".join(f"{prompt!r} before {column}" for column, prompt in each)
    return [f"prompts: {shown}"] if shown else []


def _length(run: Run) -> str:
    """Return a line on the number of steps, and the share of the data that they see."""
    steps, epoch, size = run.total_steps, run.batches.steps_per_epoch, run.batches.layout.batch_size
    examples = len(run.batches.examples)
    if run.config.sources:
        return f"steps: {steps:,}, {steps / epoch:.3g} epochs of {epoch:,} steps (the examples of all sources together)"
    if steps < epoch:
        return (
            f"steps: {steps:,}, which see {steps * size:,} of {examples:,} examples ({steps * size / examples:.0%}); "
            "--config.train.epochs=1 sees all of them once"
        )
    dropped = f"; each leaves out {run.batches.dropped:,} examples, others each time" if run.batches.dropped else ""
    epochs = "one epoch" if steps == epoch else f"{steps / epoch:.3g} epochs of {epoch:,}"
    return f"steps: {steps:,}, {epochs}{dropped}"


def _notes(run: Run) -> list[str]:
    """Return notes on settings that are allowed and rarely meant."""
    notes, warmup, layout = [], run.config.optimizer.warmup_steps, run.batches.layout
    if warmup >= run.total_steps:
        notes.append(f"note: the {run.total_steps} steps end within optimizer.warmup_steps = {warmup}")
    objective = run.config.objective
    rate = objective.learning_rate or run.config.optimizer.learning_rate
    if objective.learned_temperature and rate * run.total_steps / 2 < SMALL_CHANGE:
        notes.append(
            f"note: at a learning rate of {rate:g} the temperature changes by less than "
            f"{math.expm1(SMALL_CHANGE):.0%} in {run.total_steps} steps; --config.objective.learning_rate sets a "
            "larger rate for it alone"
        )
    if objective.guide and objective.false_negatives != "fixed" and objective.false_negative_margin <= 0:
        notes += [
            f"note: {f'source {name}: ' if name else ''}the teacher has one vector for a text and its positive, so "
            f"objective.guide leaves out nothing with objective.false_negative_margin = "
            f"{objective.false_negative_margin:g}; 0.1 leaves out what it gives a cosine above 0.9"
            for name, part in run.config.by_source.items()
            if (positive := POSITIVES.get(part.data.positive)) and positive.is_copy
        ]
    if run.dev is None:
        notes.append(
            "note: no dev data, so the last checkpoint counts as the best; --config.eval.data=sts-dev.csv (score, "
            "sentence, sentence), or retrieval:DIR, scores the run as it goes"
        )
    else:
        given = run.config.flat()
        notes += [f"note: {key} = {given[key]!r}: {note}" for key, note in run.dev.notes.items() if note]
    if run.left_out:
        notes.append(
            f"note: {', '.join(run.left_out)} of {run.config.model.name} are no part of training, nor of the model "
            "that it makes: it starts from the encoder alone"
        )
    share = layout.batch_size // run.program.mesh.size
    largest = largest_group(run.config.data.max_length)
    if layout.group_size < min(share, largest) / 4:
        notes.append(
            f"note: {share} examples a device divide into groups of {layout.group_size} only, which is slow; a "
            f"multiple of {largest} is best"
        )
    return notes


def summarize(run: Run, outcome: Outcome, seconds: float) -> str:
    """Return one line on how this start of the run ended."""
    progress, score = outcome.progress, "no evaluation"
    if progress.best_step >= 0 and run.dev:
        measure = run.dev.measure
        score = f"best {measure.words} {measure.shown(progress.best_score):.2f} at step {progress.best_step}"
    counts = {"step": outcome.step - outcome.first_step, "program": outcome.shapes_compiled}
    steps, programs = (f"{n:,} {what}{'s' * (n != 1)}" for what, n in counts.items())
    return (
        f"step {outcome.step:,} of {run.total_steps:,}; this start took {steps} in {duration(seconds)} and compiled "
        f"{programs}; {score}"
    )


def conclude(run: Run, outcome: Outcome, workdir: Path | str) -> list[str]:
    """Return lines on where the model of a complete run is, and what to do next with this run's own files.

    workdir: its folder or address.
    """
    model, best = shown_path(workdir, "model"), outcome.progress.best_step
    if best == 0:
        found = (
            f"No evaluation was better than the one before training, so {model} holds the model that training started "
            f"from.\nTry another --config.optimizer.learning_rate than {run.config.optimizer.learning_rate:g}, or text "
            "more like that of the evaluation, with --workdir=ANOTHER."
        )
    elif best < 0:
        found = f"The model of the last step, {outcome.step:,}, is in {model}."
    else:
        found = f"The best model, of step {best:,}, is in {model}."
    steps = _next_steps(run.config, workdir)
    return [
        f"\n{found} What to do next:" if best else f"\n{found}\nWhat to do next:",
        *(f"  {f'{what}:':<21} {command}" for what, command in steps.items()),
        "This run is complete; --workdir=ANOTHER starts a new one.",
    ]


def _start_of(config: Config) -> str:
    """Return the flag that names the model which training started from, and a space; "" where no folder is it."""
    is_whole = config.model.init == "pretrained" and not config.model.keep_layers
    return f"--model={config.model.name}:{config.model.pooler} " if is_whole else ""


def _prompt_flag(config: Config, source: str) -> str:
    """Return the flag that chooses a source's prompts in `evaluate`; "" where they are the recipe's."""
    prompts = config.by_source[source].data.prompts
    if prompts == config.data.prompts:
        return ""
    return f"--prompt_name={source}" if prompts else "--prompt="


def _next_steps(config: Config, workdir: Path | str) -> dict[str, str]:
    """Return commands by their purpose; they work for this run when they are copied."""
    here = Path(sys.executable)
    python = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else "python"
    model, files = shown_path(workdir, "model"), config.data.files
    demo, pretrained = files.startswith("demo:"), config.objective.loss == "none" and not config.teacher.name
    text = "sentences.txt" if demo else files
    steps = {}
    if pretrained:
        recipe = simcse_recipe(config.model.init)
        steps["train SimCSE from it"] = (
            f"{python} -m simcse_jax.train --config={recipe} --config.model.name={model} --config.data.files={text}"
        )
    steps["use it from Python"] = f'SimCSE("{model}").encode(["a text"])  # from simcse_jax import SimCSE'
    if not is_address(model):
        steps["use it from PyTorch"] = f'SentenceTransformer("{model}").encode(["a text"])'
    usual = "--pairs=demo:test" if config.eval.data == "demo:dev" else "--data=senteval  # or --pairs=graded.tsv"
    by_prompt: dict[str, list[str]] = {"": []}
    sources = [(source.dev, _prompt_flag(config, source.name)) for source in config.sources if source.weight]
    for data, prompt in [(config.eval.data, ""), *sources]:
        if flag := judging_flag(data, workdir):
            by_prompt.setdefault(prompt, []).append(flag)
    own_tasks = " ".join(by_prompt.pop(""))
    start = _start_of(config) if own_tasks else ""  # without labels, the difference from the start is what tells
    steps["judge it"] = f"{python} -m simcse_jax.evaluate {start}--model={workdir} {own_tasks or usual}"
    for prompt, tasks in by_prompt.items():
        steps[f"and with {prompt}"] = f"{python} -m simcse_jax.evaluate --model={workdir} {prompt} {' '.join(tasks)}"
    if not demo and files.endswith(".txt") and "," not in files:
        steps["search your text"] = f'{python} -m simcse_jax.search --model={workdir} --corpus={files} --query="a text"'
    steps["look at all curves"] = (
        f"tensorboard --logdir={shown_path(workdir, 'tensorboard')}  # pip install tensorboard"
    )
    mini = Path(config.model.name or "none").with_name("mini")  # beside the model that the demo starts from
    if demo and mini.is_dir():
        steps["use a better one"] = f"{python} -m simcse_jax.search --model={mini} --corpus=demo:sentences"
    if demo and not pretrained:
        steps["train on your text"] = (
            f"{python} -m simcse_jax.train --config=configs/small.py --config.data.files=sentences.txt"
        )
    return steps

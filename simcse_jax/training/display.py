"""What a run prints: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


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

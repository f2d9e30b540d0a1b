"""Show the progress of a run in a notebook, as one line of HTML that changes in its place."""

from __future__ import annotations

import html
import importlib
import time
from typing import Any

EVERY_S = 0.25  # seconds between two changes: each is a message to the browser


class NotebookBar:
    """Stand for the `rich.progress.Progress` of a terminal, of which a run uses the methods below."""

    def __init__(self) -> None:
        self._shown: Any = None  # the handle of what IPython displays
        self._changed_at = 0.0
        self._what, self._total, self._fields = "", 0, dict[str, Any]()
        self._completed = 0

    def __enter__(self) -> NotebookBar:
        # It is there in every notebook, and nowhere else needed.
        self._shown = importlib.import_module("IPython.display").display(self, display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.update(self)

    def add_task(self, what: str, *, total: int, **fields: Any) -> int:
        """Name the work and its number of steps; fields: loss, dev, speed, left."""
        self._what, self._total, self._fields = what, total, fields
        return 0

    def update(self, _task: int, *, completed: int | None = None, **fields: Any) -> None:
        """Change the step or the fields, and what is shown unless it changed a moment ago."""
        self._completed = self._completed if completed is None else completed
        self._fields |= fields
        if self._shown is not None and time.monotonic() > self._changed_at + EVERY_S:
            self._changed_at = time.monotonic()
            self._shown.update(self)

    def __repr__(self) -> str:
        return f"{self._what}: {self._completed}/{self._total}"

    def _repr_html_(self) -> str:
        text = "loss {loss}  dev {dev}  {speed} sentences/s  {left} left".format(**self._fields)
        return (
            f'<div style="font-family: monospace; white-space: pre">'
            f'<progress value="{self._completed}" max="{self._total}"></progress> '
            f"{self._completed}/{self._total}  {html.escape(text)}</div>"
        )

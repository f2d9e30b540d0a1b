"""Where a run's figures go: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_jax.system.whole_file import write_whole_text

# Significant digits of a figure: what the numbers hold.
FLOAT32_DIGITS, FLOAT64_DIGITS = 7, 16


class MetricsWriter:
    """Appends figures to `metrics.jsonl`, one object a line with its `step`, and to `tensorboard/`."""

    def __init__(self, workdir: Path, resumed_step: int | None, digits: int = FLOAT32_DIGITS):
        """resumed_step: figures of later steps are dropped, as these are about to run again; None = a new run."""
        self._digits = digits
        from tensorboardX import SummaryWriter  # imports PyTorch where there is one: seconds, and only writing needs it

        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        _keep_until(path, -1 if resumed_step is None else resumed_step)
        if resumed_step is None:
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)  # of a run that never came to a checkpoint
        self._file = path.open("a", encoding="utf-8")
        purge = None if resumed_step is None else resumed_step + 1
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge, flush_secs=10)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one line, and one TensorBoard scalar a figure."""
        line: dict[str, Any] = {"step": step}
        line.update({name: _rounded(value, self._digits) for name, value in figures.items()})
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoMetrics:
    """The writer of a process whose figures another one writes."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        pass

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's metrics.jsonl; a line cut by a kill is left out."""
    path = workdir / "metrics.jsonl"
    return _parsed(path.read_text(encoding="utf-8")) if path.exists() else []


def _parsed(text: str) -> list[dict[str, Any]]:
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _keep_until(path: Path, step: int) -> None:
    """Rewrite the file without the lines of later steps, whole or not at all."""
    if not path.exists():
        return
    kept = [line for line in _parsed(path.read_text(encoding="utf-8")) if line["step"] <= step]
    write_whole_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _rounded(value: float, digits: int) -> float | None:
    """So many significant digits; null for what JSON has no word for."""
    return float(f"{float(value):.{digits}g}") if math.isfinite(value) else None

"""metrics.jsonl holds each step once, whatever happened to the run."""

import json
from pathlib import Path

from simcse_jax.training.metrics import MetricsWriter, read_metrics


def test_later_and_cut_lines_are_dropped_on_resuming(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, None) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": step / 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    with MetricsWriter(tmp_path, 3) as metrics:
        metrics.write(4, {"loss": 1.0, "dev/spearman": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines == read_metrics(tmp_path)
    assert lines[-1] == {"step": 4, "loss": 1.0, "dev/spearman": None}


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricsWriter(tmp_path, None) as metrics:
            metrics.write(1, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1

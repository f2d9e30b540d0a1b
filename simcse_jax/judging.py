"""Judge models: run each through a suite of tasks, compare them, and write the results."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax import __version__
from simcse_jax.embedding_model import EmbeddingModel, open_model
from simcse_jax.evaluation.compare import compare, group_runs
from simcse_jax.evaluation.report.page import write_report
from simcse_jax.evaluation.results import ModelResult, Results, Score, Space
from simcse_jax.evaluation.scores_json import write_scores
from simcse_jax.evaluation.suite import GEOMETRY, TaskSuite
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.whole_file import writing
from simcse_jax.training.held_out import judged_task
from simcse_jax.training.metrics import read_metrics

Say = Callable[[str], None]


def judge_models(models: Iterable[EmbeddingModel], suite: TaskSuite, say: Say = lambda _: None) -> Results:
    """Return the results of these models. Each is released once it is judged, so that one at a time is in memory.

    say: called with lines on the progress. What goes wrong is a failure of one task of one model, and the others go on.
    """
    waiting = list(models)
    del models
    for model in waiting:
        if model.pooler != model.own_pooler:
            own = f"it was made for {model.own_pooler}" if model.own_pooler else "its folder names no known pooler"
            also = f"; its modules {', '.join(model.left_out)} are left out" if model.left_out else ""
            say(f"NOTE: {model.name} is judged with the pooler {model.pooler}, as asked; {own}{also}.")
    judged, shown = [], set()
    while waiting:
        model = waiting.pop(0)  # no other reference keeps its weights
        say(f"judging {model.name} ({model.pooler}) ...")
        result = _judge(model, suite, say)
        if model.workdir and model.workdir not in shown:  # a run that is judged with two poolers has its curves once
            result.curves = read_metrics(model.workdir)
            shown.add(model.workdir)
        judged.append(result)
    entries = group_runs(judged)
    differences, best = compare(entries, suite.averages)
    return Results(
        entries=entries,
        averages=suite.averages,
        differences=differences,
        best=best,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
    )


def _judge(model: EmbeddingModel, suite: TaskSuite, say: Say) -> ModelResult:
    """Run one model through the suite."""
    result = ModelResult(model.name, {"model": model.name}, asked_pooler=model.pooler != model.own_pooler)
    try:
        result.protocol |= protocol(model)
        result.recipe = model.recipe
    except Exception as error:  # noqa: BLE001 (weights that do not load fail every task)
        result.failures |= dict.fromkeys((*suite.pairs, *suite.own, *suite.tasks), _reason(error))
        return result

    def encode(texts: Sequence[str]) -> np.ndarray:
        with progress_bar(len(texts), suite.progress) as bar:
            # As pooled: cosines do not depend on the length, and SentEval's classifiers take vectors as they are.
            return model.encode(texts, bar.update, normalize=False)

    def space_before() -> Space | None:
        before = model.before_training()
        return suite.measure_space(before[0], weights=before[1]) if before else None

    def attempt(task: str, find: Callable[[], Score | Space | None]) -> Any:
        started = time.monotonic()
        try:
            found = find()
        except Exception as error:  # noqa: BLE001 (one task, say out of memory, must not lose hours of others)
            result.failures[task] = _reason(error)
            found, outcome = None, "failed"
        else:
            outcome = f"{found.value:.2f}" if isinstance(found, Score) else "measured" if found else ""
        if outcome:
            say(f"  {task}: {outcome} ({time.monotonic() - started:.0f} s)")
        return found

    for task in suite.scored:
        if score := attempt(task, lambda task=task: suite.score(encode, task)):
            result.scores[task] = score
    if GEOMETRY in suite.tasks:
        result.space = attempt(GEOMETRY, lambda: suite.measure_space(encode))
        if result.space:
            result.space_before = attempt(f"{GEOMETRY} before training", space_before)
    return result


def _reason(error: Exception) -> str:
    """Return a UserError's message, or type and message of another error."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def protocol(model: EmbeddingModel) -> dict[str, Any]:
    """Return what is recorded with each score: how the vectors were made, and from which weights."""
    asked = model.pooler != model.own_pooler
    own = model.own_pooler or "none that we have"
    return {
        "model": model.name,
        "kind": model.kind,
        "fingerprint": model.fingerprint,
        "pooler": model.pooler,
        "pooler from": f"asked for; the model's own: {own}" if asked else "the model",
        "precision": model.precision,
        "truncation": f"{model.max_length} tokens",
        "devices": model.devices,
    }


def write_results(results: Results, out: Path) -> list[Path]:
    """Write scores.json, report.html and its pictures into `out`; return the paths of the first two."""
    require_writable(out)
    return [write_scores(results, out), write_report(results, out, scores_file=True)]


def report_run(workdir: Path, data: str) -> str:
    """Write report.html and its pictures into a run's folder; return what the report holds, in words.

    data: the run's eval.data, which its best model is judged on; "" shows the curves alone. A task that fails is
    listed in the report. Geometry is that of graded pairs, where these are the data.
    """
    suite = TaskSuite((), own=(judged_task(data, workdir),) if data else ())
    if suite.graded:
        suite = dataclasses.replace(suite, tasks=(GEOMETRY,))
    results = judge_models([open_model(str(workdir))], suite)
    write_report(results, workdir)
    [result] = results.models
    parts = ["training curves"] if result.curves else []
    parts += [f"score on {data}"] if result.scores else []
    parts += ["geometry"] if result.space else []
    parts += [f"why {', '.join(result.failures)} failed"] if result.failures else []
    return ", ".join(parts)


def require_writable(out: Path) -> None:
    """Make the folder if need be; raise UserError when it cannot be written."""
    probe = out / ".writable"
    with writing(out, "Give another folder.", f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()

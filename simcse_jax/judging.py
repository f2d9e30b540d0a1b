"""Judge models: run each through an exam, compare them, and write the results."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax import __version__
from simcse_jax.embedding_model import EmbeddingModel, open_model
from simcse_jax.evaluation.compare import compare, group_runs
from simcse_jax.evaluation.judge import GEOMETRY, Exam, Subject, judge
from simcse_jax.evaluation.report.page import write_report
from simcse_jax.evaluation.results import OWN, Results
from simcse_jax.evaluation.scores_json import write_scores
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.whole_file import writing
from simcse_jax.training.metrics import read_metrics


def judge_models(models: Iterable[EmbeddingModel], exam: Exam, say: Callable[[str], None] = lambda _: None) -> Results:
    """Return the results of these models. Each is released once it is judged, so that one at a time is in memory.

    say: called with lines on the progress. What goes wrong is a failure of one task of one model; see `judge`.
    """
    waiting = list(models)
    del models
    for model in waiting:
        if model.pooler != model.own_pooler:
            own = f"it was made for {model.own_pooler}" if model.own_pooler else "its folder names no known pooler"
            say(f"NOTE: {model.name} is judged with the pooler {model.pooler}, as asked; {own}.")
    verdicts, shown = [], set()
    while waiting:
        model = waiting.pop(0)  # no other reference keeps its weights
        say(f"judging {model.name} ({model.pooler}) ...")
        first = model.workdir not in shown  # a run that is judged with two poolers has its curves once
        shown.add(model.workdir)
        verdicts.append(judge(_subject(model, exam.progress, first), exam, say))
    entries = group_runs(verdicts)
    differences, best = compare(entries, exam.averages)
    return Results(
        entries=entries,
        averages=exam.averages,
        differences=differences,
        best=best,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
    )


def _subject(model: EmbeddingModel, progress: bool, with_curves: bool) -> Subject:
    def encode(texts: Sequence[str]) -> np.ndarray:
        with progress_bar(len(texts), progress) as bar:
            # As pooled: cosines do not depend on the length, and SentEval's classifiers take vectors as they are.
            return model.encode(texts, bar.update, normalize=False)

    return Subject(
        name=model.name,
        encode=encode,
        protocol=partial(protocol, model),
        before=model.before_training,
        curves=read_metrics(model.workdir) if model.workdir and with_curves else [],
        recipe=model.recipe,
    )


def protocol(model: EmbeddingModel) -> dict[str, Any]:
    """Return what is recorded with each score: how the vectors were made, and from which weights."""
    asked = model.pooler != model.own_pooler
    own = model.own_pooler or "none that we have"
    return {
        "model": model.name,
        "kind": model.kind,
        "fingerprint": model.fingerprint,
        "pooler": model.pooler,
        "pooler from": f"asked for; the model's own: {own}" if asked else OWN,
        "precision": model.dtype,
        "truncation": f"{model.max_length} tokens",
        "devices": model.devices,
    }


def write_results(results: Results, out: Path) -> list[Path]:
    """Write scores.json, report.html and its pictures into `out`; return the paths of the first two."""
    require_writable(out)
    return [write_scores(results, out), write_report(results, out, scores_file=True)]


def report_run(workdir: Path, data: str) -> str:
    """Write report.html and its pictures into a run's folder; return what the report holds, in words.

    data: the run's eval.data, whose pairs its best model is judged on; "" shows the curves alone. A task that fails
    is listed in the report.
    """
    exam = Exam((GEOMETRY,), pairs=(data,)) if data else Exam(())
    results = judge_models([open_model(str(workdir))], exam)
    write_report(results, workdir)
    [verdict] = results.verdicts
    parts = ["training curves"] if verdict.curves else []
    parts += [f"score on {data}"] if verdict.scores else []
    parts += ["geometry"] if verdict.space else []
    parts += [f"why {', '.join(verdict.failures)} failed"] if verdict.failures else []
    return ", ".join(parts)


def require_writable(out: Path) -> None:
    """Make the folder if need be; raise UserError when it cannot be written."""
    probe = out / ".writable"
    with writing(out, "Give another folder.", f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()

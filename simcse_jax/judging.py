"""Models to results: judges each, compares them, and writes what was found."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from simcse_jax import __version__
from simcse_jax.embedding_model import EmbeddingModel, open_model
from simcse_jax.evaluation.compare import differences, grouped
from simcse_jax.evaluation.judge import GEOMETRY, Exam, Subject, judge
from simcse_jax.evaluation.record import write_scores
from simcse_jax.evaluation.report import write_report
from simcse_jax.evaluation.results import Results
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.training.metrics import read_metrics


def judge_models(models: Iterable[EmbeddingModel], exam: Exam, say: Callable[[str], None] = lambda _: None) -> Results:
    """The results of these models, each let go once it is judged. say: takes lines on what is going on.

    What goes wrong is a failure of one task of one model: see `evaluation.judge.judge`.
    """
    waiting = list(models)
    del models
    for model in waiting:
        if model.pooler != model.own_pooler:
            own = (
                f"it was made for {model.own_pooler}" if model.own_pooler else "its folder names no pooler that we have"
            )
            say(f"NOTE: {model.name} is judged with the pooler {model.pooler}, as asked; {own}.")
    verdicts, shown = [], set()
    while waiting:
        model = waiting.pop(0)  # its weights go with it
        say(f"judging {model.name} ({model.pooler}) ...")
        first = model.workdir not in shown  # a run that is there with two poolers has its curves once
        shown.add(model.workdir)
        verdicts.append(judge(_subject(model, exam.progress, first), exam, say))
    entries = grouped(verdicts)
    return Results(
        entries=entries,
        averages=exam.averages,
        differences=differences(entries, exam.averages),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
    )


def _subject(model: EmbeddingModel, progress: bool, with_curves: bool) -> Subject:
    def encode(texts: Sequence[str]) -> np.ndarray:
        with progress_bar(len(texts), progress) as bar:
            # As pooled: cosines do not see lengths, and SentEval's classifiers were always fed with them.
            return model.encode(texts, bar.update, normalize=False)

    return Subject(
        name=model.name,
        encode=encode,
        protocol=model.protocol,
        before=model.before_training,
        curves=read_metrics(model.workdir) if model.workdir and with_curves else [],
        recipe=model.recipe,
    )


def write_results(results: Results, out: Path) -> list[Path]:
    """Write scores.json, report.html and its pictures into `out`, and return the paths of the first two."""
    require_writable(out)
    return [write_scores(results, out), write_report(results, out)]


def report_run(workdir: Path, data: str) -> None:
    """Write report.html and its pictures into a run's folder: curves, and its best model on its dev pairs.

    data: the run's eval.data; "" = curves alone. What fails stands in the report.
    """
    exam = Exam((GEOMETRY,), pairs=(data,)) if data else Exam(())
    write_report(judge_models([open_model(str(workdir))], exam), workdir)


def require_writable(out: Path) -> None:
    """The folder, made if need be; UserError when it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}.\nGive another folder.") from error

"""Hold what `fit` returns: a run folder, with its metrics, its model and what to do with them."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simcse_jax.evaluation.kinds import KINDS, name_task
from simcse_jax.evaluation.results import Entry, ModelResult, Results
from simcse_jax.model_folder.run_folder import export_run, read_run_info
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.system.import_path import path_of
from simcse_jax.system.mirror import written
from simcse_jax.system.object_store import shown_path
from simcse_jax.training.held_out import judged_task

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from simcse_jax.serving.model import SimCSE


@dataclass(frozen=True)
class TrainedRun:
    """Hold a run that `fit` has trained; it keeps no parameters, and reads the run folder when asked."""

    workdir: Path
    step: int
    total_steps: int
    measure: str  # the column of `metrics` that chose the best model, such as "dev/spearman"; "" without evaluations
    best_step: int  # -1 without evaluations
    best_score: float  # the value of `measure` there
    stopped_by: int | None = None  # the number of the signal that stopped it; None when it is complete
    address: str = ""  # of a run in an object store, whose `workdir` is the folder of this process

    @property
    def metrics(self) -> pd.DataFrame:
        """Return what was logged: a row for each step with a metric, NaN where a step lacks one."""
        import pandas as pd

        rows: dict[int, dict[str, Any]] = {}
        for line in read_metrics(self.workdir):
            rows.setdefault(line["step"], {}).update(line)
        return pd.DataFrame(list(rows.values()), columns=None if rows else ["step"]).set_index("step").sort_index()

    @property
    def dev_curve(self) -> pd.Series:
        """Return the dev scores by step; empty without evaluations."""
        import pandas as pd

        metrics = self.metrics
        scores = metrics[self.measure].dropna() if self.measure in metrics else []
        return pd.Series(scores, name=self.measure or "dev", dtype=float)

    @functools.cached_property
    def model(self) -> SimCSE:
        """Return the best model so far; it is opened at the first access, and kept."""
        from simcse_jax.serving.model import SimCSE

        return SimCSE(self.workdir)

    def evaluate(self, tasks: str = "", *, data: str = "", out: str | Path | None = None, **own: Any) -> Results:
        """Judge the best model as the command `evaluate` does; print the tables, and write scores and report.

        tasks, data: as --tasks and --data. own: data of your own by their kind, as the command's flags have them:
        pairs="mine.tsv", retrieval=["a", "b"], function=my_evaluation. Without any of these, what scored the run is
        judged. out: the folder of scores.json and report.html; None for WORKDIR/evaluation.
        """
        from rich.console import Console

        from simcse_jax.embedding_model import open_model
        from simcse_jax.evaluation.terminal import print_results
        from simcse_jax.judging import judge_models, make_suite, write_results

        named = _named_tasks(own)
        if not named and not tasks and not data:
            named = _scored_by(self.workdir)
        results = judge_models([open_model(str(self.workdir))], make_suite(named, tasks, data))
        print_results(results, Console(highlight=False, soft_wrap=True, force_jupyter=False))
        with written(out or shown_path(self.address or self.workdir, "evaluation")) as folder:
            write_results(results, folder)
        return results

    def export(self, out: str | Path, **forms: Any) -> Path:
        """Write the best model as a model folder; forms: as in `export_model`. A complete run has one in `model/`."""
        with written(out) as folder:
            export_run(self.workdir, folder, **forms)
        return Path(out)

    def figure(self) -> Figure | None:
        """Return a picture of loss, dev score and the geometry of batches against steps; None before any metric."""
        from simcse_jax.evaluation.report.pictures import training_curves

        curves = ModelResult(self.workdir.name, {}, curves=read_metrics(self.workdir))
        return training_curves(Results((Entry(self.workdir.name, (curves,)),), {}, (), "", ""))

    def __repr__(self) -> str:
        how = f"complete, {self.step} steps"
        if self.stopped_by is not None:
            how = f"stopped at step {self.step} of {self.total_steps}"
        best = f"; best {self.measure} {self.best_score:.2f} at step {self.best_step}" if self.measure else ""
        return f"TrainedRun({self.address or str(self.workdir)!r}: {how}{best})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the line of `repr`, and the curves."""
        figure = self.figure()
        if figure is None:
            return f"<p>{html.escape(repr(self))}</p>"
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=figure.dpi)
        width = round(96 * figure.get_size_inches()[0])
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        return f'<p>{html.escape(repr(self))}</p><img src="{source}" width="{width}" alt="training curves">'


def _named_tasks(own: Mapping[str, Any]) -> list[str]:
    """Return the tasks of data of one's own, which are given by their kind."""
    found = []
    for kind, given in own.items():
        if kind not in KINDS:
            raise UserError(f"evaluate({kind}=...): there is no such kind of data. Kinds: {', '.join(KINDS)}.")
        sources = given if isinstance(given, list | tuple) else [given]
        names = [name_task(kind, path_of(source) if callable(source) else str(source)) for source in sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"evaluate({kind}=...): {twice} is named twice. Name it once, and functions differently.")
        found += names
    return found


def _scored_by(workdir: Path) -> list[str]:
    """Return the task that scored a run while it trained; UserError where there was none."""
    info = read_run_info(workdir)
    data = info["recipe"]["eval.data"] if info else ""
    if not data:
        raise UserError('This run was not scored (eval.data). Say on what: run.evaluate(pairs="mine.tsv").')
    return [judged_task(data, workdir)]

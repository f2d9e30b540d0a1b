"""Turn a recipe into a trained, exported and reported run: what the command `train` and the function `fit` share."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from simcse_jax.config.resolve import resolve
from simcse_jax.config.schema import Config
from simcse_jax.hosts.agreement import fail_together, is_first, processes
from simcse_jax.runs.branch import Branch, start_branch
from simcse_jax.runs.stored_run import run_folder
from simcse_jax.runs.trackers import Trackers, open_trackers, require_trackers
from simcse_jax.system.compiled import keep_compiled
from simcse_jax.system.devices import start_devices
from simcse_jax.system.host_memory import keep_freed_memory
from simcse_jax.system.object_store import shown_path
from simcse_jax.system.progress import while_doing
from simcse_jax.training.display import conclude, describe, summarize
from simcse_jax.training.loop import Outcome, train
from simcse_jax.training.run import Run, prepare


def configure(recipe: Any, overridden: Collection[str]) -> Config:
    """Start the devices, and return the checked config of a run on them; recipe, overridden: as for `resolve`."""
    keep_freed_memory()
    start_devices()
    keep_compiled()
    with fail_together():
        x64 = jax.dtypes.canonicalize_dtype("float64") == "float64"
        return resolve(recipe, overridden, jax.device_count(), x64, processes())


def complete(
    config: Config, workdir: Path | str, profile: bool = False, branch: Branch | None = None, again: str = "command"
) -> tuple[Run, Outcome, Path]:
    """Prepare the run, train it or what is left of it, export its best model and write its report.

    workdir: the run folder, or an address in an object store. Returns the local folder of the run too.

    Prints what is about to happen, how it goes, and what to do next. A signal ends the training early; nothing is
    exported then. branch: the state of another run from which a new folder goes on. again: what resumes it, in words.
    """
    with fail_together():
        require_trackers(config)
    with run_folder(workdir, functools.partial(print, flush=True)) as (workdir, stored):
        if branch:
            start_branch(branch, workdir, config)
            if stored:
                stored.share_checkpoints()
        with while_doing("preparing the run: its model, its data, its tokenizer") if is_first() else nullcontext():
            run = prepare(config, workdir, stored)
        if is_first():
            print("\n".join(describe(run)), flush=True)
        started = time.monotonic()
        with open_trackers(config, workdir) if is_first() else nullcontext() as trackers:
            outcome = train(run, workdir, profile, trackers, stored)
            if is_first():
                print(summarize(run, outcome, time.monotonic() - started))
            if outcome.signal is None:
                with fail_together():  # the others wait for the export: a launcher takes the end of one for the run's
                    if is_first():
                        _finish(run, outcome, workdir, trackers, stored.address if stored else workdir)
            elif is_first():
                name = signal.Signals(outcome.signal).name
                print(f"stopped by {name}; the same {again} resumes from step {outcome.step}", flush=True)
            if trackers is not None:
                trackers.end = "finished" if outcome.signal is None else "stopped"
    return run, outcome, workdir


def _finish(run: Run, outcome: Outcome, workdir: Path, trackers: Trackers | None, shown: Path | str) -> None:
    """Export the best model, write the report, and say what to do next. Without a report the training is done too.

    shown: what is printed as the place of the run.
    """
    from simcse_jax.judging import report_run
    from simcse_jax.model_folder.run_folder import export_run

    with while_doing("exporting the model"):
        export_run(workdir, workdir / "model")
    with while_doing("writing the report"):
        try:
            content = report_run(workdir, run.config.eval.data)
            print(f"report: {shown_path(shown, 'report.html')} ({content})")
            if trackers is not None:
                trackers.keep(workdir / "report.html")
        except Exception as error:  # noqa: BLE001 (such as no memory left beside the training state)
            print(f"note: no report was written: {type(error).__name__}: {error}")
    print("\n".join(conclude(run, outcome, shown)), flush=True)

"""Train from Python: `run = simcse_jax.fit("small:sup", {"data.files": "pairs.csv"})`."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_jax.config.recipe import default_workdir, read_recipe
from simcse_jax.fitting.complete import complete, configure
from simcse_jax.fitting.given import PAIRS, TEXTS, as_override, in_python, save_data
from simcse_jax.fitting.trained_run import TrainedRun
from simcse_jax.runs.branch import parse_branch
from simcse_jax.system.devices import quiet_cuda_plugin, quiet_tpu_library
from simcse_jax.system.errors import UserError
from simcse_jax.system.host_memory import release_freed_memory
from simcse_jax.system.interrupts import interrupts_counted
from simcse_jax.system.object_store import is_address, place_of
from simcse_jax.training.loop import Outcome
from simcse_jax.training.run import Run


@interrupts_counted()
def fit(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    dev: Any = None,
    workdir: str | Path | None = None,
    resume_from: str | int = "",
) -> TrainedRun:
    """Train a run to its end, or to a Ctrl-C, and return it; the same call resumes a run that was stopped.

    recipe: a file, FILE or FILE:variant, or one of the package by its name, such as "small:sup". overrides: keys of the
    recipe and their values, such as {"data.files": "pairs.csv", "train.steps": 200}; objective.loss, data.positive and
    eval.data may be functions of your own (docs/own.md). data: rows to train on instead of data.files: a list of texts,
    of tuples (sentence, positive, hard negatives) or of dicts, a dict of columns, a DataFrame, an Arrow table or a
    datasets.Dataset. dev: graded pairs instead of eval.data: such rows of (score, sentence, sentence), or a function of
    your own. Rows are written into the cache, under a name that their content gives. workdir: the run folder, or its
    address in an object store, gs://BUCKET/NAME; None for runs/<recipe>, or runs/<recipe>-<variant>, as the command
    `train` has it. resume_from: go on from a kept state in a new folder, STEP or "RUN@STEP", as --resume_from.

    Raises UserError where something is wrong with the recipe, the data or the folder, before
    the first step, or where the loss is not finite in a later one.
    """
    files: dict[str, str] = {}
    try:
        given, files = _overrides(overrides or {}, data, dev)
        values, overridden = read_recipe(str(recipe), given)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as the commands have it: only errors of XLA
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, in notebooks without ipywidgets
        quiet_tpu_library()
        quiet_cuda_plugin()
        config = configure(values, overridden)
        folder = place_of(workdir) if workdir else default_workdir(str(recipe))
        branch = None
        if resume_from != "":
            branch, folder = parse_branch(str(resume_from), folder)
        run, outcome, local = complete(config, folder, branch=branch, again="call")
        return _result(local.absolute(), run, outcome, str(folder) if is_address(folder) else "")
    except UserError as error:
        error.args = (in_python(str(error), files),)
        raise error.with_traceback(None) from None  # its message says what our calls would not
    finally:
        run = outcome = None  # what it holds of data, programs and devices goes now, not with a later collection
        gc.collect()
        release_freed_memory()


def _overrides(overrides: Mapping[str, Any], data: Any, dev: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return the keys of the recipe that are set, as on the command line, and the files of data and dev, if made."""
    files: dict[str, str] = {}
    given = {key: as_override(key, value) for key, value in overrides.items()}
    for key, rows, names, what in (("data.files", data, TEXTS, "data"), ("eval.data", dev, PAIRS, "dev")):
        if rows is None:
            continue
        if key in given:
            raise UserError(f"{what}= and {key} are both given. Leave one out.")
        if what == "dev" and callable(rows):
            given[key] = as_override(key, rows)
        else:
            given[key] = files[what] = str(save_data(rows, names, what, given.get("data.cache_dir", "")))
    return given, files


def _result(workdir: Path, run: Run, outcome: Outcome, address: str) -> TrainedRun:
    best, measure, name = outcome.progress, run.dev and run.dev.measure, ""
    score = float("nan")
    if measure:
        name, score = f"dev/{measure.name}", measure.shown(best.best_score)
    return TrainedRun(workdir, outcome.step, run.total_steps, name, best.best_step, score, outcome.signal, address)

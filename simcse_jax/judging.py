"""Judge models: run each through a suite of tasks, compare them, and write the results."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcse_jax import __version__
from simcse_jax.embedding_model import EmbeddingModel, open_model
from simcse_jax.evaluation.compare import compare, group_runs
from simcse_jax.evaluation.report.page import write_report
from simcse_jax.evaluation.results import Encode, ModelResult, Results, RoleEncode, Score, Space, each_role
from simcse_jax.evaluation.scores_json import write_scores
from simcse_jax.evaluation.senteval import senteval_folder
from simcse_jax.evaluation.suite import GEOMETRY, TaskSuite, choose_tasks
from simcse_jax.runs.metrics import read_metrics
from simcse_jax.system.errors import UserError
from simcse_jax.system.progress import progress_bar
from simcse_jax.system.whole_file import writing
from simcse_jax.training.held_out import judged_task

Say = Callable[[str], None]
MOST_KEPT = 2**30  # bytes of a task's vectors that are kept where several widths share them


def make_suite(
    own: Sequence[str], tasks: str = "", data: str = "", split: str = "test", fast: bool = False
) -> TaskSuite:
    """Return the suite of the user's own tasks and of SentEval's, as `evaluate` has it, with the own data loaded.

    own: tasks of one's own, see evaluation/kinds.py. tasks: comma-separated groups and names; "" for the usual ones.
    data: SentEval's folder or archive; "" fetches it where it is needed. Raises UserError for bad input.
    """
    own_only = bool(own) and not data
    suite = TaskSuite((), None, split, own=tuple(own), fast=fast, progress=True)
    usual = (GEOMETRY if suite.graded else "") if own_only else f"sts,{GEOMETRY}"
    wanted = tasks or usual
    chosen = choose_tasks(wanted, split) if wanted else ()
    for task in own:
        suite.load(task)  # so that a wrong file is an error now, not after other tasks
    needs_none = not chosen or (set(chosen) == {GEOMETRY} and suite.graded)
    folder = None if own_only and needs_none else senteval_folder(data)
    return dataclasses.replace(suite, tasks=chosen, folder=folder)


def judge_models(
    models: Iterable[EmbeddingModel], suite: TaskSuite, say: Say = lambda _: None, widths: Sequence[int] = ()
) -> Results:
    """Return the results of these models. Each is released once it is judged, so that one at a time is in memory.

    say: called with lines on the progress. widths: each is a further row of every model, with its vectors cut to so
    many first features. What goes wrong is a failure of one task of one model, and the others go on. Raises UserError,
    before anything is judged, for a width that a model does not have.
    """
    waiting = list(models)
    del models
    for model in waiting:
        for width in widths:
            model.require_width(width)
    for model in waiting:
        if model.pooler != model.own_pooler:
            own = f"it was made for {model.own_pooler}" if model.own_pooler else "its folder names no known pooler"
            also = f"; its modules {', '.join(model.left_out)} are left out" if model.left_out else ""
            say(f"NOTE: {model.name} is judged with the pooler {model.pooler}, as asked; {own}{also}.")
    judged, shown = [], set()
    while waiting:
        model = waiting.pop(0)  # no other reference keeps its weights
        say(f"judging {model.name} ({model.pooler}) ...")
        results = _judge(model, suite, say, widths)
        if model.workdir and model.workdir not in shown:  # a run that is judged with two poolers has its curves once
            results[0].curves = read_metrics(model.workdir)
            shown.add(model.workdir)
        judged += results
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


def _judge(model: EmbeddingModel, suite: TaskSuite, say: Say, widths: Sequence[int]) -> list[ModelResult]:
    """Run one model through the suite: the result at its own width, then one for each other of `widths`."""
    results = [_row(model, suite), *(_row(model, suite, width) for width in widths if width != model.width)]
    able = [result for result in results if not result.failures]  # all or none: the weights were read
    several = len(able) > 1

    def encoder(prompt: str | None = None) -> Encode:
        def encode(texts: Sequence[str]) -> np.ndarray:
            with progress_bar(len(texts), suite.progress) as bar:
                # As pooled: cosines do not depend on the length, and SentEval's classifiers take vectors as they are.
                widest = max(result.width for result in able) if several else None
                return model.encode(texts, bar.update, normalize=False, truncate_dim=widest, prompt=prompt)

        return encode

    roles = {role: encoder(prompt) for role, prompt in model.role_prompts.items()}
    encode = RoleEncode(encoder(), roles) if roles else encoder()

    @functools.cache
    def before() -> tuple[Encode, str] | None:
        found = model.before_training()
        return found and (_kept(found[0]) if several else found[0], found[1])

    def space_before(result: ModelResult) -> Space | None:
        start = before()
        return suite.measure_space(_first(start[0], result), weights=start[1]) if start else None

    def attempt(result: ModelResult, task: str, find: Callable[[], Score | Space | None]) -> Any:
        started = time.monotonic()
        try:
            found = find()
        except Exception as error:  # noqa: BLE001 (one task, say out of memory, must not lose hours of others)
            result.failures[task] = _reason(error)
            found, outcome = None, "failed"
        else:
            outcome = f"{found.value:.2f}" if isinstance(found, Score) else "measured" if found else ""
        if outcome:
            at = f", width {result.width}" if result.whole else ""
            say(f"  {task}{at}: {outcome} ({time.monotonic() - started:.0f} s)")
        return found

    for task in suite.scored:
        shared = each_role(encode, _kept) if several else encode
        for result in able:
            own = _first(shared, result)
            if score := attempt(result, task, lambda own=own, task=task: suite.score(own, task)):
                result.scores[task] = score
    if GEOMETRY in suite.tasks:
        shared = each_role(encode, _kept) if several else encode
        for result in able:
            own = _first(shared, result)
            result.space = attempt(result, GEOMETRY, lambda own=own: suite.measure_space(own))
            if result.space:
                again = f"{GEOMETRY} before training"
                result.space_before = attempt(result, again, lambda result=result: space_before(result))
    return results


def _row(model: EmbeddingModel, suite: TaskSuite, width: int | None = None) -> ModelResult:
    """Return a result without scores, of vectors cut to that width if one is given."""
    cut = {} if width is None else {"model": f"{model.name} (width {width})", "truncate_dim": width}
    name = cut.get("model", model.name)
    whole = model.name if cut else ""
    result = ModelResult(name, {"model": name}, asked_pooler=model.pooler != model.own_pooler, whole=whole)
    try:
        result.protocol |= protocol(model) | cut
        result.recipe = model.recipe and f"{model.recipe}{f' truncate_dim {width}' if cut else ''}"
        result.width = width or model.width
    except Exception as error:  # noqa: BLE001 (weights that do not load fail every task)
        result.failures |= dict.fromkeys((*suite.pairs, *suite.own, *suite.tasks), _reason(error))
    return result


def _first(encode: Encode, result: ModelResult) -> Encode:
    """Return an encode whose vectors are cut to the width of a result."""
    return each_role(encode, lambda whole: lambda texts: whole(texts)[:, : result.width])


def _kept(encode: Encode) -> Encode:
    """Return an encode that keeps the vectors of a task, up to `MOST_KEPT`, so that each width need not make them."""
    found: dict[tuple[str, ...], np.ndarray] = {}

    def kept(texts: Sequence[str]) -> np.ndarray:
        key = tuple(texts)
        if key in found:
            return found[key]
        vectors = np.asarray(encode(list(texts)))
        if sum(each.nbytes for each in (vectors, *found.values())) <= MOST_KEPT:
            found[key] = vectors
        return vectors

    return kept


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
    } | _further(model)


def _further(model: EmbeddingModel) -> dict[str, Any]:
    """Return what is recorded of some models alone: a width that was asked for, and the prompt before texts."""
    found: dict[str, Any] = {} if model.truncate_dim is None else {"truncate_dim": model.truncate_dim}
    if model.texts.prompt or model.asked_prompt is not None:
        found["prompt"] = repr(model.texts.prompt) + (", not pooled" if not model.texts.include_prompt else "")
    if roles := model.role_prompts:
        found["prompts"] = roles
    return found


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

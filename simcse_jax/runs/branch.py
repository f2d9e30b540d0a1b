"""Go on from a kept state of a run in another folder: `--resume_from=[DIR@]STEP`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from simcse_jax.config.schema import Config
from simcse_jax.hosts.agreement import fail_together, is_first
from simcse_jax.model_folder.frozen_base import BASE
from simcse_jax.model_folder.run_folder import complete_steps, read_run_info
from simcse_jax.runs.folder import TOKENIZER, has_checkpoint, require_same_recipe
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import local_path
from simcse_jax.system.object_store import place_of
from simcse_jax.system.whole_file import write_whole_text, writing

ORIGIN = "resumed_from.json"  # in the new folder: of which run and step it is a branch


class Branch(NamedTuple):
    """Name a state of a run, from which another folder goes on."""

    source: Path | str  # a folder, or an address
    step: int


def parse_branch(value: str, workdir: Path | str) -> tuple[Branch, Path | str]:
    """Return the state that [DIR@]STEP names, and the folder that goes on from it; UserError for anything else.

    Each folder may be an address.

    Without DIR, the state is that of the run in `workdir`, and the folder lies beside it, WORKDIR-from-STEP.
    """
    run, at, step = value.rpartition("@")
    if not step.isdecimal():
        raise UserError(
            f"--resume_from={value}: must be a step, or RUN@STEP.\nFor example --resume_from=500, or "
            "--resume_from=runs/unsup@500 with --workdir=ANOTHER."
        )
    source = place_of(run) if at else workdir
    folder = workdir if at else _beside(workdir, f"-from-{step}")
    if _resolved(source) == _resolved(folder):
        raise UserError(
            f"--resume_from={value} goes on in another folder than that of the run itself.\nGive --workdir=ANOTHER, or "
            f"--resume_from={step} for {workdir}-from-{step}."
        )
    return Branch(source, int(step)), folder


def _beside(workdir: Path | str, ending: str) -> Path | str:
    if isinstance(workdir, str):
        return workdir + ending
    named = workdir if workdir.name.strip(".") else workdir.resolve()  # --workdir=. has a name too
    return named.with_name(f"{named.name}{ending}")


def _resolved(place: Path | str) -> str:
    return place if isinstance(place, str) else str(place.resolve())


def require_state(branch: Branch, named: str) -> dict[str, Any]:
    """Return config.json of a run; UserError, with the steps that there are, unless it has kept the state.

    named: what names the state.
    """
    source, step = branch
    folder = local_path(source, states=True)
    info = read_run_info(folder)
    if info is None:
        raise UserError(f"{named}: {source} holds no run (no config.json).\nGive the folder that --workdir named.")
    kept = complete_steps(folder / "checkpoints" / "last")
    if step not in kept:
        raise UserError(
            f"{named}: {source} has kept no state of step {step}; it has {', '.join(map(str, kept)) or 'none'}.\n"
            "Runs keep the newest checkpoint.keep states, and each that checkpoint.keep_every_steps divides."
        )
    return info


def start_branch(branch: Branch, workdir: Path, config: Config) -> None:
    """Fill the folder with what its run needs to go on from that state, unless this was done before.

    The new folder gets the recipe, the tokenizer, metrics, the state, and the best of its time, if that is kept. The
    state comes last, so that a start that is killed begins again. UserError where there is no such state, where the
    recipe is another than the run's, or where the folder holds another run.
    """
    with fail_together():
        if not is_first():
            return
        origin = {"run": _resolved(branch.source), "step": branch.step}
        path = workdir / ORIGIN
        if has_checkpoint(workdir):
            if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != origin:
                raise UserError(
                    f"{workdir} holds a run that did not begin with step {branch.step} of {branch.source}.\n"
                    "Give another folder with --workdir=ANOTHER."
                )
            return
        there = require_state(branch, f"--resume_from={branch.source}@{branch.step}")["recipe"]
        source = local_path(branch.source, states=True)
        require_same_recipe(branch.source, there, _as_recorded(config.flat(), there))
        with writing(workdir, "Give a folder that you can write, --workdir=DIR.", f"--workdir={workdir}"):
            _copy(source, branch.step, workdir)
            write_whole_text(path, json.dumps(origin) + "\n")
            _copy_step(source, workdir, "last", branch.step)


def _as_recorded(recipe: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with what a run finds at its start: what "auto" is, and the step of a run that it starts from."""
    found = recipe | {key: there.get(key) for key, value in recipe.items() if value == "auto"}
    begun = str(there.get("model.init"))
    return found | ({"model.init": begun} if begun.rpartition("@")[0] == recipe["model.init"] else {})


def _copy(source: Path, last_step: int, workdir: Path) -> None:
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)  # of a start that was killed
    for name in ("config.json", "metrics.jsonl", BASE):
        if (source / name).is_file():
            shutil.copyfile(source / name, workdir / name)
    shutil.copytree(source / TOKENIZER, workdir / TOKENIZER, dirs_exist_ok=True)
    for step in complete_steps(source / "checkpoints" / "best"):
        if step <= last_step:
            _copy_step(source, workdir, "best", step)


def _copy_step(source: Path, workdir: Path, kind: str, step: int) -> None:
    """Copy a checkpoint, which appears whole."""
    to = workdir / "checkpoints" / kind / str(step)
    draft = to.with_name(f"{step}.partial")
    shutil.copytree(source / "checkpoints" / kind / str(step), draft, dirs_exist_ok=True)
    os.replace(draft, to)

"""Sweep: `python -m simcse_jax.sweep --config=FILE --seeds=0..4 --grid objective.temperature=0.01,0.05,0.1`.

Trains every row with every seed, and ends in one table: mean, standard deviation, best, and a paired test against the
first row. The same command goes on with a sweep that was interrupted; docs/sweep.md.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from simcse_jax import cli
from simcse_jax.config.recipe import default_workdir, require_recipe
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    from simcse_jax.sweeping.jobs import Job
    from simcse_jax.sweeping.plan import Judging, Plan

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe, and its variant after a colon. Further --config.section.key=value hold for every run. Left out: the sweep "
    "that --workdir holds.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the sweep. Default: runs/sweep-<recipe>.")
_SEEDS = flags.DEFINE_string("seeds", "", "Seeds of every row: 0..4 (both ends taken, the default) or 0,3,7.")
_GRID = flags.DEFINE_multi_string(
    "grid", [], "Rows: KEY=VALUE,VALUE,...; several times for all combinations. Keys are those of --config."
)
_ROW = flags.DEFINE_multi_string(
    "row", [], "A row by hand: 'LABEL: KEY=VALUE KEY=VALUE', quotes as in a shell; 'LABEL:' is the recipe as it is."
)
_JUDGE = flags.DEFINE_string(
    "judge", "", "Also judge every finished run: tasks as in evaluate --tasks, such as sts,transfer,geometry."
)
_DATA = flags.DEFINE_string("data", "", "With --judge: SentEval's data, as for evaluate.")
_PAIRS = flags.DEFINE_multi_string("pairs", [], "Judge every finished run on these graded pairs too, as evaluate does.")
_FAST = flags.DEFINE_bool("fast", False, "With --judge: the quick variant of the transfer tasks.")
_MEASURE = flags.DEFINE_string(
    "measure", "", "The figure that rows are compared by, such as sts or dev/spearman. Default: the first there is."
)
_KEEP = flags.DEFINE_enum(
    "keep",
    "all",
    ["all", "model", "scores"],
    "What stays of a finished run: all; model: no checkpoints; scores: no exported model either.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "How many runs to train at a time.", lower_bound=1)
_LIST = flags.DEFINE_bool("list", False, "Run nothing: print a shell command for each run that is not finished.")
_TABLE = flags.DEFINE_bool("table", False, "Run nothing: make the table of what is finished.")
# Flags that say how its runs are judged, and all that say what a sweep is.
JUDGING_FLAGS = ("judge", "data", "pairs", "fast")
PLAN_FLAGS = ("seeds", "grid", "row", *JUDGING_FLAGS)


def main() -> int:
    """Sweep as the flags say; 1 when a run failed, 128 + the signal's number when one stopped it."""
    from simcse_jax.sweeping.figures import require_measure
    from simcse_jax.sweeping.folder import joined, locked, read_plan, write_plan
    from simcse_jax.sweeping.jobs import make_jobs, require_models
    from simcse_jax.sweeping.plan import require_comparable

    recipe = config_flags.get_config_filename(flags.FLAGS["config"]) if _CONFIG.value else ""
    folder = _folder(recipe)
    if _TABLE.value:
        _refuse_to_change_the_plan()
    plan = None if _TABLE.value else _asked(recipe)
    judges_anew = any(flags.FLAGS[name].present for name in JUDGING_FLAGS)
    plan = joined(folder, plan, judges_anew) if plan else read_plan(folder)
    if plan is None:
        raise UserError(f"{folder} holds no sweep.\nGive one with --config=FILE, or another folder with --workdir=DIR.")
    require_comparable(plan)
    require_measure(_MEASURE.value, plan.judging)
    jobs = make_jobs(folder, plan, _KEEP.value)
    if _TABLE.value:
        _show(folder, plan, jobs)
        return 0
    require_models(jobs)
    if not _LIST.value and not all(job.done for job in jobs):
        _require_senteval(plan.judging)  # lines of --list run elsewhere
    write_plan(folder, plan)
    if _LIST.value:
        _list(folder, jobs)
        return 0
    with locked(folder) as lock:
        from simcse_jax.sweeping.queue import run_jobs

        ended = run_jobs(jobs, _PARALLEL.value, lock, _say, _told)
        if ended.signal is not None:
            print(f"stopped by {signal.Signals(ended.signal).name}; the same command goes on", flush=True)
            return 128 + ended.signal
        _show(folder, plan, jobs)
    return 1 if ended.failed else 0


def _folder(recipe: str) -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    if not recipe:
        raise UserError(
            "--config=FILE is needed, or --workdir=DIR with a sweep in it.\nFor example --config=configs/demo.py"
        )
    usual = default_workdir(recipe)
    return usual.with_name(f"sweep-{usual.name}")


def _asked(recipe: str) -> Plan | None:
    """The plan that the flags describe; None where they leave it to the folder."""
    from simcse_jax.sweeping.plan import make_plan
    from simcse_jax.sweeping.rows import DEFAULT_SEEDS, as_flags, choose_rows, parse_seeds, refuse_seed

    if not recipe:
        if given := _of_the_plan():
            raise UserError(f"--{given} says what a sweep is, and needs its recipe too.\nAdd --config=FILE.")
        return None
    require_recipe(recipe)
    seeds = parse_seeds(_SEEDS.value or DEFAULT_SEEDS)
    common = as_flags(config_flags.get_override_values(flags.FLAGS["config"]))
    refuse_seed(common, "the command line")
    return make_plan(recipe, choose_rows(recipe, _GRID.value, _ROW.value), common, seeds, _judging(recipe))


def _of_the_plan() -> str | None:
    """The first flag that is given of those that say what a sweep is."""
    return next((name for name in PLAN_FLAGS if flags.FLAGS[name].present), None)


def _refuse_to_change_the_plan() -> None:
    given = _of_the_plan()
    if not given and _CONFIG.value:
        given = next((f"config.{key}" for key in config_flags.get_override_values(flags.FLAGS["config"])), None)
    if given:
        raise UserError(
            f"--{given} says what a sweep is, and --table shows what is finished of the one that the folder holds.\n"
            "Leave one of them out."
        )


def _judging(recipe: str) -> Judging:
    """How runs are judged: as flags say, else as the recipe does; what can be wrong is found here."""
    from simcse_jax.evaluation.graded_pairs import load_graded_pairs
    from simcse_jax.evaluation.judge import choose_tasks
    from simcse_jax.evaluation.senteval import senteval_folder
    from simcse_jax.sweeping.plan import Judging
    from simcse_jax.sweeping.rows import recipe_judging

    tasks = _JUDGE.value if flags.FLAGS["judge"].present else recipe_judging(recipe)
    judging = Judging(tasks, _DATA.value, tuple(_PAIRS.value), _FAST.value)
    if not judging.asked:
        given = next((name for name in ("data", "fast") if flags.FLAGS[name].present), None)
        if given:
            raise UserError(
                f"--{given} is for judging finished runs.\nAdd --judge=sts,transfer,geometry, or leave it out."
            )
        return judging
    if tasks:
        try:
            choose_tasks(tasks, "test")
        except UserError as error:
            where = "--judge" if _JUDGE.value else f"judged() of {recipe}"
            raise UserError(str(error).replace("--tasks", where)) from error
    for source in judging.pairs:
        load_graded_pairs(source)
    if judging.data:
        senteval_folder(judging.data)
    return judging


def _require_senteval(judging: Judging) -> None:
    """UserError where tasks need SentEval's data and it is neither here nor to be fetched, before any run trains."""
    from simcse_jax.evaluation.judge import GEOMETRY, choose_tasks
    from simcse_jax.evaluation.senteval import senteval_folder

    if not judging.tasks or (
        judging.pairs and not judging.data and {*choose_tasks(judging.tasks, "test")} <= {GEOMETRY}
    ):
        return
    try:
        senteval_folder(judging.data)
    except UserError as error:
        raise UserError(f"--judge={judging.tasks} needs SentEval's data (--data=DIR). {error}") from error


def _list(folder: Path, jobs: list[Job]) -> None:
    """Print the jobs that are left, a line each, and on the other stream what to do with them."""
    left = [job for job in jobs if not job.done]
    for job in left:
        print(job.line)
    print(
        f"{len(left)} of {len(jobs)} runs are left. When they are done: python -m simcse_jax.sweep --workdir={folder} "
        "--table",
        file=sys.stderr,
    )


def _show(folder: Path, plan: Plan, jobs: list[Job]) -> None:
    """Print the table of what is finished, and write its files."""
    from rich.console import Console

    from simcse_jax.sweeping.figures import read_figures
    from simcse_jax.sweeping.table import make_table
    from simcse_jax.sweeping.writing import print_table, write_table

    table = make_table(plan, {(job.row.label, job.seed): read_figures(job) for job in jobs}, _MEASURE.value)
    print_table(table, Console(highlight=False, soft_wrap=True))
    for path in write_table(table, folder):
        print(f"written: {path}")


def _told(job: Job) -> str:
    """The figures of a finished run in few words."""
    from simcse_jax.sweeping.figures import TITLES, choose_measure, read_figures

    figures = read_figures(job)
    name = _MEASURE.value or choose_measure(figures, job.judging)
    return f"{TITLES.get(name, name)} {figures[name]:.2f}" if name in figures else ""


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)

"""Train rows of settings with several seeds, and compare them in one table.

    python -m simcse_jax.sweep --config=FILE --seeds=0..4 --grid objective.temperature=0.01,0.05,0.1

The table has mean, standard deviation and best of each row, and a paired test against the first row. The same command
continues a sweep that was interrupted (docs/sweep.md).
"""

from __future__ import annotations

import functools
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from simcse_jax import cli
from simcse_jax.config.recipe import default_workdir, find_recipes, require_recipe
from simcse_jax.system.errors import UserError
from simcse_jax.system.mirror import Send, written_by_parts
from simcse_jax.system.object_store import is_address, shown_path

if TYPE_CHECKING:
    from simcse_jax.sweeping.jobs import Job
    from simcse_jax.sweeping.plan import Judging, SweepPlan

find_recipes(sys.argv)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe, and its variant after a colon. Each --config.section.key=value holds for every run. Without --config: the "
    "sweep that --workdir holds.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the sweep, or gs://BUCKET/NAME. Default: runs/sweep-<recipe>.")
_SEEDS = flags.DEFINE_string("seeds", "", "Seeds of every row: 0..4 (0 to 4, the default) or 0,3,7.")
_GRID = flags.DEFINE_multi_string(
    "grid", [], "Rows: KEY=VALUE,VALUE,...; repeat the flag for all combinations. Keys are those of --config."
)
_ROW = flags.DEFINE_multi_string(
    "row", [], "One row: 'LABEL: KEY=VALUE KEY=VALUE', quotes as in a shell; 'LABEL:' is the recipe as it is."
)
_JUDGE = flags.DEFINE_string(
    "judge", "", "Also judge every finished run: tasks as in evaluate --tasks, such as sts,transfer,geometry."
)
_DATA = flags.DEFINE_string("data", "", "With --judge: SentEval's data, as for evaluate.")
_PAIRS = flags.DEFINE_multi_string(
    "pairs",
    [],
    "Judge every finished run on these graded pairs too, as evaluate does; KIND:SOURCE, such as retrieval:DIR, for "
    "another task that evaluate takes as --KIND=SOURCE.",
)
_FAST = flags.DEFINE_bool("fast", False, "With --judge: the quick variant of the transfer tasks.")
_MEASURE = flags.DEFINE_string(
    "measure", "", "The metric that rows are compared by, such as sts or dev/spearman. Default: the first there is."
)
_KEEP = flags.DEFINE_enum(
    "keep",
    "all",
    ["all", "model", "scores"],
    "What is kept of a finished run: all; model: no checkpoints; scores: no exported model either.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "How many runs to train at a time.", lower_bound=1)
_LIST = flags.DEFINE_bool("list", False, "Run nothing: print a shell command for each run that is not finished.")
_TABLE = flags.DEFINE_bool("table", False, "Run nothing: make the table of the runs that are finished.")
# Flags that say how finished runs are judged, and all that say what a sweep is.
JUDGING_FLAGS = ("judge", "data", "pairs", "fast")
PLAN_FLAGS = ("seeds", "grid", "row", *JUDGING_FLAGS)


def main() -> int:
    """Sweep as the flags say; return 1 when a run failed, 128 + the signal's number when one stopped it.

    A sweep at an address is worked on in the cache; each run is sent when it is done, the rest when the command ends.
    """
    recipe = config_flags.get_config_filename(flags.FLAGS["config"]) if _CONFIG.value else ""
    if is_address(_WORKDIR.value) and _LIST.value:
        raise UserError("--list prints commands for other shells, which need a folder that they see: --workdir=DIR.")
    with written_by_parts(_WORKDIR.value or _default_folder(recipe)) as (folder, send):
        return _sweep(recipe, folder, send)


def _sweep(recipe: str, folder: Path, send: Send) -> int:
    """Do what `main` does, in this folder."""
    from simcse_jax.sweeping.jobs import keeping, lock_sweep, make_jobs, require_models, run_jobs
    from simcse_jax.sweeping.plan import PLAN, require_comparable, require_senteval, write_plan
    from simcse_jax.sweeping.table import require_measure

    plan = _plan(recipe, folder)
    require_comparable(plan)
    require_measure(_MEASURE.value, plan.judging)
    jobs = make_jobs(folder, plan, _KEEP.value)
    if _TABLE.value:
        _show_table(folder, plan, jobs)
        return 0
    require_models(jobs)
    if not _LIST.value and not all(job.done for job in jobs):
        require_senteval(plan.judging)  # lines of --list run elsewhere
    write_plan(folder, plan)
    if _LIST.value:
        _list(folder, jobs)
        return 0

    keep = keeping(folder / PLAN, send, functools.partial(print, file=sys.stderr, flush=True))
    keep(*(job for job in jobs if job.done))
    with lock_sweep(folder) as lock:
        failed, number = run_jobs(jobs, _PARALLEL.value, lock, functools.partial(print, flush=True), _score_of, keep)
        if number is not None:
            print(f"stopped by {signal.Signals(number).name}; the same command continues", flush=True)
            return 128 + number
        _show_table(folder, plan, jobs)
    return 1 if failed else 0


def _default_folder(recipe: str) -> Path:
    if not recipe:
        raise UserError(
            "--config=FILE is needed, or --workdir=DIR with a sweep in it.\nFor example --config=configs/demo.py"
        )
    usual = default_workdir(recipe)
    return usual.with_name(f"sweep-{usual.name}")


def _plan(recipe: str, folder: Path) -> SweepPlan:
    """Return the plan of the flags, merged into the one that the folder holds; without --config, the folder's."""
    from simcse_jax.sweeping.plan import make_plan, merge_plan, read_plan
    from simcse_jax.sweeping.rows import DEFAULT_SEEDS, as_flags, choose_rows, parse_seeds, refuse_seed

    overridden = config_flags.get_override_values(flags.FLAGS["config"]) if recipe else {}
    present = [name for name in PLAN_FLAGS if flags.FLAGS[name].present]
    given = next(iter([*present, *(f"config.{key}" for key in overridden)]), None)
    if _TABLE.value and given:
        raise UserError(
            f"--{given} says what a sweep is, and --table shows what is finished of the sweep that the folder holds.\n"
            "Leave one of them out."
        )
    if not recipe and given:
        raise UserError(f"--{given} says what a sweep is, and needs its recipe too.\nAdd --config=FILE.")
    if recipe and not _TABLE.value:
        require_recipe(recipe)
        seeds = parse_seeds(_SEEDS.value or DEFAULT_SEEDS)
        common = as_flags(overridden)
        refuse_seed(common, "the command line")
        plan = make_plan(recipe, choose_rows(recipe, _GRID.value, _ROW.value), common, seeds, _judging(recipe))
        merged = merge_plan(folder, plan, any(flags.FLAGS[name].present for name in JUDGING_FLAGS))
        _say_what_is_stored(folder, plan, merged)
        return merged
    plan = read_plan(folder)
    if plan is None:
        raise UserError(f"{folder} holds no sweep.\nGive one with --config=FILE, or another folder with --workdir=DIR.")
    return plan


def _say_what_is_stored(folder: Path, plan: SweepPlan, merged: SweepPlan) -> None:
    """Say on stderr which rows come from earlier commands, as they are run and compared with too."""
    named = {row.label for row in plan.rows}
    stored = [row.label for row in merged.rows if row.label not in named]
    if stored:
        print(
            f"note: {folder} has rows of earlier commands (--list counts), which belong to this sweep too, with the "
            f"settings given then: {', '.join(stored)}; --workdir=ANOTHER starts a sweep without them",
            file=sys.stderr,
        )


def _judging(recipe: str) -> Judging:
    """Return how runs are judged: as the flags say, else as the recipe does."""
    from simcse_jax.sweeping.plan import Judging, check_judging
    from simcse_jax.sweeping.rows import recipe_judging

    tasks = _JUDGE.value if flags.FLAGS["judge"].present else recipe_judging(recipe)
    judging = Judging(tasks, _DATA.value, tuple(_PAIRS.value), _FAST.value)
    given = next((name for name in ("data", "fast") if flags.FLAGS[name].present), None)
    if judging.asked:
        check_judging(judging, "--judge" if _JUDGE.value else f"judged() of {recipe}")
    elif given:
        raise UserError(f"--{given} is for judging finished runs.\nAdd --judge=sts,transfer,geometry, or leave it out.")
    return judging


def _list(folder: Path, jobs: list[Job]) -> None:
    """Print the jobs that are left, a line each, and on stderr what to do with the lines."""
    left = [job for job in jobs if not job.done]
    for job in left:
        print(job.line)
    print(
        f"{len(left)} of {len(jobs)} runs are left. When they are done: python -m simcse_jax.sweep --workdir={folder} "
        "--table",
        file=sys.stderr,
    )


def _show_table(folder: Path, plan: SweepPlan, jobs: list[Job]) -> None:
    """Print the table of the finished runs, and write its files."""
    from rich.console import Console

    from simcse_jax.sweeping.output import print_sweep, write_table
    from simcse_jax.sweeping.table import make_table, run_metrics

    table = make_table(plan, {(job.row.label, job.seed): run_metrics(job) for job in jobs}, _MEASURE.value)
    print_sweep(table, Console(highlight=False, soft_wrap=True))
    place = _WORKDIR.value if is_address(_WORKDIR.value) else folder
    for path in write_table(table, folder):
        print(f"written: {shown_path(place, path.name)}")


def _score_of(job: Job) -> str:
    """Return the metric of a finished run that rows are compared by, in words."""
    from simcse_jax.sweeping.output import title_of
    from simcse_jax.sweeping.table import choose_measure, run_metrics

    metrics = run_metrics(job)
    name = _MEASURE.value or choose_measure(metrics, job.judging)
    return f"{title_of(name)} {metrics[name]:.2f}" if name in metrics else ""


if __name__ == "__main__":
    cli.run(main)

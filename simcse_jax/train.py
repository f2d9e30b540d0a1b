"""Train: `python -m simcse_jax.train --config=configs/unsup.py [--config.section.key=value ...] [--workdir=DIR]`.

The same command goes on with a run that was interrupted. Started by several processes (docs/scale.md), it is one run.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from simcse_jax import cli
from simcse_jax.config.recipe import default_workdir, require_recipe
from simcse_jax.system.errors import UserError

if TYPE_CHECKING:
    from simcse_jax.config.schema import Config

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/unsup.py",
    "Recipe, and its variant after a colon: configs/unsup.py:bert-large. Its keys: --help-config.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder. Default: runs/<recipe>, or runs/<recipe>-<variant>.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT where process 0 listens, to train with several processes. Default: what the cluster says.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes take part.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
_JOIN = flags.DEFINE_integer("join_timeout_s", 300, "Seconds to wait for all processes to come.", lower_bound=1)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout_s",
    60,
    "Seconds of silence after which a process counts as dead, and the others end.",
    lower_bound=5,
)
_PLAN = flags.DEFINE_bool(
    "plan",
    False,
    "Train nothing: print shapes, memory, arithmetic, what devices send, and the largest batch that fits.",
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace five steps, from the 11th on, into WORKDIR/profile, for Perfetto and TensorBoard."
)
_HELP_CONFIG = flags.DEFINE_bool(
    "help-config", False, "Train nothing: print every key of a recipe with default, range and meaning."
)
_SEARCH = flags.DEFINE_bool("search", True, "With --plan: compile other batch sizes too, for the largest that fits.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "With --plan: a TPU topology such as v5e:4x4 instead of what is here.")


def main() -> int:
    """Train as the flags say; 0 when the run is complete, 128 + the signal's number when one stopped it."""
    if _HELP_CONFIG.value:
        from simcse_jax.config.help import help_text

        print(help_text())
        return 0
    recipe = config_flags.get_config_filename(flags.FLAGS["config"])
    require_recipe(recipe)
    if _PLAN.value:
        return _plan()
    if _TOPOLOGY.value:
        raise UserError(f"--topology={_TOPOLOGY.value} is for plans. Add --plan, or leave it out to train here.")
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(recipe)
    _join()

    import jax

    from simcse_jax.config.resolve import resolve
    from simcse_jax.hosts.agreement import is_first, processes, together
    from simcse_jax.system.compiled import keep_compiled
    from simcse_jax.system.host_memory import keep_freed_memory
    from simcse_jax.training.display import describe
    from simcse_jax.training.loop import summary, train
    from simcse_jax.training.run import prepare

    keep_freed_memory()
    keep_compiled()
    with together():
        overridden = config_flags.get_override_values(flags.FLAGS["config"])
        x64 = jax.dtypes.canonicalize_dtype("float64") == "float64"
        config = resolve(_CONFIG.value, overridden, jax.device_count(), x64, processes())
    run = prepare(config, workdir)
    if is_first():
        print("\n".join(describe(run)), flush=True)
    started = time.monotonic()
    outcome = train(run, workdir, _PROFILE.value)
    if is_first():
        print(summary(outcome, run.dev.measure if run.dev else None, time.monotonic() - started))
    if outcome.signal is not None:
        if is_first():
            name = signal.Signals(outcome.signal).name
            print(f"stopped by {name}; the same command goes on from step {outcome.step}", flush=True)
        return 128 + outcome.signal
    with together():  # the others stay until the export is done: a launcher takes the end of one for the end of the run
        if is_first():
            _finish(outcome, workdir, config)
    return 0


def _plan() -> int:
    """Print what the recipe's step costs."""
    from simcse_jax.config.resolve import resolve
    from simcse_jax.training.plan import print_plan, topology_chips, visible_chips

    chips = topology_chips(_TOPOLOGY.value) if _TOPOLOGY.value else visible_chips()
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    print_plan(resolve(_CONFIG.value, overridden, len(chips.devices)), chips, search=_SEARCH.value)
    return 0


def _join() -> None:
    """Become one of several processes, if flags or a cluster say so; process 0 prints who is there."""
    from simcse_jax.hosts.cluster import find_cluster

    cluster = find_cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, timeout_s=_JOIN.value)
    if cluster is None:
        return
    from rich.console import Console

    from simcse_jax.hosts.join import join, table

    cards = join(cluster, _JOIN.value, _HEARTBEAT.value)
    if cluster.process == 0:
        Console(soft_wrap=True, highlight=False).print(table(cards))


def _finish(outcome: Any, workdir: Path, config: Config) -> None:
    """Export the best model, write the report, and say what to do next."""
    from simcse_jax.model_folder.export import export_run

    if outcome.progress.best_step == 0:
        print(f"note: no evaluation beat the model before training, so {workdir / 'model'} holds the untrained weights")
    export_run(workdir, workdir / "model")
    _report(workdir, config.eval.data)
    print(_next_steps(workdir, config), flush=True)


def _report(workdir: Path, data: str) -> None:
    """Write the run's report; a report that fails is no reason to call the training failed."""
    from simcse_jax.judging import report_run

    try:
        report_run(workdir, data)
        print(f"curves, and scores and geometry on the dev pairs: {workdir / 'report.html'}")
    except Exception as error:  # noqa: BLE001 (such as no memory left beside the training state)
        print(f"note: no report was written: {type(error).__name__}: {error}")


def _next_steps(workdir: Path, config: Config) -> str:
    from simcse_jax.model_folder.card import simcse_recipe

    model, here = workdir / "model", Path(sys.executable)
    python = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else "python"
    pretrained = config.objective.loss == "none"
    recipe = simcse_recipe(config.model.init) if pretrained else "configs/unsup.py"
    simcse = f"{python} -m simcse_jax.train --config={recipe} --config.data.files=sentences.txt"
    encode = f'SentenceTransformer("{model}").encode(["a text"])'
    steps = {
        "use it from PyTorch": f"{encode}  # pip install sentence-transformers",
        "judge it": f"{python} -m simcse_jax.evaluate --model={workdir} --data=senteval  # or --pairs=graded.tsv",
        "write it elsewhere": f"{python} -m simcse_jax.export --workdir={workdir} --out=DIR",
        "look at the curves": f"tensorboard --logdir={workdir / 'tensorboard'}  # pip install tensorboard",
        "train on your text": simcse,
    }
    if pretrained:
        del steps["train on your text"]
        steps = {"train SimCSE from it": f"{simcse} --config.model.name={model}"} | steps
    return "\n".join(
        [
            f"\nThe best model is in {model}. What to do next:",
            *(f"  {f'{what}:':<21} {command}" for what, command in steps.items()),
            "This run is finished; --workdir=ANOTHER starts a new one.",
        ]
    )


if __name__ == "__main__":
    cli.run(main)

"""Train: `python -m simcse_jax.train --config=configs/unsup.py [--config.section.key=value ...] [--workdir=DIR]`.

The same command resumes an interrupted run. Several processes can train one run together (docs/scale.md).
"""

from __future__ import annotations

import os
import sys

from absl import flags
from ml_collections import config_flags

from simcse_jax import cli
from simcse_jax.config.recipe import default_workdir, find_recipes, require_keys, require_recipe
from simcse_jax.system.errors import UserError
from simcse_jax.system.object_store import place_of

with cli.wrong_flags_fail():
    given = (argument.removeprefix("--config.") for argument in sys.argv if argument.startswith("--config."))
    require_keys(argument.partition("=")[0] for argument in given)
    find_recipes(sys.argv)
    # The default recipe is read here, with the keys that the command line gives.
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        "configs/unsup.py",
        "Recipe, and its variant after a colon: configs/unsup.py:bert-large, or by name unsup:bert-large. Its keys: "
        "--help-config.",
        lock_config=True,
    )
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Run folder, or gs://BUCKET/NAME. Default: runs/<recipe>, or runs/<recipe>-<variant>."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT where process 0 listens, to train with several processes. Default: found from the cluster's variables.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "The number of processes.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, from 0.", lower_bound=0)
_JOIN = flags.DEFINE_integer("join_timeout_s", 300, "Seconds to wait until all processes have started.", lower_bound=1)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout_s",
    60,
    "Seconds without a sign of life after which a process counts as dead, and the others end.",
    lower_bound=5,
)
_PLAN = flags.DEFINE_bool(
    "plan",
    False,
    "Train nothing: print shapes, memory, operations, what devices send, and the largest batch that fits.",
)
_RESUME_FROM = flags.DEFINE_string(
    "resume_from",
    "",
    "Go on from a kept state in a new folder: STEP of the run in --workdir, in WORKDIR-from-STEP; or RUN@STEP, in "
    "--workdir.",
)
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace steps 11 to 15 into WORKDIR/profile, for Perfetto and TensorBoard."
)
_HELP_CONFIG = flags.DEFINE_bool(
    "help_config", False, "Train nothing: print every key of a recipe with default, range and meaning."
)
_SEARCH = flags.DEFINE_bool(
    "search", True, "With --plan: compile other batch sizes too, to find the largest that fits."
)
_LENGTHS = flags.DEFINE_string(
    "lengths",
    "",
    "With --plan: read no data, but assume texts of MEAN,DEVIATION tokens after the cut at data.max_length, such as "
    "21.9,8.9, or max for the longest. So does an empty data.files.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "With --plan: devices that need not be there instead of this machine's: a TPU slice such as v5e:4x4, or GPUs such "
    "as h100:8.",
)


def main() -> int:
    """Train as the flags say. Return 0 when the run is complete, 128 + the number of the signal that stopped it."""
    if _HELP_CONFIG.value:
        from simcse_jax.config.help import help_text

        print(help_text())
        return 0
    recipe = config_flags.get_config_filename(flags.FLAGS["config"])
    require_recipe(recipe)
    if _PLAN.value:
        return _plan()
    for name, value in (("topology", _TOPOLOGY.value), ("lengths", _LENGTHS.value)):
        if value:
            raise UserError(f"--{name}={value} is for plans. Add --plan, or leave it out to train here.")
    workdir = place_of(_WORKDIR.value) if _WORKDIR.value else default_workdir(recipe)
    _join()

    from simcse_jax.fitting.complete import complete, configure
    from simcse_jax.runs.branch import parse_branch

    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    branch = None
    if _RESUME_FROM.value:
        branch, workdir = parse_branch(_RESUME_FROM.value, workdir)
    _, outcome, _ = complete(configure(_CONFIG.value, overridden), workdir, _PROFILE.value, branch)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _plan() -> int:
    """Print the plan of the recipe's step."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA would report a compilation of minutes as an error

    from simcse_jax.config.resolve import resolve
    from simcse_jax.planning.lengths import parse_lengths
    from simcse_jax.planning.plan import print_plan
    from simcse_jax.planning.topologies import topology_chips, visible_chips

    chips = topology_chips(_TOPOLOGY.value) if _TOPOLOGY.value else visible_chips()
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    config = resolve(_CONFIG.value, overridden, len(chips.devices), needs_data=False)
    print_plan(config, chips, search=_SEARCH.value, lengths=parse_lengths(_LENGTHS.value, config.data))
    return 0


def _join() -> None:
    """Become one of several processes, if flags or a cluster say so; process 0 prints who is there."""
    from simcse_jax.hosts.cluster import find_cluster

    cluster = find_cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, timeout_s=_JOIN.value)
    if cluster is None:
        return
    from rich.console import Console

    from simcse_jax.hosts.join import join, table

    members = join(cluster, _JOIN.value, _HEARTBEAT.value)
    if cluster.process == 0:
        Console(soft_wrap=True, highlight=False).print(table(members))


if __name__ == "__main__":
    cli.run(main, interrupted="what is finished is kept, and the same command goes on from there")

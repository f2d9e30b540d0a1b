"""Find the processes that make up this run, from flags or from the cluster's environment.

JAX itself recognises Cloud TPU, GKE, SLURM, Open MPI and Kubernetes jobs. Added here are clear messages where something
is missing, and the choice of GPUs where several tasks share a machine.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping

from simcse_jax.system.errors import UserError

# Variables in which launchers give the number of processes, and the number of this one.
COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
NUMBERS = ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
COORDINATOR = "JAX_COORDINATOR_ADDRESS"
# Variables with the number of this task on its machine, and the number of tasks there.
LOCAL = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Describe the run that this process belongs to."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process: int  # from 0
    gpus: tuple[int, ...] | None = None  # the visible GPUs that this process uses; None = all


def find_cluster(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
    timeout_s: int = 300,
) -> Cluster | None:
    """Return the cluster that flags or environment describe, None for a process that trains alone.

    Flags override the environment. timeout_s: how long to wait until the name of process 0's host is known. UserError
    when what is given describes no cluster.
    """
    address = coordinator or environment.get(COORDINATOR, "")
    if address:
        processes = _number("num_processes", num_processes, COUNTS, environment)
        process = _number("process_id", process_id, NUMBERS, environment)
        found = Cluster(_checked(address), processes, process, _gpus(environment))
    elif num_processes is not None or process_id is not None:
        raise UserError(
            "--num_processes and --process_id need --coordinator: where process 0 listens.\n"
            "For example --coordinator=host0:8476 --num_processes=2 --process_id=0, with process_id=1 on the other."
        )
    else:
        found = _detected(environment, timeout_s)
    if found is None or found.processes == 1:
        return None
    if not 0 <= found.process < found.processes:
        raise UserError(
            f"process_id = {found.process} of num_processes = {found.processes}: ids run from 0 to "
            f"{found.processes - 1}.\nGive each process its own, --process_id=0 on the coordinator."
        )
    return found


def _checked(address: str) -> str:
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):\d{1,5}", address) or not 0 < _port(address) < 65536:
        raise UserError(
            f"--coordinator={address} is not HOST:PORT.\nFor example --coordinator=host0:8476, the host of process 0 "
            "and any free port there."
        )
    return address


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _number(flag: str, given: int | None, names: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Return the value of a flag, or of the first variable that is set."""
    if given is not None:
        return given
    for name in names:
        if environment.get(name):
            return _integer(name, environment[name])
    raise UserError(
        f"--coordinator is given, and --{flag} is not (nor is any of {', '.join(names)} set).\n"
        f"For example --coordinator=host0:8476 --num_processes=2 --process_id=0."
    )


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(
            f"The environment variable {name} is {value!r}, not a whole number. Correct or unset it."
        ) from None


def _detected(environment: Mapping[str, str], timeout_s: int) -> Cluster | None:
    """Return the cluster that JAX recognises."""
    from jax._src.clusters import ClusterEnv  # the public interface joins at once

    for kind in ClusterEnv._cluster_types:
        # JAX takes every Kubernetes pod for a part of a job.
        if kind.opt_in_only_method or (kind.name == "k8s" and "JOB_COMPLETION_INDEX" not in environment):
            continue
        if kind.is_env_present():
            try:
                port = environment.get("JAX_COORDINATOR_PORT")
                address = kind.get_coordinator_address(timeout_s, port)
                return Cluster(address, kind.get_process_count(), kind.get_process_id(), _gpus(environment))
            except Exception as error:
                raise UserError(
                    f"This looks like a cluster ({kind.name}), but JAX cannot tell who takes part: {error}\n"
                    "Say so: --coordinator=HOST:PORT --num_processes=N --process_id=I."
                ) from error
    return _undetected(environment)


def _undetected(environment: Mapping[str, str]) -> None:
    """Raise UserError when other processes take part and cannot be found; alone, each would start its own run."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"Open MPI started {environment['OMPI_COMM_WORLD_SIZE']} processes, but this release of it does not say "
            "where the first one is.\nAdd --coordinator=HOST:PORT, the host of rank 0 and any free port there."
        )
    if int(environment.get("JOB_COMPLETION_INDEX") or 0) > 0:
        raise UserError(
            f"This pod has the completion index {environment['JOB_COMPLETION_INDEX']}, so others take part, but not "
            f"where the first one is.\nSet {COORDINATOR} and JAX_NUM_PROCESSES as launch/gke.yaml does, or install "
            "jax[k8s]."
        )


def _gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the GPUs of this task, of those that it sees, where SLURM or Open MPI started several on the machine.

    A task that is alone on its machine uses all GPUs, None. A task that was bound to one GPU sees only that one.
    """
    # Open MPI first: mpirun within a SLURM job leaves the job's own variables in place.
    for names in LOCAL:
        local, tasks = (environment.get(name) for name in names)
        if local and tasks:
            break
    else:
        return None
    if re.match(r"1(\D|$)", tasks):
        return None
    visible = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return (0,) if len(visible) == 1 else (int(local),)

"""How a process finds the others of its run: from flags, or from variables that launchers set."""

import pytest

from simcse_jax.hosts.cluster import Cluster, find_cluster
from simcse_jax.system.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the cluster that the tests themselves may run on: JAX looks into the environment of this process."""
    import os

    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "JOB_COMPLETION", "TPU_WORKER")):
            monkeypatch.delenv(name)


def found(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Cluster | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return find_cluster(environment=environment)


def test_a_lone_process_trains_by_itself() -> None:
    assert find_cluster(environment={}) is None
    assert find_cluster("host0:8476", 1, 0, {}) is None


def test_flags_go_before_the_environment() -> None:
    environment = {"JAX_COORDINATOR_ADDRESS": "other:1", "JAX_NUM_PROCESSES": "9", "JAX_PROCESS_ID": "8"}
    assert find_cluster("host0:8476", 2, 1, environment) == Cluster("host0:8476", 2, 1)
    assert find_cluster(environment=environment) == Cluster("other:1", 9, 8)
    pod = {"JAX_COORDINATOR_ADDRESS": "job-0-0.job:8476", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
    assert find_cluster(environment=pod) == Cluster("job-0-0.job:8476", 4, 3)


def test_slurm_gives_a_process_that_is_alone_on_its_node_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    one = found(monkeypatch, SLURM)
    assert one is not None
    assert (one.coordinator.split(":")[0], one.processes, one.process, one.gpus) == ("node07", 2, 1, None)


@pytest.mark.parametrize(("visible", "gpus"), [("", (3,)), ("0,1,2,3", (3,)), ("3", (0,))])
def test_slurm_gives_several_on_a_node_one_gpu_each(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: tuple[int, ...]
) -> None:
    several = SLURM | {"SLURM_NTASKS": "8", "SLURM_PROCID": "7", "SLURM_LOCALID": "3"}
    several |= {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": visible}
    cluster = found(monkeypatch, several)
    assert cluster is not None
    assert (cluster.processes, cluster.process, cluster.gpus) == (8, 7, gpus)


def test_mpirun_within_a_slurm_job_gives_each_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    job = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_COORDINATOR_ADDRESS": "host0:8476"}
    cluster = found(monkeypatch, job | OPEN_MPI)
    assert cluster is not None
    assert (cluster.process, cluster.gpus) == (3, (1,))


def test_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = found(monkeypatch, OPEN_MPI)
    assert cluster is not None
    assert (cluster.coordinator.split(":")[0], cluster.processes, cluster.process) == ("10.96.0.1", 4, 3)
    assert cluster.gpus == (1,)


def test_a_gke_tpu_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.0.0.1")
    hosts = {"TPU_WORKER_HOSTNAMES": "a-0.svc,a-1.svc", "TPU_WORKER_ID": "1", "TPU_SKIP_MDS_QUERY": "1"}
    hosts |= {"MEGASCALE_COORDINATOR_ADDRESS": "a-0.svc", "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
    assert found(monkeypatch, hosts) == Cluster("a-0.svc:8482", 2, 1)


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("host0", 2, 0), {}, "--coordinator=host0 is not HOST:PORT"),
        (("host0:99999", 2, 0), {}, "--coordinator=host0:99999 is not HOST:PORT"),
        (("host0:8476", None, 0), {}, "--num_processes is not"),
        (("host0:8476", 2, None), {}, "--process_id is not"),
        (("", 2, 0), {}, "need --coordinator"),
        (("host0:8476", 2, 2), {}, "ids run from 0 to 1"),
        (("host0:8476", None, 0), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        (("", None, None), {"OMPI_COMM_WORLD_SIZE": "2"}, "Add --coordinator=HOST:PORT"),
        (("", None, None), {"JOB_COMPLETION_INDEX": "1"}, "completion index 1"),
    ],
)
def test_what_describes_no_cluster_is_refused(arguments: tuple, environment: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        find_cluster(*arguments, environment=environment)

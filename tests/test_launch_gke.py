"""launch/gke.yaml against the schemas of Kubernetes and, by hand, the interface of JobSet."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def job_sets() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())
    return {document["metadata"]["name"]: document for document in documents}


@pytest.fixture(params=["simcse-tpu", "simcse-gpu"])
def job_set(request: pytest.FixtureRequest) -> dict[str, Any]:
    return job_sets()[request.param]


def pod_of(job_set: dict[str, Any]) -> dict[str, Any]:
    return job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_jobs_and_pods_are_what_kubernetes_knows(job_set: dict[str, Any], version: str):
    for replicated in job_set["spec"]["replicatedJobs"]:
        assert set(replicated) == {"name", "replicas", "template"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, version, strict=True)
        job["spec"] = {**job["spec"], "completion": 1}
        with pytest.raises(kubernetes_validate.ValidationError):  # so it does look
            kubernetes_validate.validate(job, version, strict=True)


def test_status_2_ends_the_run_and_a_save_or_disruption_does_not_count(job_set: dict[str, Any]):
    [rule] = job_set["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    [container] = pod_of(job_set)["containers"]
    by_status = {}
    for rule in job["podFailurePolicy"]["rules"]:
        for status in rule.get("onExitCodes", {"values": ["disrupted"]})["values"]:
            by_status[status] = rule["action"]
        assert rule.get("onExitCodes", {}).get("containerName", container["name"]) == container["name"]
    assert by_status == {2: "FailJob", 143: "Ignore", "disrupted": "Ignore"}
    assert next(iter(by_status)) == 2  # rules are tried in order: a pod that is evicted may still have said 2
    assert pod_of(job_set)["restartPolicy"] == "Never"
    assert pod_of(job_set)["terminationGracePeriodSeconds"] >= 120


@pytest.mark.parametrize(
    ("name", "hosts", "resource", "each"),
    [("simcse-tpu", 4, "google.com/tpu", 4), ("simcse-gpu", 2, "nvidia.com/gpu", 8)],
)
def test_one_pod_a_host_takes_all_its_chips(name: str, hosts: int, resource: str, each: int):
    job_set = job_sets()[name]
    [replicated] = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"]) == ("Indexed", hosts, hosts)
    [container] = pod_of(job_set)["containers"]
    assert container["resources"] == {"requests": {resource: each}, "limits": {resource: each}}
    if name == "simcse-tpu":
        sides = pod_of(job_set)["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        assert int(sides[0]) * int(sides[1]) == hosts * each
    else:
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["JAX_NUM_PROCESSES"] == str(hosts)
        assert environment["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
        assert environment["JAX_COORDINATOR_ADDRESS"] == f"{name}-{replicated['name']}-0-0.{name}:8476"
        [number] = [entry for entry in container["env"] if entry["name"] == "JAX_PROCESS_ID"]
        field = number["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_the_run_folder_is_in_the_bucket(job_set: dict[str, Any]):
    pod = pod_of(job_set)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == set(volumes)
    cache = next(entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == "SIMCSE_CACHE")
    assert cache.startswith(f"{mounts['cache']}/")
    [workdir] = [flag for flag in pod["containers"][0]["args"] if flag.startswith("--workdir=")]
    assert workdir.startswith("--workdir=gs://my-runs/")


def test_the_image_holds_what_a_wheel_needs():
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)).split()
    assert {"pyproject.toml", "requirements.txt", "README.md", "LICENSE", "simcse_jax", "configs", "models"} == set(
        copied
    )
    assert all((ROOT / name).exists() for name in copied)

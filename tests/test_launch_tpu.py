"""launch/tpu_pod.sh and tpu_worker.sh: what gcloud is asked for, what arrives on the hosts, and what `watch` makes."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.stand_ins import AWKWARD, calls, put_stand_in, run_beside

LAUNCH = Path(__file__).resolve().parents[1] / "launch"

SLICE = {"PROJECT": "my-project", "ZONE": "us-west4-a", "NAME": "unsup", "BUCKET": "my-runs", "POLL_S": "0"}
SITE = ["--zone=us-west4-a", "--project=my-project"]


def tpu_pod(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_beside([str(LAUNCH / "tpu_pod.sh"), *words], folder, **{**SLICE, **environment})


@pytest.mark.parametrize(
    ("accelerator", "image"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_a_slice_is_requested_with_the_image_of_its_generation(accelerator: str, image: str, tmp_path: Path):
    put_stand_in(tmp_path, "gcloud", "if 'list' in arguments: print('ACTIVE')")
    done = tpu_pod(tmp_path, "create", ACCELERATOR=accelerator)
    assert done.returncode == 0, done.stderr
    request = ["queued-resources", "create", "unsup", "--node-id=unsup", f"--accelerator-type={accelerator}"]
    assert calls(tmp_path)[0] == ["gcloud", "compute", "tpus", *request, f"--runtime-version={image}", "--spot", *SITE]


def test_an_unknown_generation_and_a_bucket_with_its_scheme_are_refused(tmp_path: Path):
    put_stand_in(tmp_path, "gcloud")
    for action in ("create", "watch"):
        done = tpu_pod(tmp_path, action, ACCELERATOR="v9-8")
        assert (done.returncode, "ACCELERATOR=v9-8: no image is known" in done.stderr) == (2, True)
    assert "BUCKET=my-runs" in tpu_pod(tmp_path, "run", BUCKET="gs://my-runs").stderr
    assert "BUCKET is not set" in tpu_pod(tmp_path, "run", BUCKET="").stderr
    assert calls(tmp_path) == []


@pytest.mark.parametrize("place", ["before", "after"])
def test_tpu_dry_run_prints_and_runs_nothing(place: str, tmp_path: Path):
    put_stand_in(tmp_path, "gcloud")
    words = ["--dry-run", "watch"] if place == "before" else ["watch", "--dry-run"]
    done = tpu_pod(tmp_path, *words, "--", AWKWARD)
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    verbs = [" ".join(words[2:5]) for words in printed if words[0] == "gcloud"]
    assert verbs[0] == "tpus queued-resources create"
    assert verbs.count("tpus tpu-vm scp") == 1
    assert verbs[-1] == "tpus tpu-vm ssh"
    assert calls(tmp_path) == []


def test_flags_reach_the_hosts_unbroken(tmp_path: Path):
    # The stand-in does what ssh does: it hands the command to a shell on the host.
    host = tmp_path / "host"
    (host / "simcse_jax/launch").mkdir(parents=True)
    (host / "simcse_jax/launch/tpu_worker.sh").write_text('printf "%s\\n" "$BUCKET" "$MOUNT" "$@"')
    put_stand_in(
        tmp_path,
        "gcloud",
        "command = next(word for word in arguments if word.startswith('--command='))[10:]\n"
        f"subprocess.run(['bash', '-c', command], cwd={str(host)!r})",
    )
    done = tpu_pod(tmp_path, "resume", "--", AWKWARD, "--config.train.seed=1")
    workdir = "--workdir=gs://my-runs/runs/unsup"
    flags = ["--config=configs/unsup.py", workdir, AWKWARD, "--config.train.seed=1"]
    assert done.stdout.splitlines() == ["my-runs", "", "run", *flags]


def test_fetch_and_delete(tmp_path: Path):
    put_stand_in(tmp_path, "gcloud")
    assert tpu_pod(tmp_path, "fetch").returncode == tpu_pod(tmp_path, "delete").returncode == 0
    copy = ["storage", "rsync", "gs://my-runs/runs/unsup", "runs/unsup", "--recursive", "--exclude=^checkpoints/.*"]
    delete = ["compute", "tpus", "queued-resources", "delete", "unsup", "--force", "--quiet", *SITE]
    assert calls(tmp_path) == [["gcloud", *copy], ["gcloud", *delete]]
    assert tpu_pod(tmp_path, "fetch", MOUNT="/mnt/b", WORKDIR="/mnt/b/runs/unsup").returncode == 0
    assert calls(tmp_path)[2] == ["gcloud", *copy]
    assert "cannot be fetched" in tpu_pod(tmp_path, "fetch", WORKDIR="/nfs/unsup").stderr


# A cloud that goes through a list of (state of the request, what a host says), one further at each question for the
# state of the request.
CLOUD = """
story = json.load(open(f"{here}/story.json"))
asked = sum("queued-resources" in line and '"list"' in line for line in open(f"{here}/calls.jsonl"))
state, host = story[min(asked, len(story)) - 1]
if state == "broken" or (host, "create" in arguments) == ("refused", True):
    sys.exit(1)
if "list" in arguments and state != "none":
    print(state)
if "describe" in arguments:
    print("READY" if host != "preempted" else "PREEMPTED")
if "tpu_worker.sh status" in " ".join(arguments):
    if host == "silent":
        sys.exit(255)
    print(f"worker h0 {host}\\nworker h1 {'done' if host == 'done' else 'running'}")
"""


@pytest.mark.parametrize(
    ("story", "status", "did"),
    [
        # A host says what it is at; the other one runs, unless all is over.
        ([("none", ""), ("PROVISIONING", ""), ("ACTIVE", "absent"), ("ACTIVE", "mend")], 2, ["create", "run"]),
        (
            [("ACTIVE", "running"), ("SUSPENDED", ""), ("ACTIVE", "absent"), ("ACTIVE", "failed")],
            1,
            ["delete", "create", "run"],
        ),
        ([("ACTIVE", "preempted"), ("ACTIVE", "mend")], 2, ["delete", "create"]),
        ([("ACTIVE", "done")], 0, []),
        ([("ACTIVE", "silent")], 1, []),
        ([("FAILED", ""), ("FAILED", ""), ("FAILED", "")], 1, ["delete", "create"] * 2),
        ([("none", "refused")], 1, ["create"] * 3),
        # gcloud that does not answer is no reason to make another slice.
        ([("broken", ""), ("broken", ""), ("broken", "")], 1, []),
    ],
)
def test_watch_makes_what_is_missing(story: list[tuple[str, str]], status: int, did: list[str], tmp_path: Path):
    """What `watch` did on its way through that story: create, delete, run."""
    put_stand_in(tmp_path, "gcloud", CLOUD)
    (tmp_path / "story.json").write_text(json.dumps(story))
    assert tpu_pod(tmp_path, "watch", TRIES="3").returncode == status
    done = []
    for words in calls(tmp_path):
        done += [word for word in ("create", "delete") if word in words]
        done += ["run"] if "tpu_worker.sh run" in " ".join(words) else []
    assert done == did


def test_watch_on_a_slice_that_is_new_installs_and_runs(tmp_path: Path):
    """What ssh is given runs in a host's empty home, as on a machine that has just been made."""
    home = tmp_path / "home"
    home.mkdir()
    part = f"""
command = next((word for word in arguments if word.startswith("--command=")), "")[10:]
if "list" in arguments: print("ACTIVE")
if "describe" in arguments: print("READY")
if "tpu_worker.sh status" in command:
    if os.path.exists("{home}/simcse_jax"): print("worker h0 done")
    else: sys.exit(subprocess.run(["bash", "-c", command], cwd="{home}").returncode)
elif "tar -xzf" in command: os.mkdir("{home}/simcse_jax")
"""
    put_stand_in(tmp_path, "gcloud", part)
    put_stand_in(tmp_path, "git")
    done = tpu_pod(tmp_path, "watch")
    assert (done.returncode, "(re)starting the run on every host" in done.stderr) == (0, True), done.stderr
    commands = [word for words in calls(tmp_path) for word in words if word.startswith("--command=")]
    order = ["tpu_worker.sh status", "tar -xzf", "tpu_worker.sh install", "tpu_worker.sh run", "tpu_worker.sh status"]
    assert [what in command for what, command in zip(order, commands, strict=True)] == [True] * 5


def worker(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_beside(["bash", str(LAUNCH / "tpu_worker.sh"), *words], folder, **environment)


@pytest.mark.parametrize(
    ("load", "active", "sub", "code", "state"),
    [
        ("not-found", "inactive", "dead", 0, "absent"),
        ("loaded", "active", "running", 0, "running"),
        ("loaded", "activating", "auto-restart", 134, "running"),
        ("loaded", "active", "exited", 0, "done"),
        ("loaded", "failed", "failed", 2, "mend"),
        ("loaded", "failed", "failed", 1, "failed"),
    ],
)
def test_a_host_says_what_its_service_is_at(load: str, active: str, sub: str, code: int, state: str, tmp_path: Path):
    answer = f"ExecMainStatus={code}\nLoadState={load}\nActiveState={active}\nSubState={sub}"
    put_stand_in(tmp_path, "systemctl", f"print({answer!r})")
    assert worker(tmp_path, "status").stdout.split()[::2] == ["worker", state]


def test_a_host_mounts_the_bucket_where_asked_and_restarts_all_but_user_errors(tmp_path: Path):
    assert "gcsfuse" not in worker(tmp_path, "run", AWKWARD, DRY_RUN="1").stdout
    assert "gcsfuse" not in (installed := worker(tmp_path, "install", DRY_RUN="1").stdout)
    assert ".[tpu,gcs]" in shlex.split(installed)
    done = worker(tmp_path, "run", AWKWARD, BUCKET="my-runs", MOUNT="/mnt/simcse", DRY_RUN="1")
    printed = done.stdout.splitlines()
    assert any(line.startswith("gcsfuse ") and line.endswith(" my-runs /mnt/simcse ") for line in printed)
    [service] = [line for line in printed if line.startswith("# service.sh: ")]
    assert shlex.split(service)[-1] == AWKWARD
    unit = shlex.split(printed[-1])
    assert unit[:2] == ["sudo", "systemd-run"]
    assert {"--property=Restart=on-failure", "--property=RestartPreventExitStatus=2", "--remain-after-exit"} <= set(
        unit
    )

"""launch/: lint of every script, and slurm.sbatch: what it runs, and what follows on which status.

Each other launcher has a file of its own: test_launch_local, test_launch_tpu, test_launch_gke.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stand_ins import AWKWARD, calls, put_stand_in, run_beside

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


# Lint -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci/run"], ids=lambda script: script.name)
def test_shell_is_clean(script: Path):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing: pip install -e '.[dev]'"
    found = subprocess.run([shellcheck, "--severity=style", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


# SLURM ----------------------------------------------------------------------------------------------------------------


def sbatch(folder: Path, *flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_beside(["bash", str(LAUNCH / "slurm.sbatch"), *flags], folder, **environment)


@pytest.mark.parametrize(("processes", "tasks", "per_node"), [("node", 2, 1), ("gpu", 16, 8)])
def test_slurm_dry_run_shows_one_process_a_node_or_a_gpu(processes: str, tasks: int, per_node: int, tmp_path: Path):
    done = sbatch(tmp_path, "--config=a.py", AWKWARD, DRY_RUN="1", PROCESSES=processes)
    words = shlex.split(done.stdout)
    assert words[:4] == ["srun", "--nodes=2", f"--ntasks={tasks}", f"--ntasks-per-node={per_node}"]
    assert words[-5:] == [".venv/bin/python", "-m", "simcse_jax.train", "--config=a.py", AWKWARD]
    assert calls(tmp_path) == []


def test_slurm_refuses_what_is_no_way_to_split_and_a_start_without_sbatch(tmp_path: Path):
    wrong = sbatch(tmp_path, PROCESSES="host")
    assert (wrong.returncode, wrong.stderr) == (2, "launch: PROCESSES=host: node or gpu is needed\n")
    assert "this is for sbatch" in sbatch(tmp_path).stderr
    assert "this job has no GPUs" in sbatch(tmp_path, PROCESSES="gpu", SLURM_JOB_ID="42").stderr


def test_slurm_asks_to_be_queued_again_and_for_time_to_save():
    directives = re.findall(r"^#SBATCH (\S+)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(directives)


@pytest.mark.parametrize(
    ("statuses", "starts", "requeued", "status"),
    [
        ([0], 1, False, 0),
        ([2], 1, False, 2),
        ([143], 1, True, 143),
        ([1, 134, 0], 3, False, 0),
        ([1, 1, 1], 3, False, 1),  # with RESTARTS=2
        ([134, 143], 2, True, 143),
    ],
)
def test_slurm_starts_again_or_queues_again_by_status(
    statuses: list[int], starts: int, requeued: bool, status: int, tmp_path: Path
):
    # srun runs its task once, as on one node; the trainer ends as the list says. Peers of a process that ends with 2
    # are aborted, and srun reports the highest status.
    put_stand_in(
        tmp_path,
        "srun",
        "i = arguments.index('bash')\n"
        "status = subprocess.run(arguments[i:]).returncode\n"
        "sys.exit(134 if status == 2 else status)",
    )
    put_stand_in(
        tmp_path,
        "trainer",
        "before = sum('trainer' in line for line in open(f'{here}/calls.jsonl') if 'srun' not in line)\n"
        f"sys.exit({statuses}[before - 1])",
    )
    put_stand_in(tmp_path, "scontrol")
    done = sbatch(
        tmp_path,
        AWKWARD,
        PYTHON=str(tmp_path / "trainer"),
        RESTARTS="2",
        SLURM_JOB_ID="42",
        SLURM_NNODES="3",
        SLURM_GPUS_ON_NODE="8",
        SLURM_CPUS_ON_NODE="64",
        SLURM_SUBMIT_DIR=str(tmp_path),
    )
    assert done.returncode == status, done.stderr
    recorded = calls(tmp_path)
    trainings = [words for words in recorded if words[0] == "trainer"]
    assert trainings == [["trainer", "-m", "simcse_jax.train", AWKWARD]] * starts
    assert (["scontrol", "requeue", "42"] in recorded) is requeued
    assert recorded[0][:5] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=64"]
    assert not list(tmp_path.glob("*.mend"))


def test_a_slurm_task_outlives_the_signal_until_the_training_has_saved(tmp_path: Path):
    # SLURM signals every process of a task, its shell too; were that to end first, the task would count as over.
    put_stand_in(
        tmp_path,
        "trainer",
        "import signal, time\n"
        "def save(*_):\n    time.sleep(0.3)\n    os.write(1, b'saved')\n    os._exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\nos.write(1, b'ready')\ntime.sleep(60)",
    )
    words = shlex.split(sbatch(tmp_path, DRY_RUN="1", PYTHON=str(tmp_path / "trainer")).stdout)
    task = words[words.index("bash") :]
    with subprocess.Popen(task, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout is not None
        assert running.stdout.read(5) == b"ready"
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(timeout=30) == 143
        assert running.stdout.read() == b"saved"

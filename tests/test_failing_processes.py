"""An error that only one of several processes meets ends all of them, in time, and says what to do."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.faults import RECIPE
from tests.small_models import demo_files

ROOT = Path(__file__).resolve().parents[1]
# The training command, after a change of its modules.
CHANGED = """
import runpy, sys
{change}
sys.argv[0] = "train"
runpy.run_module("simcse_jax.train", run_name="__main__")
"""
# Process 0 cannot finish a checkpoint.
FULL_DISK = """
import errno
from simcse_jax.training import checkpoint
def seal(step):
    raise OSError(errno.ENOSPC, "No space left on device")
if "--process_id=0" in sys.argv:
    checkpoint.seal = seal
"""
# Wait less long for what a network file system may show late.
IMPATIENT = """
from simcse_jax.runs import folder
folder.APPEARS_S = 2
"""


def run_members(
    folder: Path,
    own: Mapping[int, Sequence[str]],
    change: str = "",
    folders: Sequence[str] = (".", "."),
) -> list[tuple[int, str]]:
    """Return (status, output) of processes of one run; own: number -> flags that only it has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    recipe = [flag.replace("=configs/", f"={ROOT}/configs/") for flag in RECIPE]
    running = []
    for number, inside in zip(own, folders, strict=True):
        flags = [*recipe, "--config.mesh.data=2", "--workdir=run", f"--config.data.cache_dir={folder / 'cache'}"]
        flags += [
            f"--config.data.files={demo_files() / 'sentences.txt'}",
            f"--config.eval.data={demo_files() / 'dev.tsv'}",
        ]
        flags += ["--heartbeat_timeout_s=20", f"--coordinator=127.0.0.1:{port}"]
        flags += ["--num_processes=2", f"--process_id={number}", *own[number]]
        (folder / inside).mkdir(exist_ok=True)
        with (folder / f"{number}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-c", CHANGED.format(change=change), *flags],
                    cwd=folder / inside,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    ended = [process.wait(timeout=500) for process in running]
    return [(status, (folder / f"{number}.log").read_text()) for number, status in zip(own, ended, strict=True)]


@pytest.mark.medium
def test_different_settings_end_all(tmp_path: Path) -> None:
    one, two = run_members(tmp_path, {0: [], 1: ["--config.train.seed=1"]})
    assert (one[0], two[0]) == (2, 2)
    assert "train.seed is 0 on process 0 and 1 on process 1" in one[1]


@pytest.mark.medium
def test_a_folder_that_is_not_shared_is_found_out(tmp_path: Path) -> None:
    """Two folders under one name, as on two hosts without a shared file system."""
    for status, said in run_members(tmp_path, {0: [], 1: []}, change=IMPATIENT, folders=["a", "b"]):
        assert status == 2, said
        assert "is not the folder that process 0 has under that name" in said


@pytest.mark.medium
def test_a_file_that_one_process_lacks_is_an_error_of_both(tmp_path: Path) -> None:
    (first, _), (second, said) = run_members(tmp_path, {0: [], 1: ["--config.eval.data=/nowhere.tsv"]})
    assert (first, second) == (2, 2)
    assert "/nowhere.tsv" in said


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_ends_both(tmp_path: Path) -> None:
    (first, said), (second, _) = run_members(tmp_path, {0: [], 1: []}, change=FULL_DISK)
    assert first == 2, said
    assert "Free some space first" in said
    assert second in (2, 134, -6), second  # it may hear from JAX first that process 0 is gone
    assert not list((tmp_path / "run" / "checkpoints" / "last").glob("*/files.json"))

"""What one of two processes meets alone ends both, in time, with a status that says what to do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import RECIPE

ROOT = Path(__file__).resolve().parents[1]
# The training, in which process 0 cannot finish a checkpoint.
FULL_DISK = """
import errno, runpy, sys
from simcse_jax.training import checkpoint
def seal(step):
    raise OSError(errno.ENOSPC, "No space left on device")
if "--process_id=0" in sys.argv:
    checkpoint.seal = seal
sys.argv[0] = "train"
runpy.run_module("simcse_jax.train", run_name="__main__")
"""


def run_two(folder: Path, start: list[str], others: dict[int, list[str]]) -> list[tuple[int, str]]:
    """(status, output) of two processes of one run; others: further flags of a process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    running = []
    for number in range(2):
        flags = [*RECIPE, "--config.mesh.data=2", f"--workdir={folder / 'run'}"]
        flags += [f"--config.data.cache_dir={folder / 'cache'}", "--heartbeat_timeout_s=20", *others.get(number, [])]
        flags += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
        log = (folder / f"{number}.log").open("w")
        running.append(
            subprocess.Popen([sys.executable, *start, *flags], cwd=ROOT, env=environment, stdout=log, stderr=log)
        )
        log.close()
    ended = [process.wait(timeout=500) for process in running]
    return [(status, (folder / f"{number}.log").read_text()) for number, status in enumerate(ended)]


@pytest.mark.slow
def test_a_file_that_one_process_lacks_is_an_error_of_both(tmp_path: Path) -> None:
    (first, _), (second, said) = run_two(
        tmp_path,
        ["-m", "simcse_jax.train"],
        {0: ["--config.eval.data=demo:dev"], 1: ["--config.eval.data=/nowhere.tsv"]},
    )
    assert (first, second) == (2, 2)
    assert "/nowhere.tsv" in said


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_ends_both(tmp_path: Path) -> None:
    (first, said), (second, _) = run_two(tmp_path, ["-c", FULL_DISK], {})
    assert first == 2, said
    assert "Free some space first" in said
    assert second in (2, 134, -6), second  # it may hear from JAX first that process 0 is gone
    assert not list((tmp_path / "run" / "checkpoints" / "last").glob("*/files.json"))

"""Runs at gs:// as a pod has them: each process is started by itself, with a cache of its own, and shares no disk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bucket import Bucket
from tests.small_models import demo_files

ROOT = Path(__file__).parent.parent
STEPS = 12
RECIPE = (
    "--config=configs/demo.py:scratch",
    f"--config.data.files={demo_files() / 'sentences.txt'}",
    f"--config.eval.data={demo_files() / 'dev.tsv'}",
    "--config.model.num_hidden_layers=1",
    "--config.model.hidden_size=64",
    "--config.model.intermediate_size=128",
    "--config.model.vocab_size=300",
    "--config.data.packed=False",
    "--config.train.batch_size=64",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every_steps=1",
    "--config.optimizer.warmup_steps=4",
    "--config.eval.every_steps=6",
    "--config.checkpoint.every_steps=2",
)


class Processes:
    """Start the processes of runs; `folder` holds their caches, logs and compiled programs."""

    def __init__(self, folder: Path, bucket: Bucket, count: int = 1, **environment: str):
        self.folder, self.bucket, self.count, self.environment = folder, bucket, count, environment
        self.running: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, workdir: Path | str, *flags: str, log: str = "log", recipe: Sequence[str] = RECIPE) -> None:
        """Start all processes of one run; the output of process n is appended to `log-n`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        several = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={self.count}", "--heartbeat_timeout_s=10"]
        for number in range(self.count):
            command = [sys.executable, "-m", "simcse_jax.train", *recipe, f"--workdir={workdir}", *flags]
            command += [*several, f"--process_id={number}"] if self.count > 1 else []
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1",
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "PYTHONPATH": str(ROOT),
                "SIMCSE_CACHE": str(self.folder / f"cache-{number}"),
                **self.bucket.environment,
                **self.environment,
            }
            with (self.folder / f"{log}-{number}").open("ab") as file:
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
            self.running.append(process)

    def wait(self, timeout: float = 400) -> list[int]:
        """Return the exit statuses of all processes, once they have ended."""
        until = time.monotonic() + timeout
        statuses = [process.wait(max(until - time.monotonic(), 1)) for process in self.running]
        self.running.clear()
        return statuses

    def run(self, workdir: Path | str, *flags: str, log: str = "log") -> list[int]:
        self.start(workdir, *flags, log=log)
        return self.wait()

    def kill(self) -> None:
        for process in self.running:
            process.kill()
        self.wait()

    def log(self, number: int = 0, log: str = "log") -> str:
        return (self.folder / f"{log}-{number}").read_text(errors="replace")


def fetch(bucket: Bucket, prefix: str, to: Path) -> Path:
    """Copy all objects under a prefix into a folder, as a user would; return it."""
    for name in bucket.names(f"{prefix}/"):
        path = to / name.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.read(name))
    return to

"""A program that runs again takes no new memory from the system."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints how many pages the system handed out for forty runs, after five others.
RUNS = """
import resource
{}
import jax, jax.numpy as jnp
run = jax.jit(lambda x: x + 1)
x = jnp.ones(9 * 2**20)  # 36 MiB, more than malloc would ever keep by itself
for n in range(45):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt if n == 5 else locals().get("before")
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(first: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", RUNS.format(first)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.medium
@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="of glibc")
def test_freed_memory_is_used_again() -> None:
    # A tenth, not none: small objects may cut up a hole of the heap, which then grows a few times.
    kept = pages("from simcse_jax.system.host_memory import keep_freed_memory; keep_freed_memory()")
    assert kept < 0.1 * pages("")

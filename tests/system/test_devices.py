"""What libraries do to signals and messages when JAX's devices start."""

import os
import signal
import subprocess
import sys

import pytest

from simcse_jax.system.devices import quiet_cuda_plugin

# libtpu's part is played by libc: it sets a handler behind Python's back, here one that ignores the signal.
SCRIPT = """
import ctypes, os, signal, time
import jax
{handler}
jax.devices()
ctypes.CDLL(None).signal(signal.SIGTERM, 1)
from simcse_jax.system.devices import start_devices
start_devices()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
print("still here")
"""


def outcome(handler: str) -> tuple[int, str]:
    command = [sys.executable, "-c", SCRIPT.format(handler=handler)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout


def test_sigterm_ends_a_process_as_it_did_before() -> None:
    assert outcome("") == (-signal.SIGTERM, "")
    own = 'signal.signal(signal.SIGTERM, lambda *_: print("own handler", flush=True))'
    assert outcome(own) == (0, "own handler\nstill here\n")


@pytest.mark.medium  # it loads libtpu
def test_sigterm_ends_a_plan_for_tpus_without_a_stack_trace() -> None:
    pytest.importorskip("libtpu")
    script = """
import os, signal
from simcse_jax.planning.topologies import topology_chips
from simcse_jax.system.devices import quiet_tpu_library
quiet_tpu_library()
topology_chips("v5e:2x2")
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("is_there", [False, True])
def test_only_without_a_gpu_is_the_cuda_plugin_quiet(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os.path, "exists", lambda name: is_there and name == "/dev/nvidia0")
    quiet_cuda_plugin()
    assert ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK" in os.environ) is not is_there

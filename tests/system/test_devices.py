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


@pytest.mark.parametrize("is_there", [False, True])
def test_only_without_a_gpu_is_the_cuda_plugin_quiet(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os.path, "exists", lambda name: is_there and name == "/dev/nvidia0")
    quiet_cuda_plugin()
    assert ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK" in os.environ) is not is_there

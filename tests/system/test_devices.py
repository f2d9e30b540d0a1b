"""What libraries do to signals when JAX's devices start."""

import signal
import subprocess
import sys

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

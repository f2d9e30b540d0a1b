"""Start JAX's devices, and keep Python's handling of SIGTERM."""

from __future__ import annotations

import signal
import threading

import jax


def start_devices() -> None:
    """Have JAX find its devices, and restore the handler of SIGTERM that Python knows of.

    JAX loads libtpu wherever it is installed, also without a TPU. That library replaces the handler of SIGTERM by one
    that prints a stack trace and a report of a crash. With several processes nothing is restored: there, SIGTERM
    belongs to JAX's preemption service (`hosts.signals`). Python allows the change in the main thread only.
    """
    jax.devices()
    known = signal.getsignal(signal.SIGTERM)
    if known is not None and jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, known)

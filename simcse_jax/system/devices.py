"""Start JAX's devices without the messages and signal handlers of libraries for devices that are not there."""

from __future__ import annotations

import glob
import os
import signal
import threading

from simcse_jax.system.errors import UserError

# Settings of libtpu on a machine without TPU: ask no metadata server, lock no chip, and print nothing about either.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


def quiet_tpu_library() -> None:
    """Set libtpu's variables on a machine without a TPU; JAX loads that library wherever it is installed."""
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/*"):
        os.environ.update({name: value for name, value in NO_TPU.items() if name not in os.environ})


def quiet_cuda_plugin() -> None:
    """Let JAX load its CUDA plug-in on a machine without a GPU, where it would complain about missing libraries.

    Such a machine has the plug-in for its compiler (the extra gpu-plan), and runs on what else it has.
    """
    if not any(os.path.exists(name) for name in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")):
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


_started_by: list[int] = []  # the process that started the devices


def require_unforked() -> None:
    """Raise UserError in a process that was forked after the devices were started, where JAX would wait for ever."""
    if _started_by and _started_by != [os.getpid()]:
        raise UserError(
            "This process was forked after a model was opened, and JAX's threads are not in it.\nStart processes with "
            'multiprocessing.get_context("spawn"), or open the model only in the new process.'
        )


def start_devices() -> None:
    """Have JAX find its devices, and restore the handler of SIGTERM that Python knows of."""
    require_unforked()
    quiet_tpu_library()
    quiet_cuda_plugin()
    import jax  # it reads the variables

    jax.devices()
    _started_by[:] = [os.getpid()]
    if jax.process_count() == 1:  # with several, SIGTERM belongs to JAX's preemption service (`hosts.signals`)
        restore_sigterm()


def restore_sigterm() -> None:
    """Restore the handler of SIGTERM that Python knows of, once libtpu is loaded.

    libtpu replaces that handler by one that prints a stack trace and the report of a crash. Python allows the change in
    the main thread only.
    """
    known = signal.getsignal(signal.SIGTERM)
    if known is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, known)

"""Memory that a CPU's programs free, kept for the next one instead of given back to the system.

A training step takes its arrays anew from the system each time, gigabytes of them, and the system hands out each page
by itself and full of zeros: a fifth of a step's time on two cores. GPUs and TPUs have allocators of their own.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import jax

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, and XLA run its programs in the thread that calls them, whose heap can grow.

    To be called before JAX has looked for devices; does nothing to speak of where these are no CPUs, or where malloc is
    not glibc's.
    """
    config: Any = jax.config
    config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)

"""Memory that a CPU's programs free, kept for the next one instead of given back to the system.

A training step takes gigabytes anew each time, and the system hands out every page by itself and full of zeros, which
takes longer than much of the arithmetic (docs/performance.md). GPUs and TPUs have allocators of their own.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import jax

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Where the only device is a CPU: malloc keeps what is freed, and programs run in the thread that calls them.

    That thread's heap is the one that can grow to any size. The price: the process stays as large as it once was, and
    the host does nothing else while a step runs. To be called before anything else makes JAX look for devices. Programs
    of several CPU devices run in threads of their own as ever, and where malloc is not glibc's nothing changes.
    """
    config: Any = jax.config
    config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)

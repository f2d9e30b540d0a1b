"""Keep the memory that a program on a CPU frees, for the next program, instead of returning it to the system.

A training step allocates gigabytes each time. The system hands them out page by page, each filled with zeros, which
takes longer than much of the arithmetic (benchmarks/README.md). GPUs and TPUs have allocators of their own.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import jax

# Constants of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def release_freed_memory() -> None:
    """Return freed memory to the system after all, where malloc is glibc's."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory, and run programs in the calling thread, where the only device is one CPU.

    The heap of the calling thread is the only one that can grow to any size. The price: the process stays as large as
    it once was, until `release_freed_memory`, and the host does nothing else while a step runs. Call this before
    anything makes JAX look for devices. Programs for several CPU devices still run in threads of their own; where
    malloc is not glibc's, nothing changes.
    """
    config: Any = jax.config
    config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)

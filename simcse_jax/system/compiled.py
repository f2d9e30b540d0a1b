"""Compiled programs, kept from one start to the next: JAX's persistent cache, in a folder of ours."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError

LARGEST_BYTES = 2 * 2**30  # of all programs together; those that were not used for longest go first
SHORTEST_COMPILATION_S = 0.2  # what compiles faster is not kept
LOCK_TIMEOUT_S = 10
TUNED = b"+prefer-no-gather"  # in a CPU's programs that XLA did not take back before
TAKEN_BACK_SINCE = (0, 10, 2)  # jaxlib; tried with 0.10.0, 0.10.1 and 0.10.2


def keep_compiled() -> None:
    """From now on, take programs that were compiled before from the cache, and keep those that are compiled.

    JAX's own settings go first: JAX_ENABLE_COMPILATION_CACHE=false for none, JAX_COMPILATION_CACHE_DIR for a folder
    that JAX then uses as it is told. Without a folder that can be written, nothing is kept. Nor is it by one of several
    processes: only the first would write, and where the others do not see its folder, they compile while it does not,
    and compilers that work together wait for it. Nor where XLA would not take back what it kept (`takes_back`).
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir or jax.process_count() > 1:
        return
    name = "compiled"
    if jax.default_backend() == "cpu":
        made = cpu_code()
        if not takes_back(made):
            return
        # A home folder may be shared by machines with other instructions.
        name += "-cpu-" + hashlib.blake2b(made, digest_size=8).hexdigest()
    from filelock import Timeout

    with suppress(UserError, OSError, Timeout):
        folder = cache_folder(name)
        _remove_torn(folder)
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_compilation_cache_max_size", LARGEST_BYTES)
        config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_COMPILATION_S)


def takes_back(cpu_code: bytes) -> bool:
    """Whether XLA takes back such programs without a word.

    On CPUs that it tunes with `+prefer-no-gather` it took that for an instruction which the machine lacks, and had a
    screen of text for each program (openxla/xla#44565).
    """
    return TUNED not in cpu_code or jaxlib.version.__version_info__ >= TAKEN_BACK_SINCE


def cpu_code() -> bytes:
    """A small program as it would be kept; it holds the list of the machine's instructions, and JAX's version."""
    program: Any = jax.jit(lambda x: x + 1).lower(0.0).compile().runtime_executable()
    return program.serialize()


def _remove_torn(folder: Path) -> None:
    """Remove programs that a killed process left half-written: the time of use is written after the program."""
    from filelock import FileLock

    with FileLock(folder / ".lockfile", timeout=LOCK_TIMEOUT_S):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()

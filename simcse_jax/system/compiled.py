"""Keep compiled programs from one start to the next: JAX's persistent cache, in a folder of ours."""

from __future__ import annotations

import functools
import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from simcse_jax.system.cache import cache_folder
from simcse_jax.system.errors import UserError

LARGEST_BYTES = 2 * 2**30  # of all programs together; the least recently used are removed first
SHORTEST_COMPILATION_S = 0.2  # programs that compile faster are not kept
LOCK_TIMEOUT_S = 10
TUNED = b"+prefer-no-gather"  # stands in programs for some CPUs, which older jaxlibs refuse to load again
RELOADABLE_SINCE = (0, 10, 2)  # jaxlib; tried with 0.10.0, 0.10.1 and 0.10.2


def keep_compiled() -> None:
    """Load programs from the cache, and store those that are compiled, from now on.

    JAX's own settings win: JAX_ENABLE_COMPILATION_CACHE=false turns the cache off, and JAX_COMPILATION_CACHE_DIR names
    a folder, which JAX then uses as configured. Nothing is kept in three cases: the folder cannot be written; XLA would
    refuse to load its programs again (`is_reloadable`); several processes train together. Then only the first would
    write, and where the others cannot read its folder, they compile while it does not, and their compilers, which work
    together, wait for it forever. Programs for several CPU devices are never kept: see `keep_for_one_device`.
    """
    config: Any = jax.config
    if jax.default_backend() == "cpu":
        keep_for_one_device()
    if not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir or jax.process_count() > 1:
        return
    name = "compiled"
    if jax.default_backend() == "cpu":
        code = cpu_code()
        if not is_reloadable(code):
            return
        # Machines with different instruction sets may share a home folder.
        name += f"-cpu-{instructions_hash(code)}"
    from filelock import Timeout

    with suppress(UserError, OSError, Timeout):
        folder = cache_folder(name)
        _remove_torn(folder)
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_compilation_cache_max_size", LARGEST_BYTES)
        config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_COMPILATION_S)


def keep_for_one_device() -> None:
    """Have programs for several CPU devices compiled at every start, whatever the cache; call it again without effect.

    XLA loads them without the order of their collectives (jaxlib 0.10.2): one device is in the first, another in the
    second, and they wait for each other until XLA ends the process, or exchange the wrong arrays.
    """
    from jax._src import compilation_cache as cache  # no public name turns it off for one program

    if hasattr(cache.get_executable_and_time, "__wrapped__"):
        return
    load, keep = cache.get_executable_and_time, cache.put_executable_and_time

    @functools.wraps(load)
    def load_it(key: str, options: Any, backend: Any, devices: Any, *more: Any) -> Any:
        is_kept = backend.platform != "cpu" or len(devices) == 1
        return load(key, options, backend, devices, *more) if is_kept else (None, None)

    @functools.wraps(keep)
    def keep_it(key: str, name: str, program: Any, backend: Any, *more: Any) -> None:
        if backend.platform != "cpu" or len(program.local_devices()) == 1:
            keep(key, name, program, backend, *more)

    cache.get_executable_and_time, cache.put_executable_and_time = load_it, keep_it


def is_reloadable(cpu_code: bytes) -> bool:
    """Return whether XLA loads programs like this one from the cache without a warning.

    For CPUs that XLA tunes with `+prefer-no-gather`, older versions took that name for an instruction that the machine
    lacks, and printed a screen of text for each program (openxla/xla#44565).
    """
    return TUNED not in cpu_code or jaxlib.version.__version_info__ >= RELOADABLE_SINCE


def cpu_code() -> bytes:
    """Return a small compiled program; it contains the list of the machine's instructions and JAX's version."""
    program: Any = jax.jit(lambda x: x + 1).lower(0.0).compile().runtime_executable()
    return program.serialize()


def instructions_hash(cpu_code: bytes) -> str:
    """Return a hash of the list of instructions in a program, or of all of it if it contains no such list.

    The rest of a program differs from one process to the next: it names the source files and lines it comes from.
    """
    lists = re.findall(rb"[+-][\w.-]+(?:,[+-][\w.-]+)+", cpu_code)
    return hashlib.blake2b(max(lists, key=len, default=cpu_code), digest_size=8).hexdigest()


def _remove_torn(folder: Path) -> None:
    """Remove programs that a killed process left half written: JAX writes the time of use after the program."""
    from filelock import FileLock

    with FileLock(folder / ".lockfile", timeout=LOCK_TIMEOUT_S):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()

"""Programs kept between starts, in processes of their own, as JAX opens its cache once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simcse_jax.system import compiled
from simcse_jax.system.cache import cache_folder
from simcse_jax.system.compiled import TUNED, is_reloadable
from simcse_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import jax, jax.numpy as jnp
from simcse_jax.system import compiled
compiled.SHORTEST_COMPILATION_S = 0
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
compiled.keep_compiled()
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((3, 3))), len(hits), jax.config.jax_compilation_cache_dir)
"""


# An array on two devices, made without a program.
ON_TWO_DEVICES = """jax.device_put(
    __import__("numpy").ones((4, 4)), jax.sharding.NamedSharding(jax.make_mesh((2,), ("d",)), jax.P("d"))
)"""


def start(
    cache: Path, before: str = "", array: str = "jnp.ones((3, 3))", **variables: str
) -> tuple[str, int, str, str]:
    """Run a process, `before` first; return (result, programs loaded from the cache, its folder, stderr)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPIL", "JAX_PERSI"))}
    environment = inherited | {"SIMCSE_CACHE": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "true"} | variables
    program = PROGRAM.replace("compiled.keep", f"{before}\ncompiled.keep").replace("jnp.ones((3, 3))", array)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result, hits, folder = done.stdout.split()
    return result, int(hits), folder, done.stderr


# On some CPUs XLA does not take its own programs back, and none are kept: see `keep_compiled`.
needs_kept_programs = pytest.mark.skipif(not is_reloadable(compiled.cpu_code()), reason="XLA refuses its programs here")


@needs_kept_programs
def test_a_second_start_takes_what_the_first_one_compiled(tmp_path: Path) -> None:
    first, hits, folder, _ = start(tmp_path)
    assert hits == 0
    assert Path(folder).parent == tmp_path
    again, hits, _, errors = start(tmp_path, before="\n\n")  # from other lines of the source
    assert hits > 0
    assert again == first
    assert not errors


@needs_kept_programs
@pytest.mark.parametrize("own_folder", [False, True])
def test_programs_for_several_cpu_devices_are_compiled_at_every_start(tmp_path: Path, own_folder: bool) -> None:
    """XLA would load them without the order of their collectives."""
    variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")} if own_folder else {}
    variables |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for _ in range(2):
        _, hits, folder, errors = start(tmp_path, array=ON_TWO_DEVICES, **variables)
        assert (hits, errors) == (0, "")
        assert not list(Path(folder).glob("*lambda*-cache"))
    start(tmp_path, **variables)
    assert start(tmp_path, **variables)[1] > 0  # of the one device that a program runs on


@pytest.mark.medium
@needs_kept_programs
def test_what_a_killed_process_left_is_removed_and_damage_is_compiled_anew(tmp_path: Path) -> None:
    first, _, folder, _ = start(tmp_path)
    for number, program in enumerate(Path(folder).glob("*-cache")):
        content = bytearray(program.read_bytes())
        content[len(content) // 2] ^= 16
        program.write_bytes(content[: 40 if number else None])
    damaged, hits, _, errors = start(tmp_path)
    assert (damaged, hits) == (first, 0)
    assert "Error reading persistent compilation cache entry" in errors
    for used in Path(folder).glob("*-atime"):
        used.unlink()
    mended, hits, _, errors = start(tmp_path)
    assert (mended, hits, errors) == (first, 0, "")
    assert start(tmp_path)[1] > 0


@pytest.mark.parametrize(("jaxlib", "kept"), [((0, 10, 1), False), ((0, 10, 2), True), ((0, 11, 0), True)])
def test_on_cpus_that_xla_tunes_programs_are_kept_where_it_takes_them_back(
    tmp_path: Path, jaxlib: tuple[int, ...], kept: bool
) -> None:
    tuned = f"import jaxlib.version; jaxlib.version.__version_info__ = {jaxlib}; compiled.cpu_code = lambda: {TUNED!r}"
    _, _, folder, _ = start(tmp_path, before=tuned)
    assert (folder != "None") == kept
    assert bool(list(tmp_path.iterdir())) == kept


def test_the_settings_of_jax_go_first_and_a_cache_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    assert start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[2] == "None"
    assert start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[2] == str(tmp_path / "own")
    (tmp_path / "file").write_text("")
    assert start(tmp_path / "file")[2] == "None"


@pytest.mark.parametrize("chosen", ["~no-such-user/cache", "/dev/null/cache"])
def test_a_cache_that_cannot_be_made_says_what_to_set(chosen: str) -> None:
    with pytest.raises(UserError, match="SIMCSE_CACHE"):
        cache_folder("compiled", chosen)

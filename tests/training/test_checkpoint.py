"""Checkpoints that go wrong: damaged ones, saves that fail, disks that are full."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from simcse_jax.model_folder.run_folder import FILE_LIST, complete_steps
from simcse_jax.system.errors import UserError
from simcse_jax.training.checkpoint import ATTEMPTS, Checkpoints, RunProgress
from simcse_jax.training.mesh import make_mesh, replicated
from simcse_jax.training.state import TrainState

ROOT = Path(__file__).parent.parent.parent


def state(step: int) -> TrainState:
    params = {"kernel": jnp.arange(2000, dtype=jnp.float32).reshape(40, 50) + step}
    made = TrainState(jnp.int32(step), params, (jnp.ones(3),), jnp.zeros(2, jnp.uint32), {})
    return jax.device_put(made, replicated(make_mesh(1)))


def like() -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def saved(workdir: Path, *steps: int) -> None:
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            checkpoints.finish(state(step), RunProgress(best_step=step, best_score=step / 2))


def restored(workdir: Path) -> tuple[int, float, list[str]]:
    """Step, first number and what was said of the state that a resumed run gets."""
    said: list[str] = []
    with Checkpoints(workdir, said.append) as checkpoints:
        found = checkpoints.restore_last(like())
    assert found is not None
    assert found[1].best_score == int(found[0].step) / 2
    return int(found[0].step), float(found[0].params["kernel"][0, 0]), said


def largest_file(step: Path) -> Path:
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(step: Path) -> None:
    file = largest_file(step)
    os.truncate(file, file.stat().st_size // 2)


def flip(step: Path) -> None:
    file = largest_file(step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove_file(step: Path) -> None:
    largest_file(step).unlink()


def empty_list(step: Path) -> None:
    (step / FILE_LIST).write_text("")


@pytest.mark.parametrize("damage", [cut, flip, remove_file, empty_list])
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    saved(tmp_path, 3, 6)
    damage(tmp_path / "checkpoints" / "last" / "6")
    step, number, said = restored(tmp_path)
    assert (step, number) == (3, 3.0)
    assert len(said) == 1
    assert "step 6" in said[0]
    assert (tmp_path / "checkpoints" / "broken-6").is_dir()
    saved(tmp_path, 6)  # the run comes by that step again
    assert restored(tmp_path) == (6, 6.0, [])
    damage(tmp_path / "checkpoints" / "last" / "6")
    assert restored(tmp_path)[0] == 3
    assert (tmp_path / "checkpoints" / "broken-6.2").is_dir()


def test_a_state_with_nan_is_set_aside(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.finish(state(6)._replace(params={"kernel": jnp.full((40, 50), jnp.nan)}), RunProgress())
    assert restored(tmp_path)[:2] == (3, 3.0)


def test_when_none_is_good_nothing_starts_anew_by_itself(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    for step in ("3", "6"):
        cut(tmp_path / "checkpoints" / "last" / step)
    for _ in range(2):  # nor at the next start
        with Checkpoints(tmp_path, lambda _: None) as checkpoints, pytest.raises(UserError, match="--workdir=ANOTHER"):
            checkpoints.restore_last(like())


def test_a_run_whose_first_checkpoint_is_damaged_starts_again(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    cut(tmp_path / "checkpoints" / "last" / "3")
    said: list[str] = []
    with Checkpoints(tmp_path, said.append) as checkpoints:
        assert checkpoints.restore_last(like()) is None
    assert "again" in said[-1]
    # But not if it once had others.
    saved(tmp_path, 3)
    cut(tmp_path / "checkpoints" / "last" / "3")
    with Checkpoints(tmp_path, said.append) as checkpoints, pytest.raises(UserError, match="--workdir=ANOTHER"):
        checkpoints.restore_last(like())


def test_a_save_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    last = tmp_path / "checkpoints" / "last"
    (last / "6" / FILE_LIST).unlink()  # it is written last
    shutil.copytree(last / "3", last / "9.orbax-checkpoint-tmp-1")
    assert complete_steps(last) == [3]
    assert restored(tmp_path) == (3, 3.0, [])
    assert {path.name for path in last.iterdir()} == {"3"}


def test_a_failed_save_is_told_of_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simcse_jax.training.checkpoint as module

    seal, calls = module.seal, iter([True, False])

    def fails_once(step: Path) -> None:
        if next(calls, False):
            raise OSError(5, "Input/output error")
        seal(step)

    monkeypatch.setattr(module, "seal", fails_once)
    said: list[str] = []
    with Checkpoints(tmp_path, said.append) as checkpoints:
        checkpoints.save_last(state(3), RunProgress())
        assert checkpoints._pending is not None
        checkpoints._pending.exception()  # wait for the background, as training would by its steps
        assert checkpoints.must_retry()
        assert "Input/output error" in said[0]
        checkpoints.save_last(state(4), RunProgress())
        checkpoints.finish(state(5), RunProgress())
        assert not checkpoints.must_retry()
    assert complete_steps(tmp_path / "checkpoints" / "last") == [4, 5]


@pytest.mark.parametrize("kind", ["last", "best"])
def test_a_failed_save_of_the_same_step_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import simcse_jax.training.checkpoint as module

    seal, fails = module.seal, [True]

    def fails_once(step: Path) -> None:
        if step.parent.name == kind and fails:
            fails.clear()
            raise OSError(5, "Input/output error")
        seal(step)

    monkeypatch.setattr(module, "seal", fails_once)
    with Checkpoints(tmp_path, lambda _: None) as checkpoints:
        checkpoints.save_best(3, state(3).params, {"spearman": 1.0})
        checkpoints.finish(state(3), RunProgress(best_step=3, best_score=1.5))
    assert not fails
    assert complete_steps(tmp_path / "checkpoints" / "last") == complete_steps(tmp_path / "checkpoints" / "best") == [3]
    assert restored(tmp_path) == (3, 3.0, [])


FULL_DISK = """
import resource, sys
from tests.training import test_checkpoint as test
from simcse_jax.training.checkpoint import Checkpoints, RunProgress
from simcse_jax.system.errors import UserError
from pathlib import Path
said = []
with Checkpoints(Path(sys.argv[1]), said.append) as checkpoints:
    checkpoints.finish(test.state(3), RunProgress(best_step=3, best_score=1.5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # no file may grow past this: what a full disk does
    try:
        checkpoints.finish(test.state(6), RunProgress())
    except UserError as error:
        print(len(said), error)
"""


def test_a_full_disk_stops_the_run_and_leaves_it_resumable(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(f"{2 * (ATTEMPTS - 1)} A checkpoint could not be written"), done.stdout + done.stderr
    assert "holds step 3" in done.stdout
    assert "Free some space" in done.stdout
    assert restored(tmp_path) == (3, 3.0, [])
    assert {path.name for path in (tmp_path / "checkpoints" / "last").iterdir()} == {"3"}
